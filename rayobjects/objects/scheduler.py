"""A host's clock: calls objects when their schedules are due (guarantee 7).

A firing is an ordinary call of the object to itself, with an id that follows from the schedule and
its due time. The call's record also takes the schedule back, or moves it to its next time, so the
two happen together or not at all; a call that raises has a record of its own that plans the next
attempt. When the process dies

    before that record   the schedule is as it was; it is found when the shard is opened, and fires;
    after it             it is done, or waits for its next time.

So its effects are applied exactly once. The heap in here is only a guide: each entry is compared
with the ledger when its time has come, and what was changed or taken back meanwhile is dropped.
Where too many of those pile up, because objects put a far time off again and again, the heap is
cleared of them.

So many are under way at once that what is overdue does not crowd out everybody else. One that takes
long, perhaps because its object is busy, gives its place to another after a while, and of one
object only a few are under way: the others wait aside, in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from rayobjects.errors import info_from_wire, is_deadly
from rayobjects.ids import ObjectId
from rayobjects.limits import (
    FIRING_PLACE_S,
    FIRINGS_AT_ONCE_MAX,
    FIRINGS_OF_OBJECT_MAX,
    LOOP_FIRINGS,
    LOOP_WITHIN_S,
    SCHEDULES_MAX,
)
from rayobjects.messages import ERROR, OK, REDIRECT, SCHEDULED, Call
from rayobjects.objects.promised import decode_plan
from rayobjects.objects.recurring import following, given_up
from rayobjects.objects.retrying import Retries
from rayobjects.storage.records import INTENT, SCHEDULE, Promise, Record

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

UNANSWERED = Retries(first_s=0.1, longest_s=30.0)
"""Pauses after a firing that never came to run: a class that does not load, a full queue."""

HEAP_FEW = 10_000
"""So many entries are never looked through for outdated ones."""

OTHERS_GRACE_S = 0.2
OTHERS_AGAIN_S = 10.0
"""When an object with an actor of its own is woken because a schedule of its is due and still
there, and when again."""


class Firing(msgspec.Struct, array_like=True):
    """The arguments of a SCHEDULED call: which schedule, and which due time of it; with its plan
    where the schedule does not have that any more (see `scheduling`)."""

    key: str
    due: float
    nonce: str
    plan: bytes = b""


_Entry = tuple[float, int, ObjectId, str, float]
"""Of the heap: when, a number, the object, the schedule's key and due time."""

encode_firing = msgspec.msgpack.Encoder().encode
decode_firing = msgspec.msgpack.Decoder(Firing).decode


