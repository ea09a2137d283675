"""examples/game.py on a host without Ray: its rules, its clock, and players who come and go."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from test_examples_local import example

import rayobjects as ro
from rayobjects.testing import LocalHost, LocalSocket, LocalStub

game = example("game")


class Seat:
    """Somebody with a page of the game."""

    def __init__(self, socket: LocalSocket) -> None:
        self.socket = socket

    @property
    def heard(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.socket.received]

    @property
    def sees(self) -> dict[str, Any]:
        """The last state."""
        return [each for each in self.heard if each["type"] == "state"][-1]

    @property
    def seat(self) -> str:
        return str([each for each in self.heard if each["type"] == "you"][-1]["seat"])

    async def drop(self, *columns: int) -> None:
        for column in columns:
            await self.say(drop=column, move=self.sees["move"])

    async def say(self, **values: Any) -> None:
        await self.socket.send(json.dumps(values))


async def sit(host: LocalHost, name: str, key: str = "") -> Seat:
    table = host.get("Game", "table")
    return Seat(await host.connect(table, query={"name": name, "key": key or f"key of {name}"}))


def run(test: Callable[[LocalHost, LocalStub], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost([game.Game, game.Player]) as host:
            await test(host, host.get("Game", "table"))

    asyncio.run(main())


async def alternate(first: Seat, second: Seat, *columns: int) -> None:
    """Moves by turns."""
    for number, column in enumerate(columns):
        await (second if number % 2 else first).drop(column)


async def record_is(host: LocalHost, name: str, won: int, lost: int, drawn: int) -> None:
    """Waits for what was told to a player."""
    async with asyncio.timeout(10):
        while True:
            found = await host.get("Player", name).record.remote()
            if (found.won, found.lost, found.drawn) == (won, lost, drawn):
                return


@pytest.mark.parametrize(
    ("moves", "line"),
    [
        ((0, 1, 0, 1, 0, 1, 0), [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ((0, 0, 1, 1, 3, 3, 2), [(0, 0), (1, 0), (2, 0), (3, 0)]),
        ((0, 1, 1, 2, 2, 3, 2, 3, 3, 6, 3), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ((6, 5, 5, 4, 4, 3, 4, 3, 3, 0, 3), [(3, 3), (4, 2), (5, 1), (6, 0)]),
        ((0, 0, 1, 1, 2, 2, 4, 4, 3), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]),
    ],
    ids=["up", "across", "rising", "falling", "five"],
)
def test_four_in_a_row_wins(moves: tuple[int, ...], line: list[tuple[int, int]]) -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        await alternate(ann, bob, *moves)
        for each in (ann, bob):
            ended = each.sees["ended"]
            assert (ended["winner"], ended["why"]) == ("red", "four")
            assert [tuple(cell) for cell in ended["line"]] == line
            assert each.sees["turn"] == ""
        await record_is(host, "ann", 1, 0, 0)
        await record_is(host, "bob", 0, 1, 0)

    run(test)


def test_a_full_board_is_a_draw() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        order = [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1]
        order += [column + 2 for column in order] + [column + 4 for column in order]
        await alternate(ann, bob, *order, *[6] * 6)
        assert ann.sees["ended"] == {"winner": "", "why": "full", "line": []}
        await record_is(host, "ann", 0, 0, 1)
        await record_is(host, "bob", 0, 0, 1)

    run(test)


def test_seats() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann = await sit(host, "ann")
        assert (ann.seat, ann.sees["turn"]) == ("red", "")
        bob = await sit(host, "bob")
        assert (bob.seat, bob.sees["turn"]) == ("yellow", "red")
        eve = await sit(host, "eve")
        assert (eve.seat, eve.sees["turn"]) == ("", "red")
        await eve.drop(0)
        await bob.drop(0)  # it is not his turn
        assert ann.sees["columns"] == [[]] * 7
        await ann.drop(3)
        assert [each.sees["columns"][3] for each in (ann, bob, eve)] == [["red"]] * 3
        assert "key of" not in json.dumps([ann.heard, eve.heard, await table.state.remote()])
        await ann.socket.close()
        assert bob.sees["players"]["red"] == {"name": "ann", "here": False, "wins": 0}
        assert (await sit(host, "eve", "another")).seat == ""  # while the round lasts
        again = await sit(host, "Ann", "key of ann")
        assert again.seat == "red"
        assert bob.sees["players"]["red"] == {"name": "Ann", "here": True, "wins": 0}

    run(test)


def test_time() -> None:
    """The schedule wakes a sleeping table, also after a crash; each move gives new time."""

    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        await host.move(game.TURN_S - 1)
        await ann.drop(0)
        assert bob.sees["left_s"] == game.TURN_S
        await host.evict(table)
        await host.move(game.TURN_S - 1)
        assert (await table.state.remote())["left_s"] == 1
        await host.crash()
        await host.move(1)
        state = await table.state.remote()
        assert state["ended"] == {"winner": "red", "why": "time", "line": []}
        await host.settled()
        assert ann.sees["ended"] == state["ended"]
        assert state["players"]["red"]["wins"] == 1
        await record_is(host, "bob", 0, 1, 0)
        await host.move(10 * game.TURN_S)
        assert (await table.state.remote())["players"]["red"]["wins"] == 1

    run(test)


def test_again() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        eve = await sit(host, "eve")
        await ann.say(again=1)  # the round is not over
        await alternate(ann, bob, 0, 1, 0, 1, 0, 1, 0)
        await eve.say(again=1)  # she only watches
        assert ann.sees["turn"] == ""
        for each in (ann, bob):  # both press the button
            await each.say(again=1)
        assert (ann.sees["round"], ann.sees["turn"]) == (2, "yellow")  # the other one begins
        assert ann.sees["columns"] == [[]] * 7
        assert ann.sees["ended"] is None

    run(test)


def test_an_empty_seat_is_free_between_rounds() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        await alternate(ann, bob, 0, 1, 0, 1, 0, 1, 0)
        await bob.socket.close()
        eve = await sit(host, "eve")
        assert eve.seat == "yellow"
        await eve.say(again=1)
        assert eve.sees["turn"] == "yellow"
        assert (await sit(host, "bob")).seat == ""

    run(test)


def test_what_comes_late_or_twice_or_wrong_does_nothing() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        await ann.drop(0)
        await bob.drop(0)
        await ann.say(drop=5, move=0)  # what she has sent, once more
        for wrong in ("no json", "[]", "1", "{}", '{"drop": "x", "move": 2}', b"\xff"):
            await ann.socket.send(wrong)
        for column in (-1, 7, None, 1.5):
            await ann.say(drop=column, move=2)
        assert ann.sees["columns"] == [["red", "yellow"], *[[]] * 6]
        await alternate(ann, bob, 0, 0, 0, 0)
        await ann.drop(0)  # it is full
        assert (ann.sees["move"], ann.sees["turn"]) == (6, "red")
        for query in ({}, {"name": "x"}, {"name": " ", "key": "k"}):
            with pytest.raises(ro.InvalidCall):
                await host.connect(table, query=query)

    run(test)


def test_guarantee_6_a_game_with_crashes() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann, bob = await sit(host, "ann"), await sit(host, "bob")
        for number, column in enumerate((0, 0, 1, 1, 2, 2, 3)):
            await (bob if number % 2 else ann).drop(column)
            await host.crash()
        await host.settled()
        assert bob.sees["ended"]["winner"] == "red"
        moves = [each["move"] for each in bob.heard if each["type"] == "state"]
        assert moves == list(range(8))  # each state once, in order
        await record_is(host, "ann", 1, 0, 0)

    run(test)


def test_new_tables_have_random_names_and_a_repeated_call_the_same() -> None:
    async def test(host: LocalHost, table: LocalStub) -> None:
        ann = host.get("Player", "ann")
        first = await host.post(ann, "open_table", idempotency_key="k")
        await host.crash()
        assert await host.post(ann, "open_table", idempotency_key="k") == first
        second = await ann.open_table.remote()
        assert first != second
        assert await ann.tables.remote() == [second, first]
        assert await host.list("Game") == []
        await host.connect(host.get("Game", first), query={"name": "ann", "key": "k"})
        assert await host.list("Game") == [first]
        for _ in range(game.TABLES_KEPT):
            newest = await ann.open_table.remote()
        kept = await ann.tables.remote()
        assert len(kept) == game.TABLES_KEPT
        assert kept[0] == newest

    run(test)
