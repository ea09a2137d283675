"""A host's clock: calls objects when their schedules are due (guarantee 7).

A firing is an ordinary call of the object to itself, with an id that follows from the schedule and
its due time. The call's record also takes the schedule back, or moves it to its next time, so the
two happen together or not at all; a call that raises has a record of its own that plans the next
attempt. When the process dies

    before that record   the schedule is as it was; it is found when the shard is opened, and fires;
    after it             it is done, or waits for its next time.

So its effects are applied exactly once. The heap in here is only a guide: each entry is compared
with the ledger when its time has come, and what was changed or taken back meanwhile is dropped.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from rayobjects.ids import ObjectId
from rayobjects.limits import FIRINGS_AT_ONCE_MAX, LOOP_FIRINGS, LOOP_WITHIN_S
from rayobjects.messages import OK, REDIRECT, SCHEDULED, Call
from rayobjects.objects.promised import decode_plan
from rayobjects.objects.retrying import Retries
from rayobjects.storage.records import SCHEDULE, Promise

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

UNANSWERED = Retries(first_s=0.1, longest_s=30.0)
"""Pauses after a firing that never came to run: a class that does not load, a full queue."""


OTHERS_GRACE_S = 0.2
OTHERS_AGAIN_S = 10.0
"""When an object with an actor of its own is woken because a schedule of its is due and still
there, and when again."""


class Firing(msgspec.Struct, array_like=True):
    """The arguments of a SCHEDULED call: which schedule, and which due time of it."""

    key: str
    due: float


encode_firing = msgspec.msgpack.Encoder().encode
decode_firing = msgspec.msgpack.Decoder(Firing).decode


class Scheduler:
    """Fires the schedules of one host's objects."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._heap: list[tuple[float, int, ObjectId, str, float]] = []
        self._entries = 0
        self._firing: set[tuple[ObjectId, str, float]] = set()
        self._unanswered: dict[tuple[ObjectId, str, float], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._counts: dict[ObjectId, tuple[float, int]] = {}
        self._closed = False

    def add(self, id: ObjectId, promise: Promise) -> None:
        """A schedule that is on disk."""
        if promise.open and not promise.failed:
            # One of another host's objects: that host fires it, if it lives.
            grace_s = 0.0 if self._host.owns(id) else OTHERS_GRACE_S
            self._push(promise.due + grace_s, id, promise.key, promise.due)

    def _push(self, when: float, id: ObjectId, key: str, due: float) -> None:
        self._entries += 1
        heappush(self._heap, (when, self._entries, id, key, due))
        self._arm()

    def _arm(self) -> None:
        """Sets the timer to the earliest entry, if more may be fired."""
        if self._closed or not self._heap or len(self._firing) >= FIRINGS_AT_ONCE_MAX:
            return
        when = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        delay_s = max(0.0, when - self._host.clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)
        self._timer_at = when

    def _ring(self) -> None:
        self._timer = None
        self.run_due()

    def run_due(self) -> None:
        """Fires what is due, as much as may be under way at once."""
        if self._closed or not self._heap:
            return
        now = self._host.now = self._host.clock.now()
        heap = self._heap
        while heap and heap[0][0] <= now and len(self._firing) < FIRINGS_AT_ONCE_MAX:
            _, _, id, key, due = heappop(heap)
            promise = self._host.ledger.promise(id, SCHEDULE, key)
            if promise is None or promise.failed or promise.due != due:
                self._unanswered.pop((id, key, due), None)
            elif not self._host.owns(id):
                self._host.wake(id)  # its own actor fires it
                self._push(now + OTHERS_AGAIN_S, id, key, due)
            else:
                self._fire(id, promise)
        self._arm()

    def _fire(self, id: ObjectId, promise: Promise) -> None:
        entry = (id, promise.key, promise.due)
        if entry in self._firing:
            return
        self._firing.add(entry)
        if not decode_plan(promise.body).every:
            self._count(id)
        call = Call(
            0,
            *id,
            decode_plan(promise.body).method,
            SCHEDULED,
            encode_firing(Firing(promise.key, promise.due)),
            firing_id(promise),
        )

        def respond(status: int, body: bytes, sequence: int) -> None:
            self._firing.discard(entry)
            self._answered(entry, status)

        self._host.submit(call, respond, True, False)

    def _answered(self, entry: tuple[ObjectId, str, float], status: int) -> None:
        id, key, due = entry
        promise = self._host.ledger.promise(id, SCHEDULE, key)
        if promise is not None and promise.due == due and not promise.failed and not self._closed:
            # It never came to run, so nothing in the journal says when to try again.
            if status == REDIRECT:
                self._host.wake(id)
            attempts = self._unanswered[entry] = self._unanswered.get(entry, 0) + (status != OK)
            pause_s = UNANSWERED.pause_s(max(1, attempts), self._host.random)
            self._push(self._host.clock.now() + pause_s, id, key, due)
        else:
            self._unanswered.pop(entry, None)
        self._arm()

    def _count(self, id: ObjectId) -> None:
        """Notices an object that plans itself anew at once, again and again."""
        now = self._host.clock.monotonic()
        since, count = self._counts.get(id, (now, 0))
        if now - since > LOOP_WITHIN_S:
            since, count = now, 0
        self._counts[id] = (since, count + 1)
        if count + 1 == LOOP_FIRINGS:
            self._host.report(
                f"{id} was called {LOOP_FIRINGS:,} times by its schedules within "
                f"{LOOP_WITHIN_S:g} s: does a method plan itself anew at once? Use every=, or a "
                "longer after="
            )

    def sweep(self) -> None:
        """What time does; for about once a second."""
        now = self._host.clock.monotonic()
        for id in [id for id, (since, _) in self._counts.items() if now - since > LOOP_WITHIN_S]:
            del self._counts[id]
        self.run_due()

    def close(self) -> None:
        """Fires nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()


def firing_id(promise: Promise) -> str:
    """The id of the call that a schedule makes at its present due time."""
    return f"schedule:{promise.key}:{promise.due!r}"
