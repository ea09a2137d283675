"""The channel of a test: `objects.caller_channel`, as in production, to a host in this process.

Batches are encoded and decoded as on the wire, so nothing is shared between the two ends. Things
that a network does can be asked for: `lose_answers` and `lose_polls`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from rayobjects.clock import Clock
from rayobjects.errors import RayObjectsError, Unavailable
from rayobjects.messages import Batch, Push, decode_batch, decode_replies, encode
from rayobjects.objects.caller_channel import CallerChannel
from rayobjects.testing.clock import ManualClock


class Link(Protocol):
    """What a channel needs of a host. `deliver` and `poll` raise ConnectionError if the host is
    dead or dies under way."""

    loop: asyncio.AbstractEventLoop

    async def deliver(self, body: bytes) -> bytes: ...
    async def poll(self, body: bytes) -> bytes: ...

    async def alive(self) -> None:
        """Returns when the host lives."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine in the background."""
        ...


class LocalChannel(CallerChannel):
    """The channel of one pretended process to one host.

    Args:
        id: names the process; a gateway's is also its gateway id.
        on_push: gets socket messages: then the channel is a gateway's.
        clock: of the pretended process. It stands still unless it is moved: a host whose time moves
            has heard of its callers all the while.

    Attributes:
        lose_answers: so many answers to batches get lost on their way back.
        lose_polls: so many answers to standing requests get lost.
        sent: the last batches that were sent, for tests that look at them.
        on_unknown: gets the sockets that no object knows.
    """

    FAILURES = (ConnectionError,)  # anything else is a fault, and a test must see it

    def __init__(
        self,
        host: Link,
        id: str,
        on_push: Callable[[Push], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        super().__init__(id, "of this test", host.loop, self.clock)
        self.lose_answers = 0
        self.lose_polls = 0
        self.sent: deque[Batch] = deque(maxlen=1_000)
        self.on_unknown: Callable[[list[tuple[str, str, str]]], None] | None = None
        self._link = host
        self._on_push = on_push
        self._waiting_for_polls: list[asyncio.Future[None]] = []

    async def _deliver(self, body: bytes) -> bytes:
        self.sent.append(decode_batch(body))
        answer = await self._link.deliver(body)
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionError("the answer was lost")
        return answer

    async def _ask(self, body: bytes) -> bytes:
        session = self._session
        answer = await self._link.poll(body)
        if self.lose_polls and session == self._session:
            self.lose_polls -= 1
            raise ConnectionError("the answer was lost")
        return answer

    async def _connect_until_answered(self) -> None:
        while not self.closed:
            await self._link.alive()
            if self.closed:
                return
            self._begin_session()
            batch, session = self._next_batch(), self._session
            try:
                replies = decode_replies(await self._deliver(encode(batch)))
            except ConnectionError:
                replies = None
            if session != self._session:
                return
            if replies is not None and not replies.stale:
                self._answered(replies, batch)
                return
            self._not_taken(batch)
            await asyncio.sleep(0)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._link.spawn(coroutine)

    @property
    def _takes_pushes(self) -> bool:
        return self._on_push is not None

    def _take_push(self, push: Push) -> None:
        if self._on_push is not None:
            self._on_push(push)

    def _take_unknown(self, sockets: list[tuple[str, str, str]]) -> None:
        if self.on_unknown is not None:
            self.on_unknown(sockets)

    def _raised(self, error: Exception) -> None:
        async def fault() -> None:
            raise error

        self._link.spawn(fault())  # a test must see it

    def pushed(self, incarnation: str) -> int:
        """How many of this life's socket messages have arrived."""
        return self._pushed if incarnation == self._incarnation else 0

    async def polled(self) -> None:
        """Returns when the answer to a standing request has arrived, or the channel closes."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting_for_polls.append(future)
        await future

    def _polled(self) -> None:
        waiting, self._waiting_for_polls = self._waiting_for_polls, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """The process is gone: no one is told anything any more. Calls without a reply fail with
        Unavailable."""
        self.sockets = set()
        super().close()
        self._polled()

    def _closed_error(self) -> RayObjectsError:
        return Unavailable("the host of this test is closed: call inside `async with`")
