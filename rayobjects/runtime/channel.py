"""A channel: the batched, ordered, self-healing link from this process to one host.

Ray costs about a millisecond a call whatever it carries, so calls travel in batches: those made
while a batch is under way go together in the next. Replies come with the answer to their batch, or,
where a call takes long, over a standing request (which also brings socket messages to gateways).

States: CONNECTED → (any failure, or `stale`) → CONNECTING → CONNECTED. Connecting begins a new
session: all calls without a reply are sent again, in their order and with their ids, so the host
answers from what it remembers or from the journal and runs none twice. It goes on until the host
answers, or until `unavailable_after_s` have passed without any answer; then the waiting calls fail
with Unavailable, and the next call begins anew.

Streams: OPENED and items come before the reply of a call, in order. A call of which items have come
is sent again with their number, so that a host which does not have it any more ends the stream.

All of it lives on one event loop; `runtime.router` brings calls of other threads there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rayobjects.clock import Clock
from rayobjects.errors import Cancelled, Overloaded, RayObjectsError, Unavailable
from rayobjects.limits import (
    BATCH_BYTES_MAX,
    BATCH_CALLS_MAX,
    CHANNEL_CALLS_MAX,
    POLL_S,
)
from rayobjects.messages import (
    OPENED,
    REDIRECT,
    Batch,
    Call,
    Poll,
    Replies,
    Reply,
    decode_replies,
    encode,
)
from rayobjects.objects.reading import opened
from rayobjects.runtime.background import spawn
from rayobjects.runtime.link import DELIVER, POLL, Link, LocalLink, RayLink

if TYPE_CHECKING:
    from rayobjects.runtime.router import Router

BATCHES_UNDER_WAY_MAX = 2
"""One is being worked on while the next is on its way; more would only make batches smaller."""

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

Handle = Any
Replied = Callable[[Reply | RayObjectsError], None]


class _Waiting:
    """A call without a reply.

    Attributes:
        credit: as far as its items are read; None if it is no stream.
        cancelled: whether the caller has taken it back.
    """

    __slots__ = ("call", "cancelled", "credit", "keep", "replied")

    def __init__(self, call: Call, replied: Replied, keep: bool) -> None:
        self.call = call
        self.replied = replied
        self.keep = keep
        self.credit: int | None = None
        self.cancelled = False


class Channel:
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
        self.host = host
        self.sockets: set[tuple[str, str, str]] = set()
        self._router = router
        self._locate = locate
        self._clock = clock
        self._unavailable_after_s = unavailable_after_s
        self._link: Link | None = None
        self._connected = False
        self._connecting: asyncio.Task[None] | None = None
        self._session = 0
        self._index = 0
        self._number = 0
        self._resent_until = 0  # calls up to this number may have reached a host before
        self._sent_until = 0  # calls after this number have never been in a batch
        self._under_way = 0
        self._flush_due = False
        self._waiting: dict[int, _Waiting] = {}
        self._queue: deque[Call] = deque()
        self._acks: list[int] = []
        self._credits: dict[int, int] = {}
        self._cancels: dict[int, None] = {}
        self._late: set[int] = set()
        self._polling: asyncio.Task[None] | None = None
        self._incarnation = ""
        self._pushed = 0
        self._sockets_told = False
        self._told_before = False
        self._closed = False
        self._connected_at = float("-inf")

    # -- calls ----------------------------------------------------------------------------------

    def send(self, call: Call, replied: Replied, *, keep: bool = False) -> int:
        """Sends a call; `replied(reply or error)` follows. Returns the call's number.

        Args:
            keep: the host must not forget the reply until `acknowledge` is called.
        """
        if len(self._waiting) >= CHANNEL_CALLS_MAX:
            replied(
                Overloaded(
                    f"{CHANNEL_CALLS_MAX:,} calls to the host {self.host} wait for their replies: "
                    "await some before you send more"
                )
            )
            return 0
        # Numbers are the router's, not the channel's: call ids are made of them, and must differ
        # between calls to different hosts.
        self._number = call.number = self._router.next_number()
        self._waiting[call.number] = _Waiting(call, replied, keep)
        self._queue.append(call)
        self._flush_soon()
        return call.number

    def _flush_soon(self) -> None:
        if not self._flush_due and self._under_way < BATCHES_UNDER_WAY_MAX:
            # At the end of this tick, so that the calls of one tick travel together.
            self._flush_due = True
            self._router.loop.call_soon(self._flush)

    def acknowledge(self, number: int) -> None:
        """The reply of a call that was sent with `keep` is needed no more."""
        self._acks.append(number)

    def credit(self, number: int, upto: int) -> None:
        """The items of a call that is a stream have been read up to this one; -1: the reader has
        gone. Goes with the next batch, or alone."""
        waiting = self._waiting.get(number)
        if waiting is not None and waiting.credit != -1:
            waiting.credit = self._credits[number] = upto
            self._flush_soon()

    def cancel(self, call: Call) -> bool:
        """Has a call ended if it still can be; its reply says what became of it. One that has not
        left yet is not sent. Returns whether it belongs to this channel and has no reply."""
        waiting = self._waiting.get(call.number)
        if waiting is None or waiting.call is not call:
            return False
        if call.number > self._sent_until:
            del self._waiting[call.number]
            self._queue.remove(call)
            waiting.replied(taken_back(call))
            return True
        if not waiting.cancelled:
            waiting.cancelled = True
            waiting.replied = partial(_replied_to_cancelled, call, waiting.replied)
        self._cancels[call.number] = None
        self._flush_soon()
        return True

    @property
    def _has_something(self) -> bool:
        """Whether there is something to send."""
        return bool(self._queue or self._credits or self._cancels)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._connected:
            self._connect()
            return
        while self._has_something and self._under_way < BATCHES_UNDER_WAY_MAX:
            self._under_way += 1
            spawn(self._send_batch(self._next_batch(), self._session))

    def _next_batch(self) -> Batch:
        queue = self._queue
        if (
            len(queue) <= BATCH_CALLS_MAX
            and sum(len(call.args) for call in queue) < BATCH_BYTES_MAX
        ):
            calls = list(queue)
            queue.clear()
        else:
            calls, size = [], 0
            while queue and len(calls) < BATCH_CALLS_MAX:
                size += len(queue[0].args)
                if calls and size > BATCH_BYTES_MAX:
                    break
                calls.append(queue.popleft())
        if calls and calls[-1].number > self._sent_until:
            self._sent_until = calls[-1].number
        acks, self._acks = self._acks, []
        resent = bool(calls) and calls[0].number <= self._resent_until
        credits, self._credits = list(self._credits.items()), {}
        batch = Batch(self._router.id, self._session, self._index, calls, acks, resent, credits)
        if self._cancels:
            batch.cancels = self._cancelled()
        self._index += 1
        return batch

    def _cancelled(self) -> list[tuple[int, str, str]]:
        """Those of calls that are not in the queue any more: they come behind their calls."""
        cancels, self._cancels = self._cancels, {}
        unsent = {call.number for call in self._queue}
        self._cancels = {number: None for number in cancels if number in unsent}
        calls = [
            waiting.call
            for number in cancels
            if number not in unsent and (waiting := self._waiting.get(number)) is not None
        ]
        return [(call.number, call.class_name, call.name) for call in calls]

    async def _send_batch(self, batch: Batch, session: int) -> None:
        assert self._link is not None
        try:
            answer = await self._link.request(DELIVER, encode(batch), ANSWER_WITHIN_S)
        except Exception as error:  # Ray's, or whatever it lets through: the session is over
            if session == self._session:
                self._under_way -= 1
            self._acks.extend(batch.acks)
            self._lost(session, error)
            return
        if session != self._session:
            self._acks.extend(batch.acks)  # perhaps not taken; to say so twice does no harm
            return
        self._under_way -= 1
        replies = decode_replies(answer)
        if replies.stale:
            self._acks.extend(batch.acks)
            self._lost(session, None)
            return
        self._arrived(replies, batch)
        if self._has_something:
            self._flush()

    # -- replies --------------------------------------------------------------------------------

    def _arrived(self, replies: Replies, batch: Batch | None) -> None:
        if replies.incarnation != self._incarnation:
            self._incarnation, self._pushed = replies.incarnation, 0
        for reply in replies.replies:
            if reply.status >= OPENED:
                self._streamed(reply)
                continue
            waiting = self._waiting.pop(reply.number, None)
            if waiting is None:
                continue
            if not waiting.keep:
                self._acks.append(reply.number)
            self._late.discard(reply.number)
            waiting.replied(reply)
        if batch is not None and replies.late:
            self._late.update(call.number for call in batch.calls if call.number in self._waiting)
        for push in replies.pushes:
            if self._router.on_push is not None:
                self._router.on_push(push)
        if (self._late or self.sockets) and self._polling is None:
            self._polling = spawn(self._poll(self._session))

    def _streamed(self, reply: Reply) -> None:
        """A call is a stream, or an item of it has come: in order, perhaps repeated in a session,
        perhaps with a gap before what is on its way again."""
        waiting = self._waiting.get(reply.number)
        if waiting is None:
            return
        if reply.status == OPENED:
            if waiting.credit is None:
                waiting.credit = 0
                begins = opened(reply.number, partial(self.credit, reply.number))
                waiting.replied(begins)
                waiting.replied = begins.take or waiting.replied
        elif reply.sequence == waiting.call.seen + 1:
            waiting.call.seen = reply.sequence
            waiting.replied(reply)

    def need_poll(self) -> None:
        """A socket's object lives at this host: keeps a standing request open from now on."""
        if self._connected and self._polling is None:
            self._polling = spawn(self._poll(self._session))

    async def _poll(self, session: int) -> None:
        try:
            while session == self._session and (self._late or self.sockets):
                poll = Poll(self._router.id, session, self._pushed, self._incarnation)
                if not self._sockets_told and self._router.on_push is not None:
                    poll.sockets = list(self.sockets)
                assert self._link is not None
                answer = await self._link.request(POLL, encode(poll), POLL_S + ANSWER_WITHIN_S)
                if session != self._session:
                    return
                replies = decode_replies(answer)
                if replies.stale:
                    self._lost(session, None)
                    return
                self._sockets_told = not replies.tell
                if replies.unknown and self._told_before:
                    self._router.on_unknown(replies.unknown)
                self._told_before = True  # the first time they are those that are being opened
                self._arrived(replies, None)
                if replies.incarnation == self._incarnation:
                    self._pushed = max(self._pushed, replies.pushed)
        except Exception as error:
            self._lost(session, error)
        finally:
            if session == self._session:
                self._polling = None

    # -- failure --------------------------------------------------------------------------------

    def _lost(self, session: int, error: BaseException | None) -> None:
        """The session is over; what has no reply is sent again in the next."""
        if session == self._session and not self._closed:
            self._connected = False
            self._drop_link()
            self._under_way = 0
            self._session += 1  # what is still under way belongs to the session that ended
            if self._waiting or self.sockets:
                self._connect()

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connect(self) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = spawn(self._connect_until_answered())

    async def _connect_until_answered(self) -> None:
        started_at = self._clock.monotonic()
        delay_s = RETRY_FIRST_S
        why: object = "it gave no answer"
        if started_at - self._connected_at < SHORT_SESSION_S:
            await asyncio.sleep(SHORT_SESSION_S)  # it answers and lets go at once: do not press it
        while not self._closed:
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
                    if self._closed:
                        link.close()
                        return
                    self._link, self._connected = link, True
                    self._connected_at = self._clock.monotonic()
                    self._arrived(replies, batch)
                    self._flush()
                    return
            except RayObjectsError as error:
                self._fail_waiting(error)
                return
            except Exception as error:  # Ray's, or whatever it lets through: try again
                why = error
            if batch is not None:
                self._acks.extend(batch.acks)
            if self._clock.monotonic() - started_at > self._unavailable_after_s:
                self._fail_waiting(
                    Unavailable(
                        f"the host {self.host} could not be reached within "
                        f"{self._unavailable_after_s:g} s ({_brief(why)}): try again with the same "
                        "id, and look at `rayobjects status`"
                    )
                )
                if not self.sockets:
                    return
                started_at = self._clock.monotonic()  # their objects may have messages for them
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    def _begin_session(self) -> None:
        self._session += 1
        self._index = 0
        self._resent_until = self._number
        self._under_way = 0
        self._late = set()
        self._polling = None
        self._sockets_told = False
        self._queue = deque(waiting.call for waiting in self._waiting.values())
        self._credits = {
            number: waiting.credit for number, waiting in self._waiting.items() if waiting.credit
        }
        self._cancels = {
            number: None for number, waiting in self._waiting.items() if waiting.cancelled
        }

    def _fail_waiting(self, error: RayObjectsError) -> None:
        waiting, self._waiting = self._waiting, {}
        self._queue.clear()
        self._credits.clear()
        self._cancels.clear()
        for each in waiting.values():
            each.replied(error)

    async def let_go(self) -> None:
        """Closes the streams that are read here, before the channel is closed: else their objects
        would wait until they miss this process."""
        for number, waiting in self._waiting.items():
            if waiting.credit is not None:
                self.credit(number, -1)
        if self._credits and self._connected and self._link is not None:
            with contextlib.suppress(Exception):  # then they will miss it
                await self._link.request(DELIVER, encode(self._next_batch()), LET_GO_WITHIN_S)

    def close(self) -> None:
        """Ends the channel; calls without a reply fail with Unavailable."""
        self._closed = True
        self._connected = False
        self._session += 1
        self._drop_link()
        self._fail_waiting(Unavailable("the client was shut down: call ro.init() again"))


def taken_back(call: Call) -> Cancelled:
    """The error for a call that its caller has taken back before it was sent."""
    return Cancelled(
        f"the call to {call.class_name}/{call.name} was cancelled by its caller, and never sent"
    )


def _replied_to_cancelled(call: Call, replied: Replied, outcome: Reply | RayObjectsError) -> None:
    """One that was taken back, and is hosted elsewhere by now, does not go there."""
    redirected = isinstance(outcome, Reply) and outcome.status == REDIRECT
    replied(taken_back(call) if redirected else outcome)


def _brief(why: object) -> str:
    lines = str(why).strip().splitlines()
    return f"{type(why).__name__}: {lines[0]}" if lines else type(why).__name__
