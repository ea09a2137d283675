"""Four in a row: two players, a page, and a turn timer that is a schedule.

    rayobjects serve examples/game.py         then open http://127.0.0.1:8000/ in two windows

Every game is one object, under a random name: whoever is sent the page's address plays or watches.
Players are told apart by a key that their browser makes and keeps, so who reloads the page, or
loses the connection, has the same seat again. Who does not move in time has lost, though nobody
looks: the object is asleep, and its schedule wakes it. The result is told to the players' own
objects, once, whatever dies in between.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rayobjects as ro

COLUMNS = 7
ROWS = 6
IN_A_ROW = 4
TURN_S = 30.0
NAME_CHARACTERS_MAX = 24
TABLES_KEPT = 10

RED, YELLOW = "red", "yellow"
SEATS = (RED, YELLOW)

NO_NAME = 4000
"""The code that a socket without a name and a key is closed with."""

Cell = tuple[int, int]
"""Column and row, from 0, from the lower left."""


@dataclass
class Record:
    """How somebody has done so far."""

    won: int
    lost: int
    drawn: int


class Player(ro.DurableObject):
    """Somebody by name, in all games together."""

    won: int = ro.durable(0)
    lost: int = ro.durable(0)
    drawn: int = ro.durable(0)
    opened: list[str] = ro.durable(factory=list)

    def open_table(self) -> str:
        """A game under a new random name; it exists when somebody sits down. A call that is
        repeated after a crash has the same name."""
        table: str = ro.namespace("Game").create().id.name
        self.opened = [table, *self.opened][:TABLES_KEPT]
        return table

    def tables(self) -> list[str]:
        """The last games that they have opened, the newest first."""
        return self.opened

    @ro.internal
    def played(self, won: bool | None) -> None:
        """A game has ended; None for a draw."""
        if won is None:
            self.drawn += 1
        elif won:
            self.won += 1
        else:
            self.lost += 1

    def record(self) -> Record:
        """How they have done so far."""
        return Record(self.won, self.lost, self.drawn)


class Game(ro.DurableObject):
    """A table with two seats, and one round after the other."""

    columns: list[list[str]] = ro.durable(factory=lambda: [[] for _ in range(COLUMNS)])
    names: dict[str, str] = ro.durable(factory=dict)  # seat → name
    keys: dict[str, str] = ro.durable(factory=dict)  # seat → the player's key, for nobody else
    wins: dict[str, int] = ro.durable(factory=dict)
    round: int = ro.durable(0)
    moves: int = ro.durable(0)  # in all rounds
    to_move: str = ro.durable("")  # whose turn it is; "" between rounds
    due: float = ro.durable(0.0)  # when the turn's time is up
    last: Cell | None = ro.durable(None)
    ended: dict[str, Any] | None = ro.durable(None)  # how the last round has

    def state(self) -> dict[str, Any]:
        """What everybody at the table sees."""
        here = {(ws.attachment or {}).get("seat") for ws in self.sockets}
        return self._state(here)

    # -- at the table -----------------------------------------------------------------------

    def on_connect(self, ws: ro.WebSocket) -> None:
        """Somebody sits down, comes back, or watches: `?name=…&key=…`."""
        name = ws.query.get("name", "").strip()[:NAME_CHARACTERS_MAX]
        key = ws.query.get("key", "")
        if not name or not key:
            ws.close(NO_NAME, "say who you are: ?name=…&key=…")
            return
        seat = self._seat(name, key)
        ws.attachment = {"seat": seat}
        ws.send(json.dumps({"type": "you", "seat": seat}))
        if not self.to_move and self.ended is None and len(self.keys) == len(SEATS):
            self._begin()
        self._show()

    def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        """`{"drop": column, "move": …}` or `{"again": round}`. The numbers are those of the state
        that the player saw, so what comes late or twice does nothing."""
        try:
            said = json.loads(data)
            column, move = said.get("drop"), said.get("move")
            again = said.get("again")
        except (ValueError, AttributeError):
            return
        seat = ws.attachment["seat"]
        if again is not None:
            if seat and self.ended is not None and again == self.round:
                self._begin()
                self._show()
        elif seat and seat == self.to_move and move == self.moves and column in range(COLUMNS):
            self._drop(seat, int(column))

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        """A page was closed. The seat stays theirs while the round lasts."""
        here = {(each.attachment or {}).get("seat") for each in self.sockets if each.id != ws.id}
        self._show(here)

    def _seat(self, name: str, key: str) -> str:
        for seat in SEATS:
            if self.keys.get(seat) == key:
                self.names[seat] = name
                return seat
        here = {(ws.attachment or {}).get("seat") for ws in self.sockets}
        for seat in SEATS:
            if seat not in self.keys or (not self.to_move and seat not in here):
                self.keys[seat], self.names[seat] = key, name
                self.wins[seat] = 0
                return seat
        return ""

    # -- the game ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self.columns = [[] for _ in range(COLUMNS)]
        self.last = self.ended = None
        self.to_move = SEATS[self.round % 2]  # they begin by turns
        self.round += 1
        self._wait_for_move()

    def _wait_for_move(self) -> None:
        self.due = self.now().timestamp() + TURN_S
        self.schedule(self._time_is_up, self.moves, after=TURN_S, key="turn")

    def _drop(self, seat: str, column: int) -> None:
        stones = self.columns[column]
        if len(stones) == ROWS:
            return
        stones.append(seat)
        self.moves += 1
        self.last = (column, len(stones) - 1)
        line = line_through(self.columns, self.last)
        if line:
            self._end(seat, "four", line)
        elif all(len(each) == ROWS for each in self.columns):
            self._end("", "full")
        else:
            self.to_move = other(seat)
            self._wait_for_move()
        self._show()

    def _time_is_up(self, move: int) -> None:
        if self.to_move and move == self.moves:
            self._end(other(self.to_move), "time")
            self._show()

    def _end(self, winner: str, why: str, line: list[Cell] | None = None) -> None:
        self.to_move = ""
        self.unschedule("turn")
        self.ended = {"winner": winner, "why": why, "line": line or []}
        if winner:
            self.wins[winner] += 1
        for seat, name in self.names.items():
            player = ro.namespace("Player").get(name)
            player.played.tell(seat == winner if winner else None)

    def _show(self, here: set[str | None] | None = None) -> None:
        shown = self.state() if here is None else self._state(here)
        self.sockets.broadcast(json.dumps({"type": "state", **shown}, ensure_ascii=False))

    def _state(self, here: set[str | None]) -> dict[str, Any]:
        return {
            "columns": self.columns,
            "players": {
                seat: {"name": name, "here": seat in here, "wins": self.wins[seat]}
                for seat, name in self.names.items()
            },
            "round": self.round,
            "move": self.moves,
            "turn": self.to_move,
            "left_s": max(0.0, self.due - self.now().timestamp()) if self.to_move else 0.0,
            "turn_s": TURN_S,
            "last": self.last,
            "ended": self.ended,
        }


def other(seat: str) -> str:
    """The seat across the table."""
    return YELLOW if seat == RED else RED


def line_through(columns: list[list[str]], cell: Cell) -> list[Cell]:
    """The longest row of equal stones through a cell, if it is long enough to win; else empty."""
    column, row = cell
    seat = columns[column][row]

    def run(across: int, up: int) -> list[Cell]:
        found: list[Cell] = []
        x, y = column + across, row + up
        while 0 <= x < COLUMNS and 0 <= y < len(columns[x]) and columns[x][y] == seat:
            found.append((x, y))
            x, y = x + across, y + up
        return found

    for across, up in ((1, 0), (0, 1), (1, 1), (1, -1)):
        line = [*reversed(run(-across, -up)), cell, *run(across, up)]
        if len(line) >= IN_A_ROW:
            return line
    return []


pages = {"/": Path(__file__).with_name("game.html")}
