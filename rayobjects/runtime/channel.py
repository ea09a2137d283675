"""A channel of this process to one host: `objects.caller_channel`, carried by Ray and Unix sockets.

Ray costs about a millisecond a call whatever it carries, which is why calls travel in batches. A
session begins with a call of Ray's, which finds the host or starts it, and goes on over the host's
Unix socket where that is on this machine (`runtime.link`).

Connecting goes on until the host answers, or until `unavailable_after_s` have passed without any
answer; then the waiting calls fail with Unavailable, and the next call begins anew.

All of it lives on the router's event loop; `runtime.router` brings calls of other threads there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from rayobjects.clock import Clock
from rayobjects.errors import RayObjectsError, Unavailable
from rayobjects.limits import POLL_S
from rayobjects.messages import REDIRECT, Batch, Push, Reply, decode_replies, encode
from rayobjects.objects.caller_channel import CallerChannel
from rayobjects.runtime import placement
from rayobjects.runtime.acknowledging import Acknowledgements
from rayobjects.runtime.background import spawn
from rayobjects.runtime.link import DELIVER, POLL, Link, LocalLink, RayLink

if TYPE_CHECKING:
    from rayobjects.runtime.router import Router

ANSWER_WITHIN_S = 15.0
"""No answer to a batch for so long means that the host is lost, or held up by a method that blocks
it; then a new session asks again. A call to a dead node can hang for 15 s (Ray)."""

LET_GO_WITHIN_S = 1.0
"""A process that ends does not wait longer for a host."""

RETRY_FIRST_S = 0.02
RETRY_MAX_S = 0.5

SHORT_SESSION_S = 0.1
"""A session that ends sooner is followed by such a pause: a host whose storage does not open
answers every call at once, and every standing request with `stale`."""

_MOVED = Reply(0, REDIRECT, b"")
"""For the calls to a host that is none any more: whoever made them looks again."""

Handle = Any


class Channel(CallerChannel):
    """The channel to one host.

    Args:
        locate: finds the host's actor, creating it where there is none; raises RayObjectsError if
            that cannot succeed.
    """

    def __init__(
        self,
        router: Router,
        host: str,
        locate: Callable[[], Awaitable[Handle]],
        clock: Clock,
        unavailable_after_s: float,
    ) -> None:
        super().__init__(router.id, host, router.loop, clock)
        self._router = router
        self._locate = locate
        self._clock = clock
        self._unavailable_after_s = unavailable_after_s
        self._link: Link | None = None
        self._connected_at = float("-inf")
        self.forget = Acknowledgements(router, self, self._flush_soon)

    @property
    def connected(self) -> bool:
        """Whether there is a session."""
        return self._connected

    def acknowledge_child(self, number: int, held: tuple[str, str, str] | None) -> None:
        """The reply of a call of an object, which was sent as this number, is needed no more.

        Args:
            held: the call's (id, class, name), if the host holds its reply.
        """
        self.acknowledge(number)
        if held is not None:
            self.forget.add(held)

    @property
    def _has_something(self) -> bool:
        return super()._has_something or self.forget.due

    def _next_batch(self) -> Batch:
        batch = super()._next_batch()
        if self.forget:
            batch.forget = self.forget.take()
        return batch

    def _not_taken(self, batch: Batch) -> None:
        super()._not_taken(batch)
        self.forget.add_again(batch.forget)

    async def _deliver(self, body: bytes) -> bytes:
        assert self._link is not None
        return await self._link.request(DELIVER, body, ANSWER_WITHIN_S)

    async def _ask(self, body: bytes) -> bytes:
        assert self._link is not None
        return await self._link.request(POLL, body, POLL_S + ANSWER_WITHIN_S)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return spawn(coroutine)

    def _next_number(self) -> int:
        # Numbers are the router's, not the channel's: call ids are made of them, and must differ
        # between calls to different hosts.
        return self._router.next_number()

    @property
    def _takes_pushes(self) -> bool:
        return self._router.on_push is not None

    def _take_push(self, push: Push) -> None:
        if self._router.on_push is not None:
            self._router.on_push(push)

    def _take_unknown(self, sockets: list[tuple[str, str, str]]) -> None:
        self._router.on_unknown(sockets)

    def _session_ended(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    async def _connect_until_answered(self) -> None:
        started_at = self._clock.monotonic()
        delay_s = RETRY_FIRST_S
        why: object = "it gave no answer"
        if started_at - self._connected_at < SHORT_SESSION_S:
            await asyncio.sleep(SHORT_SESSION_S)  # it answers and lets go at once: do not press it
        while not self.closed:
            self._begin_session()
            batch = None
            try:
                link: Link = RayLink(await asyncio.wait_for(self._locate(), ANSWER_WITHIN_S))
                batch = self._next_batch()
                answer = await link.request(DELIVER, encode(batch), ANSWER_WITHIN_S)
                replies = decode_replies(answer)
                if not replies.stale:
                    if replies.link:
                        link = await LocalLink.connect(replies.link) or link
                    if self.closed:
                        link.close()
                        return
                    self._link = link
                    self._connected_at = self._clock.monotonic()
                    self._answered(replies, batch)
                    return
            except (RayObjectsError, placement.Moved) as error:
                # Those that came later wait: their class may have been deployed meanwhile.
                outcome = error if isinstance(error, RayObjectsError) else _MOVED
                self._fail_waiting(outcome, resent_only=True)
                self.forget.again()
                if self._waiting:
                    started_at = self._clock.monotonic()
                    continue
                return
            except Exception as error:  # Ray's, or whatever it lets through: try again
                why = error
            if batch is not None:
                self._not_taken(batch)
            if self._clock.monotonic() - started_at > self._unavailable_after_s:
                self._fail_waiting(
                    Unavailable(
                        f"the host {self.host} could not be reached within "
                        f"{self._unavailable_after_s:g} s ({_brief(why)}): try again with the same "
                        "id, and look at `rayobjects status`"
                    )
                )
                if not self.sockets:
                    self.forget.again()
                    return
                started_at = self._clock.monotonic()  # their objects may have messages for them
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    async def let_go(self) -> None:
        """Closes the streams that are read here, before the channel is closed: else their objects
        would wait until they miss this process."""
        for number, waiting in self._waiting.items():
            if waiting.credit is not None:
                self.credit(number, -1)
        something = self._credits or self.forget
        if something and self._connected and self._link is not None:
            with contextlib.suppress(Exception):  # then they will miss it
                await self._link.request(DELIVER, encode(self._next_batch()), LET_GO_WITHIN_S)

    def close(self) -> None:
        """Ends the channel; calls without a reply fail with Unavailable."""
        self.forget.close()
        super().close()


def _brief(why: object) -> str:
    lines = str(why).strip().splitlines()
    return f"{type(why).__name__}: {lines[0]}" if lines else type(why).__name__
