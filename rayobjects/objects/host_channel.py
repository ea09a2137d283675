"""A host's end of one channel: order, repetitions, and replies that wait for their ride.

The other end numbers its calls, and its batches within a session. This end
    - takes a session's batches in order, whatever order Ray brings them in;
    - runs no call twice: a call that comes again in a later session is answered from
      `_unacknowledged` (this process has it running or has its reply), or from the journal (an
      earlier process had committed it);
    - answers a batch as soon as all of its calls are done, or after LATE_AFTER_S with those that
      are, as far as they fit into BATCH_BYTES_MAX; the others are late and follow over the standing
      request;
    - brings all that belongs to a stream (`streams`) over the standing request, of which there is
      one at a time: so items come in order. What was on its way when a session ended is sent again
      when the other end has named the call again in the next.

When this process dies, all of this is gone; the channel meets an end that does not know its
session (`stale`), begins a new one and sends again what was not answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from rayobjects.ids import ObjectId
from rayobjects.limits import BATCH_BYTES_MAX, CHANNEL_BATCHES_HELD_MAX, POLL_S
from rayobjects.messages import ITEM, OPENED, Batch, Call, Poll, Replies, Reply
from rayobjects.objects.streams import cut_off

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore
    from rayobjects.objects.streams import Stream

LATE_AFTER_S = 0.002
"""How long the answer to a batch waits for calls that are not done: a few syncs. Then the answer
goes without them, so that a slow call holds back nobody."""

LATE_EXTENSIONS_MAX = 5
"""How often it waits so long again while the disk is at work: where a sync takes milliseconds, most
calls wait for it and not for a slow method, and late replies cost a Ray call of their own."""

_RUNNING = Reply(-1, 0, b"")
_LATE = Reply(-2, 0, b"")


class HostChannel:
    """The host's end of the channel of one process."""

    def __init__(self, core: HostCore, channel: str, session: int) -> None:
        self._core = core
        self.channel = channel
        self.session = session
        self.heard_at = core.clock.monotonic()
        self.given_up = False
        """A gateway's that was silent for so long that its sockets were closed."""
        self._held_before: set[tuple[str, str, str]] = set(core.gateways.sockets.get(channel, ()))
        self._next_index = 0
        self._held: dict[int, tuple[Batch, asyncio.Future[None]]] = {}
        self._unacknowledged: dict[int, Reply] = {}
        self._ids: dict[int, str] = {}
        self._ready: list[Reply] = []
        self._streams: dict[int, Stream] = {}
        self._streamed: deque[Reply] = deque()
        self._quiet: set[int] = set()  # streams that this session has not named yet
        self._closed: set[int] = set()  # calls whose reader went before they began
        self._running = 0
        self._late = 0
        self._deliveries: list[asyncio.Future[None]] = []
        self._poll: asyncio.Future[None] | None = None
        self._gone = False

    # -- calls in -------------------------------------------------------------------------------

    async def deliver(self, batch: Batch) -> Replies:
        """Takes a batch; returns the replies that are ready."""
        if batch.session > self.session:
            self._begin(batch.session)
        if batch.session < self.session or self._gone:
            return Replies([], stale=True)
        if batch.index > self._next_index:
            if len(self._held) >= CHANNEL_BATCHES_HELD_MAX:
                return Replies([], stale=True)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._held[batch.index] = (batch, turn)
            await turn
            if batch.session < self.session or self._gone:
                return Replies([], stale=True)
        elif batch.index < self._next_index:
            return Replies([], stale=True)
        self._take(batch)
        self._next_index += 1
        held = self._held.pop(self._next_index, None)
        if held is not None:
            held[1].set_result(None)
        if self._running:
            await self._done_or_late()
        return self._answer(batch.session)

    def _begin(self, session: int) -> None:
        """The other end begins anew: it will send again whatever it has no answer to."""
        self.session = session
        self._next_index = 0
        self._ready = []
        self._streamed.clear()
        self._quiet = set(self._streams)
        self._held_before = set(self._core.gateways.sockets.get(self.channel, ()))
        held, self._held = self._held, {}
        for _, turn in held.values():
            turn.set_result(None)
        self._wake_deliveries()
        self.wake()

    def _take(self, batch: Batch) -> None:
        core, channel = self._core, self.channel
        for number in batch.acks:
            reply = self._unacknowledged.pop(number, None)
            self._streams.pop(number, None)
            if reply is None or not reply.sequence:
                self._ids.pop(number, None)
                continue
            id = self._ids.pop(number, None) or f"{channel}:{number}"
            if not id.startswith("key:"):
                core.ledger.forget(id)
        for id, class_name, name in batch.forget:
            core.forgetting.add(ObjectId(class_name, name), id)
        for call in batch.calls:
            number = call.number
            known = self._unacknowledged.get(number)
            if known is not None:
                if number in self._streams:
                    self._stream_again(number, known)
                elif known is not _RUNNING and known is not _LATE:
                    self._ready.append(known)
                continue
            self._unacknowledged[number] = _RUNNING
            self._running += 1
            explicit = bool(call.id)
            if explicit:
                self._ids[number] = call.id
            else:
                call.id = f"{channel}:{number}"
            core.submit(call, _Reply(self, call), explicit, batch.resent)
        for number, class_name, name in batch.cancels:
            if (known := self._unacknowledged.get(number)) is _RUNNING or known is _LATE:
                id = self._ids.get(number) or f"{channel}:{number}"
                core.cancel_for_caller(ObjectId(class_name, name), id)
        for number, upto in batch.credits:
            stream = self._streams.get(number)
            if stream is not None:
                stream.credit(upto)
            elif upto < 0 and number in self._unacknowledged:
                self._closed.add(number)

    def reply(self, call: Call, status: int, body: bytes, sequence: int) -> None:
        """A call is done, or its stream goes on, and everything that it saw is on disk."""
        if self._gone:
            return
        number = call.number
        reply = Reply(number, status, body, sequence)
        if status >= OPENED:
            if status == OPENED:
                self._opened(call)
            self._stream(reply)
            return
        if self._closed:
            self._closed.discard(number)
        if self._unacknowledged.get(number) is _LATE:
            self._late -= 1
            self._unacknowledged[number] = reply
            if number in self._streams:
                self._stream(reply)
            else:
                self._ready.append(reply)
                self.wake()
            return
        self._unacknowledged[number] = reply
        self._ready.append(reply)
        self._running -= 1
        if not self._running:
            self._wake_deliveries()

    # -- streams --------------------------------------------------------------------------------

    def _opened(self, call: Call) -> None:
        """A call has turned out to be a stream: its reply is late, and its items are, too."""
        stream = self._streams[call.number] = self._core.streams.of(call)
        if self._unacknowledged.get(call.number) is _RUNNING:
            self._unacknowledged[call.number] = _LATE
            self._late += 1
            self._running -= 1
            if not self._running:
                self._wake_deliveries()
        if call.number in self._closed:
            self._closed.discard(call.number)
            stream.credit(-1)

    def _stream(self, reply: Reply) -> None:
        if reply.number not in self._quiet:
            self._streamed.append(reply)
            self.wake()

    def _stream_again(self, number: int, known: Reply) -> None:
        """A new session names the call of a stream: whatever the other end may lack."""
        self._quiet.discard(number)
        self._streamed.append(Reply(number, OPENED, b""))
        for item, body in self._streams[number].unread:
            self._streamed.append(Reply(number, ITEM, body, item))
        if known is not _RUNNING and known is not _LATE:
            self._streamed.append(known)

    def _page(self) -> list[Reply]:
        """What streams have for the standing request."""
        page, size = list[Reply](), 0
        while self._streamed and size < BATCH_BYTES_MAX:
            page.append(self._streamed.popleft())
            size += len(page[-1].body)
        return page

    def cut_streams(self, why: str) -> None:
        """Ends all streams that the other end reads."""
        for stream in list(self._streams.values()):
            stream.cut(cut_off(stream.call, why))

    # -- replies out ----------------------------------------------------------------------------

    async def _done_or_late(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._deliveries.append(waiter)
        for _ in range(LATE_EXTENSIONS_MAX):
            timer = loop.call_later(LATE_AFTER_S, _resolve, waiter)
            await waiter
            timer.cancel()
            if not self._running or not self._core.ledger.busy:
                break
            if waiter in self._deliveries:
                self._deliveries.remove(waiter)
            waiter = loop.create_future()
            self._deliveries.append(waiter)
        if waiter in self._deliveries:
            self._deliveries.remove(waiter)
        if self._running:
            self._declare_late()

    def _declare_late(self) -> None:
        for number, reply in self._unacknowledged.items():
            if reply is _RUNNING:
                self._unacknowledged[number] = _LATE
        self._late += self._running
        self._running = 0
        self._wake_deliveries()

    def _wake_deliveries(self) -> None:
        waiters, self._deliveries = self._deliveries, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _answer(self, session: int) -> Replies:
        if self._gone or session != self.session:
            return Replies([], stale=True)  # the replies belong to the session that came after
        ready, self._ready = self._ready, []
        if sum([len(reply.body) for reply in ready]) > BATCH_BYTES_MAX:
            ready, self._ready = _page(ready)
        # What does not fit is late, too: it comes over the standing request.
        late = self._late + len(self._ready) + bool(self._streamed)
        return Replies(ready, late, self._core.incarnation)

    async def poll(self, poll: Poll) -> Replies:
        """Keeps a standing request until there is something for it, for POLL_S at most."""
        if self._gone or poll.session != self.session:
            return Replies([], stale=True)
        outbox = self._core.gateways.outbox_for_poll(poll)
        unknown: list[tuple[str, str, str]] = []
        if poll.sockets is not None:
            self.given_up = False
            before, self._held_before = self._held_before, set()
            unknown = self._core.gateways.sockets_told(self.channel, before, poll.sockets)
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(None)  # the other end has given up on that one
        if not (self._ready or self._streamed or len(outbox or ()) or unknown or self.given_up):
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            self._poll = waiter
            timer = loop.call_later(POLL_S, self.wake)
            await waiter
            timer.cancel()
            if self._poll is not waiter:
                return Replies([], self._late, self._core.incarnation, [], poll.pushed)
            self._poll = None
            outbox = self._core.gateways.outboxes.get(self.channel)
        answer = self._answer(poll.session)
        if not answer.stale:
            answer.tell, answer.unknown = self.given_up, unknown
            answer.replies.extend(self._page())
        if outbox is not None and not answer.stale:
            answer.pushes, answer.pushed = outbox.page()
        return answer

    def wake(self) -> None:
        """Something is there for the standing request."""
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(None)

    def abandon(self) -> None:
        """The core is dropped: every open request says `stale`, and the other end begins anew."""
        self._gone = True
        self._begin(self.session)


def _page(replies: list[Reply]) -> tuple[list[Reply], list[Reply]]:
    """Those that fit into one answer, at least one, and the rest."""
    size = 0
    for number, reply in enumerate(replies):
        size += len(reply.body)
        if number and size > BATCH_BYTES_MAX:
            return replies[:number], replies[number:]
    return replies, []


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Reply:
    """Sends one call's reply into its channel."""

    __slots__ = ("_call", "_channel")

    def __init__(self, channel: HostChannel, call: Call) -> None:
        self._channel = channel
        self._call = call

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        self._channel.reply(self._call, status, body, sequence)
