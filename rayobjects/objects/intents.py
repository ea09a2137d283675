"""Calls that call other objects, so that each of their calls is applied once (guarantee 5).

Before the first of them leaves, the call's intent is journaled: its id, method and arguments. Each
of the calls that it makes is a step, journaled too before it leaves; its id follows from the call's
own and its position. The record with which the call ends takes all of that back. When the process
dies

    before the intent is on disk   no other object has been called; the caller sends the call again;
    between it and the end         the host that comes finds the intent and runs the call again,
                                   from the state that it first saw, whether the caller is alive or
                                   not; what it calls again is answered from the receivers' records;
    after the end's record         the call is finished, and a repetition gets its reply.

A rerun that makes other calls than the first run did cannot be told from one that would apply
something twice. It is stopped: its writes are rolled back, its caller gets an error, and the intent
is listed as failed until somebody retries or discards it. The same happens to a call whose end
cannot be written, because the record would be too large: run again, it would be so again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from rayobjects.errors import InvalidCall, RayObjectsError, info_from_wire, is_deadly, misuse
from rayobjects.ids import ObjectId
from rayobjects.limits import HELD_WINDOW_S, STEP_BASE_BYTES_MAX, STEPS_BYTES_MAX
from rayobjects.messages import ERROR, OK, Call, Reply
from rayobjects.objects.commit import no_reply
from rayobjects.objects.promised import Intent, decode_intent, encode
from rayobjects.objects.retrying import Retries
from rayobjects.storage.records import INTENT, STEP, Promise, Record

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.context import CallContext
    from rayobjects.objects.host_core import HostCore

UNENDED = Retries(first_s=0.5, longest_s=60.0)
"""Pauses between reruns of a call that did not come to its end: its class does not load, or the
disk takes nothing more."""


TOO_OLD = "it is so old that those it had called may have forgotten it"
"""Why a call is given up that began before HELD_WINDOW_S."""


class Begun:
    """What is journaled of a running call.

    Attributes:
        now: when it first began.
        intent: the promise; None until it calls another object.
        steps: id of a call that it makes → what that was in the first run.
        step_bytes: what these take of the record with which the call ends.
        made: ids of those that this run has made.
        diverged: how this run differs from the first, or why its end cannot be written; "" while
            neither is so.
    """

    __slots__ = ("_stopped", "diverged", "intent", "made", "now", "rerun", "step_bytes", "steps")

    def __init__(self, now: float) -> None:
        self.now = now
        self.rerun = False
        self.intent: Promise | None = None
        self.steps: dict[str, str] = {}
        self.step_bytes = 0
        self.made: set[str] = set()
        self.diverged = ""
        self._stopped: InvalidCall | None = None

    @classmethod
    def again(cls, intent: Promise, steps: Iterable[Promise]) -> Begun:
        """For a rerun."""
        begun = cls(decode_intent(intent.body).now)
        begun.rerun = True
        begun.intent = intent
        begun.steps = {step.key: step.body.decode() for step in steps}
        begun.step_bytes = sum(map(_size_of, begun.steps))
        return begun

    def check_end(self) -> None:
        """Raises InvalidCall if the run that has ended was not like the first, or was stopped."""
        if self._stopped is not None:
            raise self._stopped
        if not self.diverged and self.rerun and (missing := self.steps.keys() - self.made):
            step = self.steps[min(missing)]
            self.diverged = f"the first run called {_shown(step)}, the rerun did not"
        if self.diverged:
            assert self.intent is not None
            raise _stopped(self.diverged, self.intent.key)

    def stop(self, refused: RayObjectsError) -> bool:
        """The end's record was refused. Returns whether it would be again and again: then the call
        is stopped, and `ending.failed` lists it."""
        if self.intent is None or self.diverged or not isinstance(refused, InvalidCall):
            return False
        self.diverged = f"its end could not be written: {refused.message}"
        self._stopped = InvalidCall(
            f"the call has called others, but {self.diverged}. What those did stays, what it did "
            "itself was rolled back, and it is not run again by itself: see `rayobjects intents`",
            status=500,
            details={"stopped": self.intent.key},
        )
        return True

    def taken_back(self) -> list[Promise]:
        """For the record with which the call ends."""
        if self.intent is None:
            return []
        return [
            Promise(INTENT, self.intent.key, open=False),
            *(Promise(STEP, key, open=False) for key in self.steps),
        ]

    def failed(self, why: str) -> list[Promise]:
        """For the record that lists the call as failed."""
        assert self.intent is not None
        intent = self.intent
        return [Promise(INTENT, intent.key, intent.due, intent.body, why)]


def leave(
    activation: Activation,
    context: CallContext,
    call: Call,
    send: Callable[[], None],
    replied: Callable[[Reply | RayObjectsError], None],
) -> None:
    """Sends a call that the running call makes, once it is on disk that it does."""
    begun = context.begun
    if begun is None:
        begun = context.begun = Begun(context.now)
    what = f"{call.class_name}/{call.name}.{call.method}\0{call.arguments_hash:x}"
    known = begun.steps.get(call.id)
    if begun.diverged or (known is not None and known != what):
        begun.diverged = begun.diverged or (
            f"the first run called {_shown(known or '')}, the rerun {_shown(what)} or with other "
            "arguments"
        )
        replied(_stopped(begun.diverged, context.call.id))
        return
    begun.made.add(call.id)
    if known is None:
        size = _size_of(call.id)
        if begun.step_bytes + size > STEPS_BYTES_MAX:
            replied(
                misuse(
                    f"{activation.shown}.{context.call.method} has called others "
                    f"{len(begun.steps):,} times, and the ids of these calls fill the "
                    f"{STEPS_BYTES_MAX:,} bytes that one call may have for them: spread them over "
                    "several calls"
                )
            )
            return
        promises = [Promise(STEP, call.id, body=what.encode())]
        intent = begun.intent
        if intent is None:
            intent = Promise(INTENT, context.call.id, body=encode(_intent(context)))
            promises.insert(0, intent)
        record = Record(*activation.id, promises=promises)
        try:
            activation.commit(record, None, no_reply, OK, b"")
        except RayObjectsError as error:  # the disk takes nothing more: nothing has left
            replied(error)
            return
        begun.intent = intent
        begun.steps[call.id] = what
        begun.step_bytes += size
    activation.after_sync(send, lambda: replied(context.cut_off()))


def _intent(context: CallContext) -> Intent:
    call = context.call
    return Intent(
        call.method,
        call.encoding,
        call.args,
        call.chain,
        context.now,
        call.held,
        call.arguments_hash,
        call.context,
        call.takes,
    )


class Intents:
    """A host's calls that were begun before it, or that did not come to their end."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._running: set[tuple[ObjectId, str]] = set()
        self._attempts: dict[tuple[ObjectId, str], int] = {}

    @property
    def busy(self) -> bool:
        """Whether one runs, or waits to run again."""
        return bool(self._running or self._attempts)

    def first(self, id: ObjectId) -> None:
        """The object wakes: what it had begun goes before whatever it is asked now, so that it
        runs from the state that it first saw."""
        for promise in self._host.ledger.promises_of(id):
            if promise.kind == INTENT:
                self.run_again(id, promise)

    def run_again(self, id: ObjectId, intent: Promise) -> None:
        """Runs a call again until it ends."""
        host = self._host
        entry = (id, intent.key)
        if intent.failed or entry in self._running or host.failed is not None:
            return
        found = decode_intent(intent.body)
        if too_old(found, host.clock.now()):
            host.note(
                Record(*id, promises=[Promise(INTENT, intent.key, 0.0, intent.body, TOO_OLD)])
            )
            return
        self._running.add(entry)
        host.ledger.forget(intent.key, id)  # the reply that said that it had failed
        call = Call(
            0,
            *id,
            found.method,
            found.encoding,
            found.args,
            intent.key,
            found.chain,
            held=found.held,
            arguments_hash=found.arguments_hash,
            context=found.context,
            takes=found.takes,
        )

        def respond(status: int, body: bytes, sequence: int) -> None:
            self._running.discard(entry)
            left = host.ledger.promise(id, INTENT, intent.key)
            if left is not None and not left.failed and status == ERROR and is_deadly(body):
                self._attempts.pop(entry, None)
                why = info_from_wire(body).message
                host.note(Record(*id, promises=[msgspec.structs.replace(left, failed=why)]))
            elif left is not None and not left.failed and host.failed is None:
                self.later(id, intent.key)
            else:
                self._attempts.pop(entry, None)

        host.submit(call, respond, True, False)

    def later(self, id: ObjectId, call_id: str) -> None:
        """The call did not come to its end: runs it again after a pause."""
        entry = (id, call_id)
        self._attempts[entry] = attempt = self._attempts.get(entry, 0) + 1

        def again() -> None:
            intent = self._host.ledger.promise(id, INTENT, call_id)
            if intent is not None and not intent.failed:
                self.run_again(id, intent)
            else:
                self._attempts.pop(entry, None)

        self._host.timers.after(UNENDED.pause_s(attempt, self._host.random), again)

    def refusal(self, id: ObjectId, call_id: str) -> InvalidCall | None:
        """Why a call that somebody asks for again is not run, though no reply of it is kept: it has
        called others, and was given up. That is for whoever retries or discards it."""
        intent = self._host.ledger.promise(id, INTENT, call_id)
        if intent is None:
            return None
        why = intent.failed
        if not why and too_old(decode_intent(intent.body), self._host.clock.now()):
            why = TOO_OLD
        if not why:
            return None
        return InvalidCall(
            f"the call was given up, and waits for somebody to have it retried or discarded (see "
            f"`rayobjects intents`): {why}",
            status=500,
            details={"stopped": call_id},
        )

    def has(self, class_name: str, name: str, call_id: str) -> bool:
        """Whether the call has begun and not ended: it goes before whatever its object is asked."""
        return self._host.ledger.promise(ObjectId(class_name, name), INTENT, call_id) is not None

    def begun(self, id: ObjectId, call_id: str) -> Begun | None:
        """What is on disk of a call that is about to run: it has run before, and was cut off."""
        ledger = self._host.ledger
        intent = ledger.promise(id, INTENT, call_id)
        if intent is None:
            return None
        return Begun.again(intent, steps_of(ledger.promises_of(id), id, call_id))


