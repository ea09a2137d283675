"""Schedules from the object's side: planning them, and what the call of one leaves behind.

`self.schedule` writes a promise with the running call's other effects. When it is due, the host
sends the object a SCHEDULED call (`scheduler`), which runs the method and, in the same record,
takes the schedule back or moves it to its next time. If the method raises, its effects are rolled
back, and a record of its own plans the next attempt; after the last one the schedule is marked as
failed, and stays until somebody retries or discards it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from rayobjects.errors import InvalidCall, RayObjectsError, misuse, to_wire
from rayobjects.limits import KEY_BYTES_MAX, LOOP_PAUSE_S, VALUE_BYTES_MAX
from rayobjects.messages import ERROR, Call
from rayobjects.objects import arguments, carried
from rayobjects.objects.commit import Respond
from rayobjects.objects.context import CallContext, current_call
from rayobjects.objects.promised import EACH, LAST, Plan, decode_intent, decode_plan, encode
from rayobjects.objects.recurring import failed_alone, following, key_of_its_own
from rayobjects.objects.retrying import retries_of
from rayobjects.objects.scheduler import Firing, decode_firing, encode_firing
from rayobjects.objects.times import Span, When, due_at
from rayobjects.storage.records import SCHEDULE, Promise, Record

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.intents import Begun
    from rayobjects.objects.model import DurableObject
    from rayobjects.objects.state import State


class Schedule(msgspec.Struct, frozen=True):
    """One of an object's schedules, as `self.scheduled()` lists them.

    Attributes:
        key: names it within the object.
        method: what is called.
        due: when, next.
        every: its cron expression; "" for once.
        zone: the time zone of that.
        attempts: how often the method has raised for the present due time.
        failed: why it was given up; "" while it is not.
    """

    key: str
    method: str
    due: datetime
    every: str
    zone: str
    attempts: int
    failed: str


def running() -> CallContext:
    """The running call.

    Raises:
        RuntimeError: there is none.
    """
    context = current_call.get()
    if context is None:
        raise RuntimeError("this is for the methods of a durable object, while a call runs")
    return context


def plan(
    instance: DurableObject,
    state: State,
    method: Callable[..., Any] | str,
    args: Sequence[Any],
    keywords: Mapping[str, Any],
    *,
    at: When | None,
    after: Span | None,
    every: str | None,
    key: str | None,
    zone: str,
    missed: str,
) -> str:
    """See `DurableObject.schedule`."""
    state.check_running()
    context = running()
    name = method if isinstance(method, str) else getattr(method, "__name__", "")
    if not callable(getattr(type(instance), name, None)):
        raise misuse(
            f"{type(instance).__name__} has no method {name or method!r} to schedule: pass one of "
            "its own, such as self.remind"
        )
    if missed not in (EACH, LAST):
        raise misuse(f"missed is {EACH!r} or {LAST!r}, not {missed!r}")
    if key is None:
        key = context.new_name()
        while key and state.promised.schedule(key) is not None:
            key = context.new_name()  # planned by a call that had the same Idempotency-Key
        key = key or context.activation.host.new_promise_key()
    elif not _is_key(key):
        raise misuse(f"a schedule's key is a text of 1 to {KEY_BYTES_MAX:,} bytes of UTF-8")
    due = due_at(context.now, at, after, every, zone)
    pickled = arguments.pickled(f"{type(instance).__name__}.{name}", tuple(args), dict(keywords))
    if len(pickled) > VALUE_BYTES_MAX:
        raise misuse(
            f"the arguments of a schedule have at most {VALUE_BYTES_MAX:,} bytes, these have "
            f"{len(pickled):,}: keep them in the object's storage"
        )
    body = Plan(name, pickled, every or "", zone, missed, due, context=carried.kept(context))
    before = state.promised.schedule(key)
    if before is not None and not before.failed and body.recurs_like(decode_plan(before.body)):
        return key  # else one that plans itself whenever it wakes would put off what has woken it
    body.nonce = context.activation.host.new_promise_key()
    state.promised.put(Promise(SCHEDULE, key, due, encode(body)))
    return key


def _is_key(key: object) -> bool:
    try:
        return isinstance(key, str) and 0 < len(key.encode()) <= KEY_BYTES_MAX
    except UnicodeEncodeError:  # a lone surrogate
        return False


def unplan(state: State, key: str) -> bool:
    """See `DurableObject.unschedule`."""
    state.check_running()
    if state.promised.schedule(key) is None:
        return False
    state.promised.put(Promise(SCHEDULE, key, open=False))
    return True


def listed(state: State) -> list[Schedule]:
    """See `DurableObject.scheduled`."""
    return [shown(promise) for promise in state.promised.schedules()]


def shown(promise: Promise) -> Schedule:
    """A schedule for people."""
    body = decode_plan(promise.body)
    return Schedule(
        promise.key,
        body.method,
        datetime.fromtimestamp(promise.due, UTC),
        body.every,
        body.zone,
        body.attempts,
        promise.failed,
    )


# -- when it is due -----------------------------------------------------------------------------


def due(activation: Activation, call: Call) -> tuple[Promise, Plan] | None:
    """The schedule that a call is for; None if it was changed or taken back meanwhile. A call that
    was stopped and is run again has taken its plan along."""
    firing = decode_firing(call.args)
    if firing.plan:
        body = msgspec.structs.replace(decode_plan(firing.plan), every="")
        return Promise(SCHEDULE, key_of_its_own(firing.key, body), firing.due, firing.plan), body
    promise = activation.state.promised.schedule(firing.key)
    if promise is None or promise.failed or promise.due != firing.due:
        return None
    body = decode_plan(promise.body)
    return (promise, body) if body.nonce == firing.nonce else None


def ended(activation: Activation, call: Call) -> None:
    """The method has returned: the schedule is done, or has its next time; unless the method
    itself has said what becomes of it."""
    promised = activation.state.promised
    soon = activation.host.clock.now() + LOOP_PAUSE_S
    if any(each.open and each.kind == SCHEDULE and each.due < soon for each in promised.changes()):
        activation.host.scheduler.planned_at_once(activation.id)
    firing = decode_firing(call.args)
    found = due(activation, call) if not (firing.plan or promised.changed(firing.key)) else None
    if found is not None:
        promised.put(_following(activation, *found))


def _following(activation: Activation, promise: Promise, body: Plan) -> Promise:
    return following(promise, body, activation.host.clock.now())


def raised(
    activation: Activation, context: CallContext, respond: Respond, error: RayObjectsError
) -> bool:
    """The method has raised, and its effects are rolled back: plans the next attempt, or gives
    up. Returns False where that is not for it to say."""
    call, state = context.call, activation.state
    found = due(activation, call)
    if found is None:
        return False
    promise, body = found
    policy = retries_of(getattr(type(activation.instance), body.method, None))
    attempts = body.attempts + 1
    state.begin(context)
    try:
        if context.begun is not None and context.begun.diverged:
            _hand_over(activation, context.begun, decode_firing(call.args), promise, body)
        elif attempts <= policy.max_attempts:
            pause_s = policy.pause_s(attempts, activation.host.random)
            again = encode(msgspec.structs.replace(body, attempts=attempts))
            state.promised.put(
                Promise(SCHEDULE, promise.key, activation.host.clock.now() + pause_s, again)
            )
        else:
            _give_up(activation, promise, body, error)
        changes = state.changes()
        record = Record(
            *activation.id,
            call.id,
            ERROR,
            to_wire(error, with_cause=False),
            activation.host.now,
            promises=changes.promises,
        )
        activation.commit_end(record, context, respond)
    except RayObjectsError:
        state.rollback()  # too much waits for the disk: the scheduler fires again
        return False
    state.commit()
    return True


def _hand_over(
    activation: Activation, begun: Begun, firing: Firing, promise: Promise, body: Plan
) -> None:
    """The call was stopped, because its rerun was not like its first run. Another attempt, under a
    new id, would apply twice what the first run had called: so the call is listed with the intents,
    together with its plan, and the schedule is done with this time."""
    assert begun.intent is not None
    intent = decode_intent(begun.intent.body)
    firing = msgspec.structs.replace(firing, plan=firing.plan or promise.body)
    intent = msgspec.structs.replace(intent, method=body.method, args=encode_firing(firing))
    begun.intent = msgspec.structs.replace(begun.intent, body=encode(intent))
    if activation.state.promised.schedule(promise.key) is not None:
        activation.state.promised.put(_following(activation, promise, body))


def _give_up(activation: Activation, promise: Promise, body: Plan, error: RayObjectsError) -> None:
    """Marks it as failed. One that recurs goes on: what failed is listed under a key of its own."""
    why = error.message or type(error).__name__  # "" would say that it has not failed
    activation.host.report(
        f"{activation.shown}.{body.method}, scheduled as {promise.key!r}, has failed for good: "
        f"{why}. `rayobjects schedules --failed` lists it"
    )
    promised = activation.state.promised
    if body.every:
        try:
            promised.put(failed_alone(promise, body, why))
        except InvalidCall:
            pass  # too many have failed already: this one stops
        else:
            promised.put(_following(activation, promise, body))
            return
    promised.put(Promise(SCHEDULE, promise.key, promise.due, promise.body, why))
