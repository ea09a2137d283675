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
and the guilty one is alone in the end. The calls of one object keep their order all the same: while
a suspect of an object waits here, whatever comes for the object waits behind it (a call that was
begun before goes first, guarantee 5), and a suspect goes after what came before it.

A host that is killed by others, however often, loses time with that and no call. In a life after an
orderly end nothing is noted, and nothing costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, NamedTuple

from rayobjects.clock import Clock
from rayobjects.errors import Cancelled, DeadlineExceeded, MethodError, RayObjectsError, to_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import ERROR, OPENED, PROBE, Call
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
"""How long the beginning of all suspects may take, about, however many there are; and how long one
holds up those of its own object, which could mostly not run beside it anyway."""

Run = Callable[[Call, Respond], None]


class _Waiting(NamedTuple):
    """A call that waits for its beginning."""

    key: Key
    suspected: bool
    call: Call
    respond: Respond
    run: Run
    came_at: float


class _Queue:
    """The calls of one object that wait, in the order in which they came.

    Attributes:
        calls: those.
        begun: the suspect before them, while it holds them up.
        aside: of its suspects, what the heap has meanwhile brought up in vain.
    """

    __slots__ = ("aside", "begun", "calls")

    def __init__(self) -> None:
        self.calls: deque[_Waiting] = deque()
        self.begun: Key | None = None
        self.aside: list[_Entry] = []


_Entry = tuple[int, int, ObjectId]
"""Of the heap: one for each suspect that waits. The first of its object begins."""


class Probation:
    """One life of a host after a death. Used on its loop."""

    def __init__(self, notes: DeathNotes, clock: Clock, died_running: list[Key]) -> None:
        self._notes = notes
        self._clock = clock
        self._ends_at = clock.monotonic() + PROBATION_S
        self._suspects = _suspected(notes.suspects(), died_running, clock.now())
        self._queues: dict[ObjectId, _Queue] = {}
        self._heap: list[_Entry] = []
        self._order = 0
        self._first: Key | None = None
        self._timer: asyncio.TimerHandle | None = None
        notes.remember(self._suspects)

    def begin_anew(self) -> None:
        """The core, and with it every call that it had, is given up and made anew."""
        self._queues.clear()
        self._heap.clear()
        self._first = None

    def take(self, call: Call, respond: Respond, run: Run, retried: float = 0.0) -> None:
        """Runs a call: now, when it is its turn, or not at all.

        Args:
            retried: when somebody had it retried after it was given up: then it begins anew,
                without suspicion.
        """
        if self._clock.monotonic() > self._ends_at and not (self._suspects or self._queues):
            run(call, respond)
            return
        id = ObjectId(call.class_name, call.name)
        key = key_of(*id, f"{call.id}@{retried!r}" if retried else call.id)
        suspect = self._suspects.get(key)
        queue = self._queues.get(id)
        if suspect is not None and suspect.deaths >= DEATHS_MAX:
            respond(ERROR, to_wire(_stopped(call), with_cause=False), 0)
            return
        now = self._clock.monotonic()
        waiting = _Waiting(key, suspect is not None, call, respond, run, now)
        if suspect is None and queue is None:
            self._run(id, waiting)
            return
        if queue is None:
            queue = self._queues[id] = _Queue()
        queue.calls.append(waiting)
        if suspect is not None:
            self._order += 1
            heappush(self._heap, (-suspect.deaths, self._order, id))
            self._begin_soon()

    def take_back(self, id: ObjectId, call_id: str, error: RayObjectsError) -> bool:
        """Answers a call that waits here with an error, unless others wait for it too. Returns
        whether there is such a call."""
        queue = self._queues.get(id)
        found = [each for each in queue.calls if each.call.id == call_id] if queue else []
        if queue is not None and len(found) == 1 and found[0].key != queue.begun:
            queue.calls.remove(found[0])
            found[0].respond(ERROR, to_wire(error, with_cause=False), 0)
            self._go_on(id, queue)
        return bool(found)

    def _run(self, id: ObjectId, waiting: _Waiting) -> None:
        key = waiting.key
        noted = _Noted(self, id, key, self._notes.begin(key), waiting.respond)
        waiting.run(waiting.call, noted)

    def _is_late(self, waiting: _Waiting) -> bool:
        """Answers a call for which its caller has no time left; else takes what it has waited from
        that."""
        call = waiting.call
        if not call.timeout_s:
            return False
        left_s = call.timeout_s - (self._clock.monotonic() - waiting.came_at)
        if left_s > 0:
            call.timeout_s = left_s
            return False
        error = DeadlineExceeded(
            f"{call.class_name}/{call.name}.{call.method} has not begun within the "
            f"{call.timeout_s:g} s that its caller had for it: its host had died before"
        )
        waiting.respond(ERROR, to_wire(error, with_cause=False), 0)
        return True

    def _begin_soon(self) -> None:
        # In the next tick, when all that was sent together is here.
        asyncio.get_running_loop().call_soon(self._begin_next)

    def _begin_next(self) -> None:
        while self._first is None and self._heap:
            entry = heappop(self._heap)
            id = entry[2]
            queue = self._queues.get(id)
            if queue is None or not queue.calls:
                continue  # it was taken back
            if queue.begun is not None:
                queue.aside.append(entry)
                continue
            waiting = queue.calls.popleft()
            if self._is_late(waiting):
                self._go_on(id, queue)
                continue
            key = self._first = queue.begun = waiting.key
            delay_s = min(STAGGER_S, STAGGER_ALL_S / (len(self._heap) + 1))
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._had_its_time, id, key)
            self._run(id, waiting)

    def _had_its_time(self, id: ObjectId, key: Key) -> None:
        if self._first != key:
            return
        self._first = None
        queue = self._queues.get(id)
        if queue is not None and queue.begun == key:
            self._go_on(id, queue)
            hold_s = STAGGER_ALL_S / (len(queue.calls) + 1)
            asyncio.get_running_loop().call_later(hold_s, self._let_go, id, key)
        self._begin_next()

    def _let_go(self, id: ObjectId, key: Key) -> None:
        """A suspect holds up its object's others no longer."""
        queue = self._queues.get(id)
        if queue is None or queue.begun != key:
            return
        queue.begun = None
        for entry in queue.aside:
            heappush(self._heap, entry)
        queue.aside.clear()
        self._go_on(id, queue)
        self._begin_soon()

    def _go_on(self, id: ObjectId, queue: _Queue) -> None:
        """Runs those that only waited behind a suspect, up to the next one."""
        calls = queue.calls
        if self._first is not None and self._first == queue.begun:
            return  # that has the host to itself
        while calls and not calls[0].suspected:
            waiting = calls.popleft()
            if not self._is_late(waiting):
                self._run(id, waiting)
        if not calls and self._queues.get(id) is queue:
            del self._queues[id]

    def ended(self, id: ObjectId, key: Key, slot: int) -> None:
        """A call has been answered."""
        self._notes.end(slot)
        if self._suspects.pop(key, None) is not None:
            self._notes.remember(self._suspects)
        if self._first == key:
            if self._timer is not None:
                self._timer.cancel()
            self._first = None
            self._begin_soon()
        queue = self._queues.get(id)
        if queue is not None and queue.begun == key:
            asyncio.get_running_loop().call_soon(self._let_go, id, key)


