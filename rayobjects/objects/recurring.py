"""What becomes of a schedule when one of its due times is over: done, failed, or given up.

One that recurs goes on with its next time, whatever became of this one; what has failed of it is
kept under a key of its own, as a schedule for once.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from rayobjects.objects.promised import EACH, Plan, decode_plan, encode
from rayobjects.objects.times import next_due
from rayobjects.storage.records import SCHEDULE, Promise


def following(promise: Promise, body: Plan, now: float) -> Promise:
    """The schedule when this time is over: closed, or due at its next time.

    Args:
        now: in seconds since the epoch.
    """
    if not body.every:
        return Promise(SCHEDULE, promise.key, open=False)
    behind = body.planned if body.missed == EACH else max(body.planned, now)
    due = next_due(body.every, body.zone, behind)
    again = msgspec.structs.replace(body, planned=due, attempts=0)
    return Promise(SCHEDULE, promise.key, due, encode(again))


def failed_alone(promise: Promise, body: Plan, why: str) -> Promise:
    """What has failed of a schedule that recurs, for the list."""
    once = encode(msgspec.structs.replace(body, every=""))
    return Promise(SCHEDULE, key_of_its_own(promise.key, body), promise.due, once, why)


def key_of_its_own(key: str, body: Plan) -> str:
    """For one due time of a schedule that recurs."""
    return f"{key}@{datetime.fromtimestamp(body.planned, UTC):%Y-%m-%dT%H:%M:%SZ}"


def given_up(promise: Promise, why: str, now: float) -> list[Promise]:
    """A schedule one time of which has failed for good."""
    body = decode_plan(promise.body)
    if body.every:
        return [failed_alone(promise, body, why), following(promise, body, now)]
    return [msgspec.structs.replace(promise, failed=why)]
