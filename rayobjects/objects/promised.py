"""What an object promises to do: schedules and told messages, as the running call sees them.

Whatever a call plans, tells or takes back collects here and leaves with its record, or not at all
(guarantee 3). From then on the host keeps the promise (`scheduler`, `courier`), whoever dies:

    before the record is on disk   nothing was promised, and nothing has happened;
    after that                     it is in the journal until a record takes it back: that of the
                                   call which a schedule makes, or the one which notes that a
                                   message was delivered.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import msgspec

from rayobjects.errors import InvalidCall
from rayobjects.limits import SCHEDULES_MAX
from rayobjects.messages import NOTHING
from rayobjects.storage.records import SCHEDULE, TELL, Promise

EACH = "each"
"""Every due time of a recurring schedule is made up for."""
LAST = "last"
"""Those that passed together are made up for with one call."""


class Plan(msgspec.Struct, array_like=True):
    """The body of a SCHEDULE.

    Attributes:
        method, args: what is called; pickled `(args, kwargs)`.
        every: the cron expression; "" for once.
        zone: its time zone.
        missed: EACH or LAST.
        planned: the due time that is being kept; `Promise.due` is later while it is retried.
        attempts: how often the method has raised for it.
        context: what the call carries along: that of the one that has planned it.
        nonce: tells it from what was planned under the same key before, perhaps for the same time.
    """

    method: str
    args: bytes
    every: str = ""
    zone: str = "UTC"
    missed: str = EACH
    planned: float = 0.0
    attempts: int = 0
    context: dict[str, str] | None = None
    nonce: str = ""

    def recurs_like(self, other: Plan) -> bool:
        """Whether both recur, and stand for the same."""
        return bool(self.every) and _WHAT(self) == _WHAT(other)


_WHAT = attrgetter("every", "zone", "missed", "method", "args")


class Told(msgspec.Struct, array_like=True):
    """The body of a TELL.

    Attributes:
        class_name, name: the receiver.
        method, args: what is called there; pickled `(args, kwargs)`.
        at: when it was told, in seconds since the epoch.
        arguments_hash: see `messages.Call`.
        attempts: how often the method has raised.
        context: what it carries along.
        before: of the attempts, those before somebody had it retried.
    """

    class_name: str
    name: str
    method: str
    args: bytes
    at: float
    arguments_hash: int = 0
    attempts: int = 0
    context: dict[str, str] | None = None
    before: int = 0


class Intent(msgspec.Struct, array_like=True):
    """The body of an INTENT: what is needed to run the call again."""

    method: str
    encoding: int
    args: bytes
    chain: tuple[str, ...]
    now: float
    held: bool
    arguments_hash: int
    context: dict[str, str] | None = None
    takes: int = NOTHING


encode = msgspec.msgpack.Encoder().encode
decode_plan = msgspec.msgpack.Decoder(Plan).decode
decode_told = msgspec.msgpack.Decoder(Told).decode
decode_intent = msgspec.msgpack.Decoder(Intent).decode


def told_to(
    key: str,
    class_name: str,
    name: str,
    method: str,
    args: bytes,
    at: float,
    hashed: int,
    context: dict[str, str] | None,
) -> Promise:
    """The promise to deliver a message."""
    told = Told(class_name, name, method, args, at, hashed, context=context)
    return Promise(TELL, key, 0.0, encode(told))


class Promised:
    """The promises of one activation.

    Attributes:
        settled: messages and calls that somebody has had retried or discarded, as they are to be,
            until that is on disk; by kind and key.
        touched: the running call did something here that `commit` or `rollback` must end.
    """

    __slots__ = ("_added", "_changed", "_schedules", "_settling", "settled", "touched")

    def __init__(self, schedules: Iterable[Promise]) -> None:
        self.touched = False
        self._schedules = {promise.key: promise for promise in schedules}
        """As committed."""
        self._added = 0
        """How many more schedules there are as the running call sees them."""
        self._changed: dict[tuple[int, str], Promise] = {}
        self._settling: dict[tuple[int, str], Promise] = {}
        self.settled: dict[tuple[int, str], Promise] = {}

    def settle(self, promise: Promise) -> None:
        """Retries or discards what has failed, in the running call. The next call of this kind must
        see it, though the ledger does not yet."""
        self.put(promise)
        if promise.kind != SCHEDULE:
            self._settling[promise.kind, promise.key] = promise

    def noted(self, before: Promise, becomes: Iterable[Promise]) -> None:
        """The host has written what becomes of a schedule, if no call has changed that since."""
        if self._schedules.get(before.key) == before:
            del self._schedules[before.key]
            self._schedules |= {each.key: each for each in becomes if each.open}

    def put(self, promise: Promise) -> None:
        """Makes, changes or takes back a promise, in the running call.

        Raises:
            InvalidCall: the object has too many schedules.
        """
        if promise.kind == SCHEDULE:
            more = promise.open - (self.schedule(promise.key) is not None)
            if more > 0 and len(self._schedules) + self._added >= SCHEDULES_MAX:
                raise InvalidCall(
                    f"an object has at most {SCHEDULES_MAX:,} schedules: spread them over several "
                    "objects, or let one plan the next"
                )
            self._added += more
        self._changed[promise.kind, promise.key] = promise
        self.touched = True

    def schedule(self, key: str) -> Promise | None:
        """A schedule as the running call sees it."""
        changed = self._changed.get((SCHEDULE, key))
        if changed is not None:
            return changed if changed.open else None
        return self._schedules.get(key)

    def changed(self, key: str) -> bool:
        """Whether the running call has said something of a schedule."""
        return (SCHEDULE, key) in self._changed

    def schedules(self) -> list[Promise]:
        """All schedules as the running call sees them, the next one first."""
        changed = (key for kind, key in self._changed if kind == SCHEDULE)
        keys = dict.fromkeys([*self._schedules, *changed])
        found = [promise for key in keys if (promise := self.schedule(key)) is not None]
        return sorted(found, key=lambda promise: (promise.due, promise.key))

    def changes(self) -> list[Promise]:
        """What goes into the call's record."""
        return list(self._changed.values())

    def commit(self) -> None:
        self.settled |= self._settling
        for (kind, key), promise in self._changed.items():
            if kind != SCHEDULE:
                continue
            if promise.open:
                self._schedules[key] = promise
            else:
                self._schedules.pop(key, None)
        self.rollback()

    def rollback(self) -> None:
        self._changed.clear()
        self._settling.clear()
        self._added = 0
        self.touched = False

    def forget(self) -> None:
        """The object is deleted."""
        self._schedules.clear()
        self.rollback()
