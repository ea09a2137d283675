"""What a channel has to say of replies that its host holds: that their callers have ended.

It goes with the next batch, whatever that is for, or, where none comes, with one of its own after a
moment. It is said by the id of the call, so that a host which was restarted meanwhile knows what is
meant, and again until it was answered. Where the host was the actor of an object of its own and has
ended, the shard's host is told, which has the object's storage; no actor starts for that.

When this process dies, what it had not said yet is lost, and those replies are held until their
window is over.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rayobjects.ids import ObjectId
from rayobjects.limits import BATCH_CALLS_MAX, CHANNEL_CALLS_MAX
from rayobjects.runtime import placement

if TYPE_CHECKING:
    from rayobjects.runtime.channel import Channel
    from rayobjects.runtime.router import Router

SAY_WITHIN_S = 0.5
"""How long a batch for something else is waited for, and how long until it is tried again."""

Said = list[tuple[str, str, str]]


class Acknowledgements:
    """One channel's.

    Attributes:
        due: they have waited long enough.
    """

    __slots__ = ("_channel", "_flush", "_router", "_timer", "_waiting", "due")

    def __init__(self, router: Router, channel: Channel, flush: Callable[[], None]) -> None:
        self.due = False
        self._router = router
        self._channel = channel
        self._flush = flush
        self._timer: asyncio.TimerHandle | None = None
        # Beyond that many some are held until their window is over.
        self._waiting: deque[tuple[str, str, str]] = deque(maxlen=CHANNEL_CALLS_MAX)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, held: tuple[str, str, str]) -> None:
        """Whoever made this call (id, class, name) has ended, on disk."""
        self._waiting.append(held)
        self._arm()

    def take(self) -> Said:
        """For a batch."""
        waiting = self._waiting
        said = list(itertools.islice(waiting, BATCH_CALLS_MAX))
        for _ in said:
            waiting.popleft()
        self.due = False
        if waiting:
            self._arm()
        return said

    def add_again(self, said: Said) -> None:
        """The batch may not have arrived."""
        if said:
            self._waiting.extendleft(reversed(said))
            self._arm()

    def again(self) -> None:
        """The host could not be reached, and is not looked for any more: it is tried again."""
        self.due = False
        if self._waiting:
            self._arm()

    def close(self) -> None:
        """Says nothing more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._router.loop.call_later(SAY_WITHIN_S, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        host = self._channel.host
        if placement.shard_of_host(host) is None and not self._channel.connected:
            _, class_name, name = self._waiting[0]
            shards = self._router.configuration.shards
            shard = placement.shard_of(ObjectId(class_name, name), shards)
            elsewhere = self._router.shard_channel(shard).forget
            elsewhere.add_again(list(self._waiting))
            self._waiting.clear()
            return
        self.due = True
        self._flush()
