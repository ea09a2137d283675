"""Socket messages on their way to one gateway, kept until it has acknowledged them.

The messages are durable before they get here (they are in their call's record), so this is a queue
in memory that a restart fills again from the storage. Delivery is at least once; the gateway drops
repetitions by (sequence, index), which makes it exactly once for the socket (guarantee 6).
"""

from __future__ import annotations

from collections import deque

from rayobjects.limits import BATCH_BYTES_MAX, BATCH_CALLS_MAX
from rayobjects.messages import Push


class Outbox:
    """The messages for one gateway.

    Args:
        count: where counting begins: not below what the gateway may have had of an outbox before,
            or it would acknowledge messages that it has never seen.

    Attributes:
        heard_at: monotonic seconds of the gateway's last sign of life.
    """

    def __init__(self, heard_at: float, count: int = 0) -> None:
        self.heard_at = heard_at
        self._pushes: deque[Push] = deque()
        self._acknowledged = count

    def __len__(self) -> int:
        return len(self._pushes)

    @property
    def count(self) -> int:
        """How many messages there have been so far."""
        return self._acknowledged + len(self._pushes)

    @property
    def first(self) -> Push | None:
        """The oldest message that is not acknowledged."""
        return self._pushes[0] if self._pushes else None

    def add(self, push: Push) -> None:
        self._pushes.append(push)

    def acknowledge(self, count: int) -> list[Push]:
        """The gateway has the first `count` messages; returns those that this is news for."""
        news = []
        while self._acknowledged < count and self._pushes:
            news.append(self._pushes.popleft())
            self._acknowledged += 1
        return news

    def page(self) -> tuple[list[Push], int]:
        """What the gateway does not have yet, as much as fits an answer, and the count after it.

        There is one standing request at a time, and it comes after the answer to the one before:
        whatever is not acknowledged by then was lost and is sent again.
        """
        pushes: list[Push] = []
        size = 0
        for push in self._pushes:
            size += len(push.send.data)
            if pushes and (size > BATCH_BYTES_MAX or len(pushes) >= BATCH_CALLS_MAX):
                break
            pushes.append(push)
        return pushes, self._acknowledged + len(pushes)
