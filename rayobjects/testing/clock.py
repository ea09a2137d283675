"""A clock that stands still until a test moves it."""

from __future__ import annotations


class ManualClock:
    """`Clock` for tests.

    Args:
        now: the seconds since the epoch at which it begins.
    """

    def __init__(self, now: float = 1_767_225_600.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._monotonic

    def move(self, seconds: float) -> None:
        """Moves the time on.

        Raises:
            ValueError: backwards; use `jump` for a clock that is set back.
        """
        if seconds < 0:
            raise ValueError(f"time only grows: move by {-seconds:g} s, or jump")
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the machine's clock, forwards or back: `monotonic` does not notice."""
        self._now += seconds
