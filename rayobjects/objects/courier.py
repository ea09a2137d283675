"""Delivers what objects have told others: exactly once, and in order for each pair of objects.

Of each pair one message is on its way at a time. It is a call whose id is the message's own, so its
receiver applies it once however often it comes, and holds the reply until this side has noted on
disk that it was delivered. When the process dies

    before the receiver's record   the message is found when the shard is opened, and sent;
    after it, before the note      it is sent again, and answered from the receiver's record;
    after the note                 only the receiver's reply is left, until its window is over.

A receiver that cannot be reached is tried again for ever, with growing pauses, and the messages
behind wait: there is no order without that. A method that raises is called again a few times, each
time under a new id; that it had raised is on disk before the new id is used, or a crash could bring
the old one back. Then the message is marked as failed, for people to see, and the next one goes.

The objects of a pair are known by the keys of their classes, which stay when a class is renamed. A
name that nobody here has heard of is looked up first, and whatever its sender tells later waits.

A receiver that was stopped because its rerun was not like its first run (see `intents`) lists the
call itself; calling it under a new id would apply twice what the first run had called.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from rayobjects.errors import (
    PROCESS_DIED,
    InvalidCall,
    MethodError,
    Overloaded,
    RayObjectsError,
    StorageFailed,
    from_wire,
)
from rayobjects.ids import ObjectId
from rayobjects.limits import HELD_WINDOW_S, LATE_BATCH_S, TOLD_MAX
from rayobjects.messages import OK, PICKLE, Call, Reply
from rayobjects.objects.carried import CALLER
from rayobjects.objects.intents import was_stopped
from rayobjects.objects.promised import decode_told, encode
from rayobjects.objects.retrying import DEFAULT, Retries
from rayobjects.storage.records import TELL, Promise, Record

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

UNREACHED = Retries(first_s=0.1, longest_s=30.0)
"""Pauses while the receiver cannot be reached."""

Pair = tuple[ObjectId, ObjectId]


class Outgoing(Protocol):
    """Brings calls to whatever host has their object: a router."""

    def submit(
        self, call: Call, replied: Callable[[Reply | RayObjectsError], None], context: Any
    ) -> None:
        """Sends a call."""
        ...

    def key_of(self, class_name: str) -> str | None:
        """What the class of this name is called wherever that must not change; None if there is
        none, as far as known here."""
        ...

    async def refresh(self) -> None:
        """Learns of all classes that there are now."""
        ...


class Courier:
    """Delivers the messages of one host's objects."""

    def __init__(self, host: HostCore, outgoing: Outgoing) -> None:
        self._host = host
        self._outgoing = outgoing
        self._unnamed: dict[ObjectId, list[Promise]] = {}
        self._learning: set[asyncio.Task[None]] = set()
        self._queues: dict[Pair, deque[Promise]] = {}
        self._keys: set[str] = set()
        self._waiting: dict[ObjectId, int] = {}
        self._closed = False

    def add(self, sender: ObjectId, promise: Promise) -> None:
        """A message that is on disk."""
        if not promise.open or promise.failed or promise.key in self._keys:
            return
        self._keys.add(promise.key)
        self._waiting[sender] = self._waiting.get(sender, 0) + 1
        if sender in self._unnamed:
            self._unnamed[sender].append(promise)
            return
        told = decode_told(promise.body)
        key = self._outgoing.key_of(told.class_name)
        if key is None:
            self._unnamed[sender] = [promise]
            self._learn(sender)
        else:
            self._queue(sender, ObjectId(key, told.name), promise)

    def _queue(self, sender: ObjectId, receiver: ObjectId, promise: Promise) -> None:
        pair = (sender, receiver)
        queue = self._queues.setdefault(pair, deque())
        queue.append(promise)
        if len(queue) == 1:
            self._deliver(pair)

    def _learn(self, sender: ObjectId) -> None:
        """Looks a class up that an object has told something."""
        task = asyncio.ensure_future(self._learnt(sender))
        self._learning.add(task)  # the loop itself would let it go
        task.add_done_callback(self._learning.discard)

    async def _learnt(self, sender: ObjectId) -> None:
        try:
            await self._outgoing.refresh()
        except Exception:  # whatever keeps the catalog from being read
            self._host.timers.after(UNREACHED.first_s, lambda: self._learn(sender))
            return
        if self._closed:
            return
        for promise in self._unnamed.pop(sender, ()):
            told = decode_told(promise.body)
            key = self._outgoing.key_of(told.class_name) or told.class_name  # refused, and listed
            self._queue(sender, ObjectId(key, told.name), promise)

    @property
    def busy(self) -> bool:
        """Whether anything is not delivered yet."""
        return bool(self._queues or self._unnamed)

    def hand_over(self, sender: ObjectId) -> None:
        """Another host delivers an object's messages from now on: nothing more is sent or noted
        here, so that the receiver of what is under way does not forget it."""
        if sender in self._waiting:
            for pair in [pair for pair in self._queues if pair[0] == sender]:
                self._keys.difference_update(each.key for each in self._queues.pop(pair))
            self._keys.difference_update(each.key for each in self._unnamed.pop(sender, ()))
            del self._waiting[sender]

    def waiting(self, sender: ObjectId) -> int:
        """How many messages of an object are not delivered yet."""
        return self._waiting.get(sender, 0)

    def check(self, sender: ObjectId, promises: Iterable[Promise]) -> None:
        """Raises Overloaded where too many messages of an object are not delivered yet, InvalidCall
        where one call tells too many."""
        told = sum(promise.kind == TELL and promise.open for promise in promises)
        if told > TOLD_MAX:
            raise InvalidCall(
                f"one call may tell others {TOLD_MAX:,} messages, this one has {told:,}: spread "
                "them over several calls"
            )
        if told and self.waiting(sender) + told > TOLD_MAX:
            raise Overloaded(
                f"{TOLD_MAX:,} messages that {sender} has told others are not delivered yet: back "
                "off"
            )

    def _deliver(self, pair: Pair, unreached: int = 0) -> None:
        """Sends the first message of a pair."""
        queue = self._queues.get(pair)
        if self._closed or queue is None:
            return
        promise = queue[0]
        now = self._host.clock.now()
        # A clock that was set back must not hold it up for long.
        delay_s = min(promise.due - now, DEFAULT.longest_s)
        if delay_s > 0:
            self._host.timers.after(delay_s, lambda: self._deliver(pair, unreached))
            return
        told = decode_told(promise.body)
        if now - max(told.at, promise.due) > HELD_WINDOW_S:
            why = "it is so old that its receiver may have applied and forgotten it"
            self._give_up(pair, why, _Delivery(0.0))
            return
        id = f"{promise.key}~{told.attempts}" if told.attempts else promise.key
        call = Call(
            0,
            *pair[1],
            told.method,
            PICKLE,
            told.args,
            id,
            held=True,
            arguments_hash=told.arguments_hash,
            context={**(told.context or {}), CALLER: str(pair[0])},
        )
        here = f"{self._host.incarnation}."
        delivery = _Delivery(0.0 if promise.key.startswith(here) else LATE_BATCH_S)
        self._outgoing.submit(
            call,
            lambda outcome: self._replied(pair, promise, delivery, id, outcome, unreached),
            delivery,
        )

    def _replied(
        self,
        pair: Pair,
        promise: Promise,
        delivery: _Delivery,
        id: str,
        outcome: Reply | RayObjectsError,
        unreached: int,
    ) -> None:
        if self._closed or pair not in self._queues or self._queues[pair][0] is not promise:
            return  # it was handed over, and perhaps taken up again
        error = outcome if isinstance(outcome, RayObjectsError) else None
        recorded = False
        if isinstance(outcome, Reply):
            recorded = outcome.sequence > 0
            if outcome.status != OK:
                error = from_wire(outcome.body)
        if error is None or was_stopped(error, id):
            self._done(pair, Promise(TELL, self._queues[pair][0].key, open=False), delivery)
        elif isinstance(error, MethodError) and error.cause_type == PROCESS_DIED:
            self._give_up(pair, error.message, delivery)
        elif recorded or isinstance(error, MethodError | InvalidCall):
            self._tried(pair, error, delivery)
        else:  # nothing in the receiver's journal says that this id has been used
            delivery.acknowledge()
            pause_s = UNREACHED.pause_s(unreached + 1, self._host.random)
            self._host.timers.after(pause_s, lambda: self._deliver(pair, unreached + 1))

    def _tried(self, pair: Pair, error: RayObjectsError, delivery: _Delivery) -> None:
        """The method raised, so nothing was applied: notes the attempt, and tries again."""
        promise = self._queues[pair][0]
        told = decode_told(promise.body)
        attempt = told.attempts - told.before + 1
        if attempt > DEFAULT.max_attempts:
            self._give_up(pair, error.message, delivery)
            return
        if attempt == 1 and not isinstance(error, MethodError):  # those are in the log already
            self._host.report(
                f"{pair[0]} told {pair[1]}.{told.method}, which was refused: {error.message}. It "
                "is tried again, and what else it tells that object waits"
            )
        told = msgspec.structs.replace(told, attempts=told.attempts + 1)
        pause_s = DEFAULT.pause_s(attempt, self._host.random)
        again = msgspec.structs.replace(
            promise, body=encode(told), due=self._host.clock.now() + pause_s
        )

        def noted() -> None:
            if pair in self._queues:
                self._queues[pair][0] = again
            delivery.acknowledge()
            self._deliver(pair)

        self._note(pair, again, noted)

    def _give_up(self, pair: Pair, why: str, delivery: _Delivery) -> None:
        promise = self._queues[pair][0]
        self._host.report(
            f"{pair[0]} told {pair[1]}.{decode_told(promise.body).method}, which failed for good: "
            f"{why}. `rayobjects schedules --failed` lists it"
        )
        self._done(pair, msgspec.structs.replace(promise, failed=why or "it failed"), delivery)

    def _done(self, pair: Pair, promise: Promise, delivery: _Delivery) -> None:
        """Notes the end of a message; then the next one goes."""
        self._note(pair, promise, delivery.acknowledge, lambda: self._next(pair))

    def _next(self, pair: Pair) -> None:
        queue = self._queues[pair]
        self._keys.discard(queue.popleft().key)
        sender = pair[0]
        self._waiting[sender] -= 1
        if not self._waiting[sender]:
            del self._waiting[sender]
        if queue:
            asyncio.get_running_loop().call_soon(self._deliver, pair)
        else:
            del self._queues[pair]

    def _note(
        self,
        pair: Pair,
        promise: Promise,
        on_disk: Callable[[], None],
        given: Callable[[], None] = lambda: None,
    ) -> None:
        """Writes how it stands with a message.

        Args:
            on_disk: called when it is on disk; only then the receiver may forget the message.
            given: called when its place in the journal is sure: what is noted later comes later.
        """

        def noted(error: StorageFailed | None, sequence: int) -> None:
            if error is not None:
                self._host.fail(error)
            else:
                on_disk()

        if pair not in self._queues:
            return
        try:
            self._host.ledger.commit(Record(*pair[0], promises=[promise]), noted)
        except RayObjectsError:  # too much waits for the disk
            self._host.timers.after(
                UNREACHED.first_s, lambda: self._note(pair, promise, on_disk, given)
            )
        else:
            given()

    def close(self) -> None:
        """Sends nothing more."""
        self._closed = True


class _Delivery:
    """Stands for the running call that a router takes calls from: nothing must be waited for, and
    the receiver's reply is acknowledged when the delivery has been noted.

    Attributes:
        late_s: for so long what a dead process has sent may still come: the same message.
    """

    __slots__ = ("_acknowledge", "late_s")

    def __init__(self, late_s: float) -> None:
        self.late_s = late_s
        self._acknowledge: list[Callable[[], object]] = []

    def leave(self, call: Call, send: Callable[[], None], replied: object) -> None:
        send()

    def add_child(self, acknowledge: Callable[[], object]) -> None:
        self._acknowledge.append(acknowledge)

    def acknowledge(self) -> None:
        for acknowledge in self._acknowledge:
            acknowledge()
