"""What was given up, for people: schedules, told messages and begun calls that failed for good.

They stay in the ledger, marked with the reason, until somebody has them retried or discarded. That
is a call of the object like any other, so it takes effect once and in order with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from rayobjects.errors import InvalidCall
from rayobjects.ids import ObjectId
from rayobjects.objects.intents import steps_of, too_old
from rayobjects.objects.promised import decode_intent, decode_plan, decode_told, encode
from rayobjects.storage.records import INTENT, SCHEDULE, STEP, TELL, Promise

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.host_core import HostCore

KINDS = {"schedule": SCHEDULE, "tell": TELL, "intent": INTENT}


class Chosen(msgspec.Struct):
    """One of an object's promises. `kind`: "schedule", "tell" or "intent"."""

    kind: str
    key: str


def settle(activation: Activation, how: str, chosen: Chosen) -> str:
    """Retries or discards a promise that has failed; a schedule that has not can be discarded too.
    Returns what was done.

    Raises:
        InvalidCall: there is none of this kind and key, or it has not failed.
    """
    kind = KINDS.get(chosen.kind)
    if kind is None:
        raise InvalidCall(f"kind is one of {', '.join(KINDS)}, not {chosen.kind!r}")
    ledger, promised = activation.host.ledger, activation.state.promised
    if kind == SCHEDULE:
        promise = promised.schedule(chosen.key)
    else:
        settled = promised.settled.get((kind, chosen.key))
        promise = settled or ledger.promise(activation.id, kind, chosen.key)
    if promise is None or not promise.open:
        raise InvalidCall(f"{activation.shown} has no {chosen.kind} {chosen.key!r}", status=404)
    if not promise.failed and (how == "retry" or kind != SCHEDULE):
        raise InvalidCall(f"the {chosen.kind} {chosen.key!r} of {activation.shown} has not failed")
    if how == "discard":
        promised.settle(Promise(kind, promise.key, open=False))
        if kind == INTENT:
            promises = ledger.promises_of(activation.id)
            for step in steps_of(promises, activation.id, promise.key):
                promised.put(Promise(STEP, step.key, open=False))
        return "discarded"
    if kind == INTENT and too_old(decode_intent(promise.body), activation.host.clock.now()):
        raise InvalidCall(
            f"the call {chosen.key!r} of {activation.shown} is so old that those it had called may "
            "have forgotten it, and would apply it again: look at their state, then discard it"
        )
    promised.settle(_afresh(activation.host, promise))
    return "retried"


def _afresh(host: HostCore, promise: Promise) -> Promise:
    """The same without its failure. A call has an id of its own for each attempt: the new ones must
    not have those that were used."""
    replace, now = msgspec.structs.replace, host.clock.now()
    body = promise.body
    if promise.kind == SCHEDULE:
        body = encode(replace(decode_plan(body), attempts=0, nonce=host.new_promise_key()))
    elif promise.kind == TELL:
        told = decode_told(body)
        attempts = told.attempts + 1
        body = encode(replace(told, at=now, attempts=attempts, before=attempts))
    return replace(promise, body=body, failed="", due=now)


def described(promise: Promise) -> dict[str, Any]:
    """A promise in JSON types, for lists."""
    fields: dict[str, Any] = {"key": promise.key, "due": promise.due, "failed": promise.failed}
    if promise.kind == SCHEDULE:
        plan = decode_plan(promise.body)
        return fields | {
            "kind": "schedule",
            "method": plan.method,
            "every": plan.every,
            "zone": plan.zone,
            "attempts": plan.attempts,
        }
    if promise.kind == TELL:
        told = decode_told(promise.body)
        return fields | {
            "kind": "tell",
            "method": told.method,
            "to": f"{told.class_name}/{told.name}",
            "since": told.at,
            "attempts": told.attempts - told.before,
        }
    intent = decode_intent(promise.body)
    return fields | {"kind": "intent", "method": intent.method, "since": intent.now}


def listed(
    promises: Iterable[tuple[ObjectId, Promise]],
    kinds: Iterable[str],
    class_name: str,
    failed: bool,
    limit: int,
) -> list[dict[str, Any]]:
    """Those of the promises that are asked for, the next one first, in JSON types.

    Args:
        kinds: as in `KINDS`.
        class_name: only of this class's objects; "" for all.
        failed: only what was given up.
    """
    wanted = {KINDS[kind] for kind in kinds}
    chosen = [
        (promise.due, id, promise)
        for id, promise in promises
        if promise.kind in wanted
        and (not class_name or id.class_name == class_name)
        and (promise.failed or not failed)
    ]
    chosen.sort(key=lambda each: (each[0], each[1], each[2].key))
    return [
        {"class": id.class_name, "name": id.name} | described(promise)
        for _, id, promise in chosen[:limit]
    ]