class _Noted:
    """The answer of a call that is noted."""

    __slots__ = ("_id", "_key", "_probation", "_respond", "_slot")

    def __init__(
        self, probation: Probation, id: ObjectId, key: Key, slot: int, respond: Respond
    ) -> None:
        self._probation = probation
        self._id = id
        self._key = key
        self._slot = slot
        self._respond = respond

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        if status < OPENED:  # else its stream goes on
            self._probation.ended(self._id, self._key, self._slot)
        self._respond(status, body, sequence)


class CoreOnProbation(HostCore):
    """A host core whose calls are watched."""

    def __init__(self, probation: Probation, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._probation = probation
        probation.begin_anew()

    def submit(self, call: Call, respond: Respond, explicit: bool, resent: bool) -> None:
        if call.encoding == PROBE:  # no call
            super().submit(call, respond, explicit, resent)
            return

        def run(call: Call, respond: Respond) -> None:
            super(CoreOnProbation, self).submit(call, respond, explicit, resent)

        intent = self.ledger.promise(ObjectId(call.class_name, call.name), INTENT, call.id)
        self._probation.take(call, respond, run, intent.due if intent is not None else 0.0)

    def cancel_for_caller(self, id: ObjectId, call_id: str) -> None:
        error = Cancelled(f"the call to {id} was cancelled by its caller before it began")
        if not self._probation.take_back(id, call_id, error):
            super().cancel_for_caller(id, call_id)


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
    error = MethodError(
        f"{call.class_name}/{call.name}.{call.method} is not run any more: it ended its host's "
        f"process {DEATHS_MAX} times (it takes too much memory, or native code fails); correct it, "
        "then call it under another id",
        cause_type="ProcessDied",
    )
    logger.error("%s", error.message)
    return error


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
