"""What a host does after a pause.

Entries wait by the host's own clock. A timer of the event loop rings for the earliest one, and
`run_due` may be called at any time besides: that is how a clock that a test moves gets its way.
Nothing in here survives the process; what must be done all the same is a promise in the journal.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from heapq import heappop, heappush

from rayobjects.clock import Clock


class Timers:
    """One host's. Used on its event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._closed = False

    def after(self, delay_s: float, run: Callable[[], None]) -> None:
        """Runs something after so many seconds, unless `close` comes before."""
        if self._closed:
            return
        heappush(self._heap, (self._clock.monotonic() + delay_s, next(self._order), run))
        self._arm()

    def _arm(self) -> None:
        if not self._heap:
            return
        when = self._heap[0][0]
        if self._timer is not None:
            if self._rings_at <= when:
                return
            self._timer.cancel()
        delay_s = max(0.0, when - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)
        self._rings_at = when

    def _ring(self) -> None:
        self._timer = None
        self.run_due()

    @property
    def next_at(self) -> float | None:
        """When something is to run next, by the clock's `monotonic`."""
        return self._heap[0][0] if self._heap else None

    def run_due(self) -> None:
        """Runs everything whose time has come."""
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            heappop(self._heap)[2]()
        self._arm()

    def close(self) -> None:
        """Runs nothing more."""
        self._closed = True
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
