"""What is measured: one small counter, three times.

The plain Ray actor keeps its count in memory and promises nothing; the durable objects reply only
when the new count is on disk. Otherwise they do the same work, so what differs is the system.
"""

from __future__ import annotations

import rayobjects as ro


class Counter(ro.DurableObject, hosting="shared"):
    """A durable counter beside thousands of others in its host."""

    count: int = ro.durable(0)

    def increment(self, by: int = 1) -> int:
        """Adds to the count and returns it: a durable write."""
        self.count += by
        return self.count

    def read(self) -> int:
        """Returns the count."""
        return self.count


class DedicatedCounter(ro.DurableObject, hosting="dedicated"):
    """A durable counter with a process of its own."""

    count: int = ro.durable(0)

    def increment(self, by: int = 1) -> int:
        """Adds to the count and returns it."""
        self.count += by
        return self.count


class PlainCounter:
    """The same as a plain Ray async actor. It becomes one only after the process has connected,
    because Ray reads its token when it is imported."""

    def __init__(self) -> None:
        self.count = 0

    async def increment(self, by: int = 1) -> int:
        """Adds to the count and returns it."""
        self.count += by
        return self.count

    async def read(self) -> int:
        """Returns the count."""
        return self.count
