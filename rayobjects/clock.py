"""Time, handed in. Layers 1 to 3 take no clock and no randomness from the air, so that tests can
move the one and repeat the other; the linter bans the direct use."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """Seconds since the epoch: what people and schedules mean. May jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow: for time-outs and idle times."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()  # noqa: TID251  (the one home of the system's clock)

    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251