def steps_of(promises: Iterable[Promise], id: ObjectId, call_id: str) -> list[Promise]:
    """The steps of one call among an object's promises."""
    base = child_base(id, call_id)
    return [each for each in promises if each.kind == STEP and each.key.rpartition("/")[0] == base]


def too_old(intent: Intent, now: float) -> bool:
    """Whether a call began so long ago that those it had called may have forgotten it: then it
    cannot be run again without perhaps applying something twice."""
    return now - intent.now > HELD_WINDOW_S


def child_base(id: ObjectId, call_id: str) -> str:
    """What the ids of the calls that a call makes begin with. An Idempotency-Key is unique within
    its object only. What is long is hashed, but for the positions: `root_of` takes them off. So is
    a key that ends as if it had positions, or "a/1" could be a call that "a" makes."""
    base, positions = call_id, ""
    ambiguous = False
    if call_id.startswith("key:"):
        base = f"{id}:{call_id}"
        ambiguous = _POSITIONS.search(base) is not None
    if len(base) <= STEP_BASE_BYTES_MAX // 4 and not ambiguous:
        return base
    if base is call_id and (found := _POSITIONS.search(call_id)) is not None:
        base, positions = call_id[: found.start()], found.group()
    data = base.encode()
    if len(data) > STEP_BASE_BYTES_MAX or ambiguous:
        base = f"hashed:{blake2b(data, digest_size=32).hexdigest()}"
    return base + positions


def _size_of(step: str) -> int:
    """Bytes of a STEP that is taken back."""
    return len(step.encode()) + 32


def root_of(id: ObjectId, call_id: str) -> str:
    """The id of the call that a chain of calls began with."""
    return _POSITIONS.sub("", child_base(id, call_id))


_POSITIONS = re.compile(r"(/\d+)+$")


def was_stopped(error: RayObjectsError, call_id: str) -> bool:
    """Whether the error says that this very call was stopped, and is listed by its object."""
    return error.details.get("stopped") == call_id


def _stopped(why: str, call_id: str) -> InvalidCall:
    return InvalidCall(
        f"the call was cut off by a crash and run again, but {why}: it is stopped, so that nothing "
        "is applied twice. Make the calls of a method follow from its arguments, the object's "
        "state, self.now() and self.random; then see `rayobjects intents`",
        status=500,
        details={"stopped": call_id},
    )


def _shown(step: str) -> str:
    return step.partition("\0")[0]
