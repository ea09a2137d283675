"""The channel of a test: what `runtime.channel` does towards a host, without Ray.

Calls of one tick travel in one batch, replies come with the answer or over a standing request, and
whatever goes wrong begins a new session, in which everything without a reply is sent again in its
order and with its ids. Batches are encoded and decoded as on the wire, so nothing is shared between
the two ends.

Things that a network does can be asked for: `lose_answers` and `lose_polls`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from rayobjects.errors import Cancelled, Overloaded, RayObjectsError, Unavailable
from rayobjects.limits import BATCH_BYTES_MAX, BATCH_CALLS_MAX, CHANNEL_CALLS_MAX
from rayobjects.messages import (
    OPENED,
    Batch,
    Call,
    Poll,
    Push,
    Replies,
    Reply,
    decode_replies,
    encode,
)
from rayobjects.objects.reading import opened

BATCHES_UNDER_WAY_MAX = 2

Replied = Callable[[Reply | RayObjectsError], None]


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


class _Waiting:
    """A call without a reply. `credit`: as far as its items are read; None if it is no stream.
    `cancelled`: whether its caller has taken it back."""

    __slots__ = ("call", "cancelled", "credit", "keep", "replied")

    def __init__(self, call: Call, replied: Replied, keep: bool) -> None:
        self.call = call
        self.replied = replied
        self.keep = keep
        self.credit: int | None = None
        self.cancelled = False


class LocalChannel:
    """The channel of one pretended process to one host.

    Args:
        id: names the process; a gateway's is also its gateway id.
        on_push: gets socket messages: then the channel is a gateway's.

    Attributes:
        lose_answers: so many answers to batches get lost on their way back.
        lose_polls: so many answers to standing requests get lost.
        sockets: (class, name, socket id) of what this gateway holds.
        sent: the last batches that were sent, for tests that look at them.
        closed: its process is gone.
    """

    def __init__(self, host: Link, id: str, on_push: Callable[[Push], None] | None = None) -> None:
        self.id = id
        self.lose_answers = 0
        self.lose_polls = 0
        self.sockets: set[tuple[str, str, str]] = set()
        self.sent: deque[Batch] = deque(maxlen=1_000)
        self._host = host
        self._on_push = on_push
        self._loop = host.loop
        self._connected = False
        self._connecting: asyncio.Task[None] | None = None
        self._session = 0
        self._index = 0
        self._number = 0
        self._resent_until = 0
        self._sent_until = 0
        self._under_way = 0
        self._flush_due = False
        self._waiting: dict[int, _Waiting] = {}
        self._queue: deque[Call] = deque()
        self._acks: list[int] = []
        self._credits: dict[int, int] = {}
        self._cancels: list[Call] = []
        self._late: set[int] = set()
        self._polling: asyncio.Task[None] | None = None
        self._polled: list[asyncio.Future[None]] = []
        self._incarnation = ""
        self._pushed = 0
        self._sockets_told = False
        self._told_before = False
        self.on_unknown: Callable[[list[tuple[str, str, str]]], None] | None = None
        self.closed = False

    # -- calls ----------------------------------------------------------------------------------

    def send(self, call: Call, replied: Replied, *, keep: bool = False) -> int:
        """Sends a call; `replied(reply or error)` follows. Returns the call's number.

        Args:
            keep: the host must not forget the reply until `acknowledge` is called.
        """
        if self.closed:
            replied(Unavailable("the host of this test is closed: call inside `async with`"))
            return 0
        if len(self._waiting) >= CHANNEL_CALLS_MAX:
            replied(Overloaded(f"{CHANNEL_CALLS_MAX:,} calls wait for their replies: await some"))
            return 0
        self._number += 1
        call.number = self._number
        self._waiting[call.number] = _Waiting(call, replied, keep)
        self._queue.append(call)
        self._flush_soon()
        return call.number

    def acknowledge(self, number: int) -> None:
        """The reply of a call that was sent with `keep` is needed no more."""
        self._acks.append(number)

    def cancel(self, call: Call) -> bool:
        """Has a call ended if it still can be; one that has not left yet is not sent. Returns
        whether it belongs to this channel and has no reply."""
        waiting = self._waiting.get(call.number)
        if waiting is None or waiting.call is not call:
            return False
        if call.number > self._sent_until:
            del self._waiting[call.number]
            self._queue.remove(call)
            waiting.replied(Cancelled(f"the call to {call.class_name}/{call.name} was never sent"))
            return True
        waiting.cancelled = True
        self._cancels.append(call)
        self._flush_soon()
        return True

    def credit(self, number: int, upto: int) -> None:
        """The items of a call that is a stream have been read up to this one; -1: the reader has
        gone. Goes with the next batch, or alone."""
        waiting = self._waiting.get(number)
        if waiting is not None and waiting.credit != -1:
            waiting.credit = self._credits[number] = upto
            self._flush_soon()

    @property
    def unanswered(self) -> int:
        """How many calls have no reply yet."""
        return len(self._waiting)

    def _flush_soon(self) -> None:
        if not self._flush_due and self._under_way < BATCHES_UNDER_WAY_MAX:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._connected:
            self._connect()
            return
        while (
            self._queue or self._credits or self._cancels
        ) and self._under_way < BATCHES_UNDER_WAY_MAX:
            self._under_way += 1
            self._host.spawn(self._send_batch(self._next_batch(), self._session))

    def _next_batch(self) -> Batch:
        queue, calls, size = self._queue, list[Call](), 0
        while queue and len(calls) < BATCH_CALLS_MAX:
            size += len(queue[0].args)
            if calls and size > BATCH_BYTES_MAX:
                break
            calls.append(queue.popleft())
        acks, self._acks = self._acks, []
        # They are in the order of their numbers: one that was sent before comes first.
        resent = bool(calls) and calls[0].number <= self._resent_until
        credits, self._credits = list(self._credits.items()), {}
        batch = Batch(self.id, self._session, self._index, calls, acks, resent, credits)
        self._sent_until = max([self._sent_until, *(call.number for call in calls)])
        unsent = {call.number for call in queue}  # a cancel comes behind its call
        cancels = [call for call in self._cancels if call.number not in unsent]
        self._cancels = [call for call in self._cancels if call.number in unsent]
        batch.cancels = [(call.number, call.class_name, call.name) for call in cancels]
        self._index += 1
        return batch

    async def _ask(self, batch: Batch) -> Replies:
        self.sent.append(batch)
        answer = await self._host.deliver(encode(batch))
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionError("the answer was lost")
        return decode_replies(answer)

    async def _send_batch(self, batch: Batch, session: int) -> None:
        try:
            replies = await self._ask(batch)
        except ConnectionError:
            replies = Replies([], stale=True)
        if replies.stale:
            self._acks.extend(batch.acks)
            self._lost(session)
        elif session == self._session:
            self._under_way -= 1
            self._arrived(replies, batch)
            if self._queue or self._credits or self._cancels:
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
        if self._on_push is not None:
            for push in replies.pushes:
                self._on_push(push)
        self.need_poll()

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
        """Keeps a standing request open while there are late calls or sockets."""
        if self._connected and self._polling is None and (self._late or self.sockets):
            self._polling = self._host.spawn(self._poll(self._session))

    async def _poll(self, session: int) -> None:
        try:
            while session == self._session and (self._late or self.sockets):
                poll = Poll(self.id, session, self._pushed, self._incarnation)
                if not self._sockets_told and self._on_push is not None:
                    poll.sockets = sorted(self.sockets)
                answer = await self._host.poll(encode(poll))
                if session != self._session:
                    return
                if self.lose_polls:
                    self.lose_polls -= 1
                    raise ConnectionError("the answer was lost")
                replies = decode_replies(answer)
                if replies.stale:
                    self._lost(session)
                    return
                self._sockets_told = not replies.tell
                if replies.unknown and self._told_before and self.on_unknown is not None:
                    self.on_unknown(replies.unknown)
                self._told_before = True  # the first time they are those that are being opened
                self._arrived(replies, None)
                if replies.incarnation == self._incarnation:
                    self._pushed = max(self._pushed, replies.pushed)
                self._tell_polled()
        except ConnectionError:
            self._lost(session)
        finally:
            if session == self._session:
                self._polling = None

    def pushed(self, incarnation: str) -> int:
        """How many of this life's socket messages have arrived."""
        return self._pushed if incarnation == self._incarnation else 0

    async def polled(self) -> None:
        """Returns when the answer to a standing request has arrived, or the channel closes."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._polled.append(future)
        await future

    def _tell_polled(self) -> None:
        polled, self._polled = self._polled, []
        for future in polled:
            if not future.done():
                future.set_result(None)

    # -- failure --------------------------------------------------------------------------------

    def _lost(self, session: int) -> None:
        """The session is over; what has no reply is sent again in the next."""
        if session == self._session and not self.closed:
            self._connected = False
            if self._waiting or self.sockets:
                self._connect()

    def _connect(self) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = self._host.spawn(self._connect_until_answered())

    async def _connect_until_answered(self) -> None:
        while not self.closed:
            await self._host.alive()
            if self.closed:
                return
            self._begin_session()
            batch = self._next_batch()
            session = self._session
            try:
                replies = await self._ask(batch)
            except ConnectionError:
                replies = Replies([], stale=True)
            if session != self._session:
                return
            if not replies.stale:
                self._connected = True
                self._arrived(replies, batch)
                self._flush()
                return
            self._acks.extend(batch.acks)
            await asyncio.sleep(0)

    def _begin_session(self) -> None:
        self._session += 1
        self._index = 0
        self._under_way = 0
        self._late = set()
        self._polling = None
        self._sockets_told = False
        self._resent_until = self._number
        self._queue = deque(waiting.call for waiting in self._waiting.values())
        self._cancels = [waiting.call for waiting in self._waiting.values() if waiting.cancelled]
        self._credits = {
            number: waiting.credit for number, waiting in self._waiting.items() if waiting.credit
        }

    def close(self) -> None:
        """The process is gone: no one is told anything any more. Calls without a reply fail with
        Unavailable."""
        self.closed = True
        self._connected = False
        self._session += 1
        self.sockets = set()
        self._queue.clear()
        self._credits.clear()
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.replied(Unavailable("the host of this test was closed before it answered"))
        self._tell_polled()
