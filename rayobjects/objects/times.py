"""When a schedule is due: from what users write to seconds since the epoch.

What cannot be understood is a mistake of the method that schedules. One that takes it from its own
caller catches the InvalidCall, and raises another to refuse the call.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from rayobjects.errors import misuse

When = datetime | float
Span = timedelta | float


def due_at(now: float, at: When | None, after: Span | None, every: str | None, zone: str) -> float:
    """The (first) due time, in seconds since the epoch.

    Args:
        now: likewise.

    Raises:
        InvalidCall: not one of `at`, `after` and `every` was given, or it cannot be understood.
    """
    due = _due_at(now, at, after, every, zone)
    try:
        datetime.fromtimestamp(due, UTC)
    except (ValueError, OverflowError, OSError):
        raise misuse(
            f"a schedule cannot be due at {due!r} seconds after 1970: the years go from 1 to 9999"
        ) from None
    return due


def _due_at(now: float, at: When | None, after: Span | None, every: str | None, zone: str) -> float:
    times = {"at=": at, "after=": after, "every=": every}
    given = [name for name, value in times.items() if value is not None]
    if len(given) != 1:
        raise misuse(
            f"a schedule needs exactly one of at=, after= and every=, and {' and '.join(given)} "
            "are given"
            if given
            else "a schedule needs one of at=, after= and every=, and none is given"
        )
    if at is not None:
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise misuse(
                    f"at={at!r} has no time zone: say datetime(…, tzinfo=UTC), or use self.now()"
                )
            return at.timestamp()
        return _number("at", at)
    if after is not None:
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        return now + max(0.0, _number("after", seconds))
    assert every is not None
    return next_due(every, zone, now)


def next_due(every: str, zone: str, after: float) -> float:
    """The first time behind `after` that a cron expression names (`cronsim`; daylight saving is
    treated as by Debian's cron).

    Raises:
        InvalidCall: the expression or the time zone cannot be understood, or names no time.
    """
    try:
        start = datetime.fromtimestamp(after, ZoneInfo(zone))
    except (ValueError, OSError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise misuse(
            f"there is no time zone {zone!r}: use a name such as 'UTC' or 'Europe/Berlin'"
        ) from error
    try:
        for found in CronSim(every, start):
            due = found.astimezone(UTC).timestamp()
            if due > after:  # where clocks are set back, a time comes twice
                return due
    except (CronSimError, AttributeError, TypeError) as error:
        raise misuse(
            f"every={every!r} is no cron expression ({error}): minute, hour, day of the month, "
            "month and day of the week, for example '*/5 * * * *'"
        ) from error
    raise misuse(f"every={every!r} names a day that never comes")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise misuse(f"{name}= is a number of seconds or a datetime type, not {value!r}")
    return float(value)