class Scheduler:
    """Fires the schedules of one host's objects."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._heap: list[_Entry] = []
        self._heap_max = HEAP_FEW
        self._entries = 0
        self._firing: set[tuple[ObjectId, str, float]] = set()
        # Those that take a place, and since when: the oldest first.
        self._places: dict[tuple[ObjectId, str, float], float] = {}
        self._of_object: dict[ObjectId, int] = {}
        self._aside: dict[ObjectId, deque[_Entry]] = {}
        self._unanswered: dict[tuple[ObjectId, str, float], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._counts: dict[ObjectId, tuple[float, int]] = {}
        self._closed = False

    def begin(self, schedules: Iterable[tuple[ObjectId, Promise]]) -> None:
        """Those that were found when the host was opened."""
        self._heap += [
            self._entry(self._when(id, promise), id, promise.key, promise.due)
            for id, promise in schedules
            if not promise.failed
        ]
        heapify(self._heap)
        self._heap_max = max(HEAP_FEW, 2 * len(self._heap))
        self._arm()

    def add(self, id: ObjectId, promise: Promise) -> None:
        """A schedule that is on disk."""
        if promise.open and not promise.failed:
            self._push(self._when(id, promise), id, promise.key, promise.due)

    def _when(self, id: ObjectId, promise: Promise) -> float:
        # One of another host's objects: that host fires it, if it lives.
        return promise.due + (0.0 if self._host.owns(id) else OTHERS_GRACE_S)

    def _entry(self, when: float, id: ObjectId, key: str, due: float) -> _Entry:
        self._entries += 1
        return when, self._entries, id, key, due

    def _push(self, when: float, id: ObjectId, key: str, due: float) -> None:
        heappush(self._heap, self._entry(when, id, key, due))
        if len(self._heap) > self._heap_max:
            self._heap = [each for each in self._heap if self._present(*each[2:]) is not None]
            heapify(self._heap)
            self._heap_max = max(HEAP_FEW, 2 * len(self._heap))
        self._arm()

    def _present(self, id: ObjectId, key: str, due: float) -> Promise | None:
        """The schedule, if it is still due then."""
        promise = self._host.ledger.promise(id, SCHEDULE, key)
        if promise is None or promise.failed or promise.due != due:
            return None
        return promise

    @property
    def next_at(self) -> float | None:
        """When something is due next, if something may be; in the past while it waits its turn."""
        return self._heap[0][0] if self._heap else None

    @property
    def under_way(self) -> frozenset[tuple[ObjectId, str, float]]:
        """Whose calls run, or wait for their object: object, key and due time."""
        return frozenset(self._firing)

    def _arm(self) -> None:
        """Sets the timer to the earliest entry, if more may be fired."""
        if self._closed or not self._heap or len(self._places) >= FIRINGS_AT_ONCE_MAX:
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
        self._give_places_back()
        heap = self._heap
        while heap and heap[0][0] <= now and len(self._places) < FIRINGS_AT_ONCE_MAX:
            entry = heappop(heap)
            _, _, id, key, due = entry
            promise = self._present(id, key, due)
            if promise is None:
                self._unanswered.pop((id, key, due), None)
                self._take_from_aside(id)
            elif not self._host.owns(id):
                self._host.wake(id)  # its own actor fires it
                self._push(now + OTHERS_AGAIN_S, id, key, due)
            elif self._of_object.get(id, 0) >= FIRINGS_OF_OBJECT_MAX:
                self._put_aside(entry)
            else:
                self._fire(id, promise)
        self._arm()

    def _give_places_back(self) -> None:
        before = self._host.clock.monotonic() - FIRING_PLACE_S
        for entry, since in list(self._places.items()):
            if since > before:
                break
            del self._places[entry]

    def _put_aside(self, entry: _Entry) -> None:
        """Its object has enough under way."""
        id = entry[2]
        aside = self._aside.setdefault(id, deque())
        aside.append(entry)
        if len(aside) > 2 * SCHEDULES_MAX:
            self._aside[id] = deque(each for each in aside if self._present(*each[2:]) is not None)

    def _fire(self, id: ObjectId, promise: Promise) -> None:
        entry = (id, promise.key, promise.due)
        if entry in self._firing:
            self._take_from_aside(id)
            return
        self._firing.add(entry)
        self._places[entry] = self._host.clock.monotonic()
        self._of_object[id] = self._of_object.get(id, 0) + 1
        plan = decode_plan(promise.body)
        firing = encode_firing(Firing(promise.key, promise.due, plan.nonce))
        call_id = f"schedule:{id}:{plan.nonce}:{plan.planned!r}:{plan.attempts}"
        call = Call(0, *id, plan.method, SCHEDULED, firing, call_id)

        def respond(status: int, body: bytes, sequence: int) -> None:
            self._ended(entry)
            self._answered(entry, call_id, status, body)

        self._host.submit(call, respond, True, False)

    def _ended(self, entry: tuple[ObjectId, str, float]) -> None:
        id = entry[0]
        self._firing.discard(entry)
        self._places.pop(entry, None)
        self._of_object[id] -= 1
        if not self._of_object[id]:
            del self._of_object[id]
        self._take_from_aside(id)

    def _take_from_aside(self, id: ObjectId) -> None:
        """The next one of an object that has room for it, or of which one has come to nothing."""
        aside = self._aside.get(id)
        if aside is not None:
            heappush(self._heap, aside.popleft())  # as old as it is, it is among the next
            if not aside:
                del self._aside[id]

    def _answered(
        self, entry: tuple[ObjectId, str, float], call_id: str, status: int, body: bytes
    ) -> None:
        id, key, due = entry
        if self._closed:
            return
        promise = self._present(id, key, due)
        if promise is not None and status == ERROR and _is_final(body, call_id):
            self._give_up(id, promise, call_id, info_from_wire(body).message)
        elif promise is not None:
            # It never came to run, so nothing in the journal says when to try again.
            if status == REDIRECT:
                self._host.wake(id)
            attempts = self._unanswered[entry] = self._unanswered.get(entry, 0) + (status != OK)
            pause_s = UNANSWERED.pause_s(max(1, attempts), self._host.random)
            self._push(self._host.clock.now() + pause_s, id, key, due)
        else:
            self._unanswered.pop(entry, None)
            # Nobody asks for this time of it again, so its reply need not be kept.
            self._host.ledger.forget(call_id)
        self._arm()

    def _give_up(self, id: ObjectId, promise: Promise, call_id: str, why: str) -> None:
        """The host makes this time's call no more. Where that had called others it is listed with
        the intents, and the schedule is done with this time: another attempt, under a new id, would
        apply again what it had called."""
        now = self._host.clock.now()
        if self._host.ledger.promise(id, INTENT, call_id) is not None:
            becomes = [following(promise, decode_plan(promise.body), now)]
        else:
            becomes = given_up(promise, why or "it failed", now)

        def noted() -> None:
            live = self._host.activations.get((id[0], id[1]))
            if live is not None and live.ready:
                live.state.promised.noted(promise, becomes)
            for each in becomes:
                self.add(id, each)

        self._host.note(Record(*id, promises=becomes), noted)

    def planned_at_once(self, id: ObjectId) -> None:
        """A schedule's call has planned something for this very moment: is that a loop?"""
        now = self._host.clock.monotonic()
        since, count = self._counts.get(id, (now, 0))
        if now - since > LOOP_WITHIN_S:
            since, count = now, 0
        self._counts[id] = (since, count + 1)
        if count + 1 == LOOP_FIRINGS:
            self._host.report(
                f"{id} has planned itself anew, for at once, {LOOP_FIRINGS:,} times within "
                f"{LOOP_WITHIN_S:g} s: this looks like a loop without an end. Use every=, or a "
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


def _is_final(body: bytes, call_id: str) -> bool:
    """Whether an error says that this call must not be made again by itself: it ends its process,
    or it was cut off so long ago that those it had called may have forgotten it."""
    return is_deadly(body) or info_from_wire(body).details.get("stopped") == call_id
