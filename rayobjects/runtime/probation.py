"""Calls that end their host's process: found, and stopped.

A call that was cut off is sent again, so one that kills its host (it takes all memory, or runs
into a fault of native code) would kill it again and again, and with it the objects that share it.
Which call it was, nobody is left to say. So a host that finds that its last life died is on
probation for a while:

    after the first death     it notes which calls run (`death_notes`)
    after the second          what ran then is suspected. Suspects begin one after the other, each
                              when the one before has ended or had its time (STAGGER_S); everything
                              else runs as ever
    after each further one    the suspect that had begun last is believed to be the cause
    DEATHS_MAX times          it is answered with an error, and not run any more

Who was believed to be the cause most often begins first, so that the innocent ends and is cleared,
and the guilty one is alone in the end. A host that is killed by others, however often, loses time
with that and no call. In a life after an orderly end nothing is noted, and nothing costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from rayobjects.clock import Clock
from rayobjects.errors import MethodError, to_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import ERROR, OPENED, Call
from rayobjects.objects.commit import Respond
from rayobjects.objects.host_core import HostCore
from rayobjects.runtime.death_notes import DeathNotes, Key, Suspect, key_of
from rayobjects.storage.records import INTENT

logger = logging.getLogger("rayobjects")

DEATHS_MAX = 3
"""How often a call may be believed to have ended its host. By then the host has died four times
in a row; once more would be as likely to be it again."""

PROBATION_S = 60.0
"""A life that has lasted so long after a death is an ordinary one again."""

STAGGER_S = 1.0
"""How long a suspect has the host to itself; most that kill do it at once."""

STAGGER_ALL_S = 10.0
"""How long the beginning of all suspects may take, however many there are."""

Run = Callable[[Call, Respond], None]


class Probation:
    """One life of a host after a death. Used on its loop."""

    def __init__(self, notes: DeathNotes, clock: Clock, died_running: list[Key]) -> None:
        self._notes = notes
        self._clock = clock
        self._ends_at = clock.monotonic() + PROBATION_S
        self._suspects = _suspected(notes.suspects(), died_running, clock.now())
        self._waiting: list[tuple[int, int, Key, Call, Respond, Run]] = []
        self._order = 0
        self._first: Key | None = None
        self._timer: asyncio.TimerHandle | None = None
        notes.remember(self._suspects)

    def begin_anew(self) -> None:
        """The core, and with it every call that it had, is given up and made anew."""
        self._waiting.clear()
        self._first = None

    def take(self, call: Call, respond: Respond, run: Run, retried: float = 0.0) -> None:
        """Runs a call: now, when it is its turn, or not at all.

        Args:
            retried: when somebody had it retried after it was given up: then it begins anew,
                without suspicion.
        """
        if self._clock.monotonic() > self._ends_at and not self._suspects:
            run(call, respond)
            return
        key = key_of(call.class_name, call.name, f"{call.id}@{retried!r}" if retried else call.id)
        suspect = self._suspects.get(key)
        if suspect is None:
            run(call, _Noted(self, key, self._notes.begin(key), respond))
        elif suspect.deaths >= DEATHS_MAX:
            respond(ERROR, to_wire(_stopped(call), with_cause=False), 0)
        else:
            self._order += 1
            entry = (-suspect.deaths, self._order, key, call, respond, run)
            heappush(self._waiting, entry)
            # In the next tick, when all that was sent together is here.
            asyncio.get_running_loop().call_soon(self._begin_next)

    def _begin_next(self) -> None:
        if self._first is not None or not self._waiting:
            return
        _, _, key, call, respond, run = heappop(self._waiting)
        self._first = key
        delay_s = min(STAGGER_S, STAGGER_ALL_S / (len(self._waiting) + 1))
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._had_its_time, key)
        run(call, _Noted(self, key, self._notes.begin(key), respond))

    def _had_its_time(self, key: Key) -> None:
        if self._first == key:
            self._first = None
            self._begin_next()

    def ended(self, key: Key, slot: int) -> None:
        """A call has been answered."""
        self._notes.end(slot)
        if self._suspects.pop(key, None) is not None:
            self._notes.remember(self._suspects)
        if self._first == key:
            if self._timer is not None:
                self._timer.cancel()
            self._first = None
            self._begin_next()


class _Noted:
    """The answer of a call that is noted."""

    __slots__ = ("_key", "_probation", "_respond", "_slot")

    def __init__(self, probation: Probation, key: Key, slot: int, respond: Respond) -> None:
        self._probation = probation
        self._key = key
        self._slot = slot
        self._respond = respond

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        if status < OPENED:  # else its stream goes on
            self._probation.ended(self._key, self._slot)
        self._respond(status, body, sequence)


class CoreOnProbation(HostCore):
    """A host core whose calls are watched."""

    def __init__(self, probation: Probation, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._probation = probation
        probation.begin_anew()

    def submit(self, call: Call, respond: Respond, explicit: bool, resent: bool) -> None:
        def run(call: Call, respond: Respond) -> None:
            super(CoreOnProbation, self).submit(call, respond, explicit, resent)

        intent = self.ledger.promise(ObjectId(call.class_name, call.name), INTENT, call.id)
        self._probation.take(call, respond, run, intent.due if intent is not None else 0.0)


def _suspected(
    before: dict[Key, Suspect], died_running: list[Key], now: float
) -> dict[Key, Suspect]:
    """Who is suspected after a death, and how strongly."""
    suspects = {
        key: suspect
        for key, suspect in before.items()
        if now - suspect.noted_at < FINISHED_WINDOW_S  # nobody sends it again after that
    }
    for key in died_running:
        known = suspects.get(key)
        deaths = known.deaths if known is not None else 0
        last = key == died_running[-1]
        suspects[key] = Suspect(deaths + 1 if last and known else max(1, deaths), now)
    return suspects


def _stopped(call: Call) -> MethodError:
    return MethodError(
        f"{call.class_name}/{call.name}.{call.method} is not run any more: it ended its host's "
        f"process {DEATHS_MAX} times (it takes too much memory, or native code fails); correct it, "
        "then call it under another id",
        cause_type="ProcessDied",
    )


def begin_life(
    host: str, directory: Path, clock: Clock
) -> tuple[DeathNotes | None, Probation | None]:
    """Begins a host's life: its notes, and its probation if the life before died. Blocks for a
    file or two.

    Args:
        directory: of the node, for notes.
    """
    name = blake2b(host.encode(), digest_size=16).hexdigest()
    try:
        notes, died_running = DeathNotes.open(directory / name)
        return notes, None if died_running is None else Probation(notes, clock, died_running)
    except OSError as error:
        logger.warning("%s cannot note which calls run (%s): it goes on without", host, error)
        return None, None
