"""The caller's end of a channel: order, repetitions, and what has no reply yet.

The other end is `objects.host_channel`. This one numbers calls and batches, keeps every call until
its reply is there, and says which replies have arrived; it knows nothing of how bytes travel. That
is for those who make it whole: `runtime.channel` over Ray and Unix sockets, and `testing.channel`
in one process, where it can be watched and its answers lost.

Calls travel in batches: those made while a batch is under way go together in the next. Replies come
with the answer to their batch, or, where a call takes long, over a standing request (which also
brings socket messages to gateways).

States: CONNECTED → (any failure, or `stale`) → CONNECTING → CONNECTED. Connecting begins a new
session: all calls without a reply are sent again, in their order and with their ids, so the host
answers from what it remembers or from the journal and runs none twice. They may need several
batches: one whose reply comes before its turn is not sent again, for with the acknowledgement of
the reply the host forgets the call. Nor are they where this process stood still for long
(`objects.contact`).

Streams: OPENED and items come before the reply of a call, in order. A call of which items have come
is sent again with their number, so that a host which does not have it any more ends the stream.

All of it lives on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from rayobjects.clock import Clock
from rayobjects.errors import Cancelled, Overloaded, RayObjectsError, Unavailable
from rayobjects.limits import CHANNEL_CALLS_MAX
from rayobjects.messages import (
    OPENED,
    REDIRECT,
    Batch,
    Call,
    Poll,
    Push,
    Replies,
    Reply,
    decode_replies,
    encode,
)
from rayobjects.objects.contact import Contact
from rayobjects.objects.reading import opened
from rayobjects.objects.unsent import Unsent

logger = logging.getLogger("rayobjects")

BATCHES_UNDER_WAY_MAX = 2
"""One is being worked on while the next is on its way; more would only make batches smaller."""

TAKEN_BACK = -1
"""The number of a call that its caller has taken back while it was with no host: while its class
was looked up, or the object that makes it waited for the disk, or it was to follow its object."""

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


class CallerChannel:
    """The channel of one process to one host, without what carries it.

    Args:
        id: names the process; a gateway's is also its gateway id.
        host: names the host, for people.

    Attributes:
        sockets: (class, name, socket id) of what this gateway holds for the host.
        closed: nothing is sent any more.
    """

    FAILURES: tuple[type[Exception], ...] = (Exception,)
    """What `_deliver` and `_ask` may raise: the session is over."""

    def __init__(self, id: str, host: str, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.id = id
        self.host = host
        self.sockets: set[tuple[str, str, str]] = set()
        self.closed = False
        self._loop = loop
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
        self._queue = Unsent()
        self._acks: list[int] = []
        self._credits: dict[int, int] = {}
        self._cancels: dict[int, None] = {}
        self._late: set[int] = set()
        self._polling: asyncio.Task[None] | None = None
        self._incarnation = ""
        self._pushed = 0
        self._sockets_told = False
        self._told_before = False
        self._contact = Contact(clock)
        self._begun_at = self._contact.now()

    # -- what carries it ------------------------------------------------------------------------

    async def _deliver(self, body: bytes) -> bytes:
        """Brings a batch to the host; returns its answer."""
        raise NotImplementedError

    async def _ask(self, body: bytes) -> bytes:
        """Brings a standing request to the host; returns its answer, which may take POLL_S."""
        raise NotImplementedError

    async def _connect_until_answered(self) -> None:
        """Begins sessions until the host has answered in one (`_begin_session`, `_next_batch`,
        `_answered`), or until it is no use."""
        raise NotImplementedError

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine in the background."""
        raise NotImplementedError

    def _next_number(self) -> int:
        """The number of the next call; larger than those before."""
        return self._number + 1

    @property
    def _takes_pushes(self) -> bool:
        """Whether it is a gateway's."""
        return False

    def _take_push(self, push: Push) -> None:
        """A socket message has come."""

    def _take_unknown(self, sockets: list[tuple[str, str, str]]) -> None:
        """Sockets that no object of the host knows."""

    def _session_ended(self) -> None:
        """What carried the session is needed no more."""

    def _polled(self) -> None:
        """The answer to a standing request has arrived."""

    def _raised(self, error: Exception) -> None:
        """Whoever takes a reply or a message has raised: a fault, but not of those whose replies
        came with it, nor of the session."""
        logger.error("a reply of the host %s could not be taken", self.host, exc_info=error)

    def _tell(self, replied: Replied, outcome: Reply | RayObjectsError) -> None:
        try:
            replied(outcome)
        except Exception as error:
            self._raised(error)

    # -- calls ----------------------------------------------------------------------------------

    def send(self, call: Call, replied: Replied, *, keep: bool = False) -> int:
        """Sends a call; `replied(reply or error)` follows. Returns the call's number, 0 if it was
        refused.

        Args:
            keep: the host must not forget the reply until `acknowledge` is called.
        """
        if self.closed:
            replied(self._closed_error())
            return 0
        if len(self._waiting) >= CHANNEL_CALLS_MAX:
            replied(
                Overloaded(
                    f"{CHANNEL_CALLS_MAX:,} calls to the host {self.host} wait for their replies: "
                    "await some before you send more"
                )
            )
            return 0
        self._number = call.number = self._next_number()
        self._waiting[call.number] = _Waiting(call, replied, keep)
        self._queue.append(call)
        self._flush_soon()
        return call.number

    def _flush_soon(self) -> None:
        if not self._flush_due and self._under_way < BATCHES_UNDER_WAY_MAX:
            # At the end of this tick, so that the calls of one tick travel together.
            self._flush_due = True
            self._loop.call_soon(self._flush)

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
            if call.number > self._resent_until:  # else it is among those that are sent again
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
    def unanswered(self) -> int:
        """How many calls have no reply yet."""
        return len(self._waiting)

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
            self._spawn(self._send_batch(self._next_batch(), self._session))

    def _next_batch(self) -> Batch:
        self._contact.look(self._sent_until)
        calls = self._queue.take(self._waiting)
        if calls and calls[-1].number > self._sent_until:
            self._sent_until = calls[-1].number
        acks, self._acks = self._acks, []
        # They are in the order of their numbers: one that was sent before comes first.
        resent = bool(calls) and calls[0].number <= self._resent_until
        credits, self._credits = list(self._credits.items()), {}
        batch = Batch(self.id, self._session, self._index, calls, acks, resent, credits)
        if self._cancels:
            batch.cancels = self._cancelled()
        self._index += 1
        return batch

    def _cancelled(self) -> list[tuple[int, str, str]]:
        """Those of calls that are not in the queue any more: they come behind their calls."""
        cancels, self._cancels = self._cancels, {}
        unsent = self._queue.numbers()
        self._cancels = {number: None for number in cancels if number in unsent}
        calls = [
            waiting.call
            for number in cancels
            if number not in unsent and (waiting := self._waiting.get(number)) is not None
        ]
        return [(call.number, call.class_name, call.name) for call in calls]

    async def _send_batch(self, batch: Batch, session: int) -> None:
        asked_at = self._contact.now()
        try:
            answer = await self._deliver(encode(batch))
        except self.FAILURES:
            self._not_taken(batch)
            self._lost(session)
            return
        if session != self._session:
            self._not_taken(batch)  # perhaps; to say so twice does no harm
            return
        self._under_way -= 1
        replies = decode_replies(answer)
        if replies.stale:
            self._not_taken(batch)
            self._lost(session)
            return
        self._contact.answered(asked_at)
        self._arrived(replies, batch)
        if self._has_something:
            self._flush()

    def _not_taken(self, batch: Batch) -> None:
        """The host has not taken a batch: what it acknowledged goes with another."""
        self._acks.extend(batch.acks)

    # -- replies --------------------------------------------------------------------------------

    def _answered(self, replies: Replies, batch: Batch) -> None:
        """The host has answered to the first batch of a session."""
        self._connected = True
        self._contact.answered(self._begun_at)
        self._arrived(replies, batch)
        self._flush()

    def _arrived(self, replies: Replies, batch: Batch | None) -> None:
        if replies.incarnation != self._incarnation:
            self._incarnation, self._pushed = replies.incarnation, 0
        for reply in replies.replies:
            if reply.status >= OPENED:
                try:
                    self._streamed(reply)
                except Exception as error:
                    self._raised(error)
                continue
            waiting = self._waiting.pop(reply.number, None)
            if waiting is None:
                continue
            if not waiting.keep:
                self._acks.append(reply.number)
            self._late.discard(reply.number)
            try:
                waiting.replied(reply)
            except Exception as error:
                self._raised(error)
        if batch is not None and replies.late:
            self._late.update(call.number for call in batch.calls if call.number in self._waiting)
        for push in replies.pushes:
            try:
                self._take_push(push)
            except Exception as error:
                self._raised(error)
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
            self._polling = self._spawn(self._poll(self._session))

    async def _poll(self, session: int) -> None:
        try:
            while session == self._session and (self._late or self.sockets):
                poll = Poll(self.id, session, self._pushed, self._incarnation)
                if not self._sockets_told and self._takes_pushes:
                    poll.sockets = sorted(self.sockets)
                asked_at = self._contact.now()
                answer = await self._ask(encode(poll))
                if session != self._session:
                    return
                replies = decode_replies(answer)
                if replies.stale:
                    self._lost(session)
                    return
                self._contact.answered(asked_at)
                self._sockets_told = not replies.tell
                if replies.unknown and self._told_before:
                    self._take_unknown(replies.unknown)
                self._told_before = True  # the first time they are those that are being opened
                self._arrived(replies, None)
                if replies.incarnation == self._incarnation:
                    self._pushed = max(self._pushed, replies.pushed)
                self._polled()
        except self.FAILURES:
            self._lost(session)
        finally:
            if session == self._session:
                self._polling = None

    # -- failure --------------------------------------------------------------------------------

    def _lost(self, session: int) -> None:
        """The session is over; what has no reply is sent again in the next."""
        if session == self._session and not self.closed:
            self._connected = False
            self._session_ended()
            self._under_way = 0
            self._session += 1  # what is still under way belongs to the session that ended
            if self._waiting or self.sockets:
                self._connect()

    def _connect(self) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = self._spawn(self._connect_until_answered())

    def _begin_session(self) -> None:
        self._session += 1
        self._index = 0
        self._contact.look(self._sent_until)
        self._begun_at = self._contact.now()
        if self._contact.forgotten_until:
            self._fail_forgotten(self._contact.forgotten_until)
        self._resent_until = self._number
        self._under_way = 0
        self._late = set()
        self._polling = None
        self._sockets_told = False
        self._queue.begin_again(
            [(number, waiting.call) for number, waiting in self._waiting.items()]
        )
        self._credits = {
            number: waiting.credit for number, waiting in self._waiting.items() if waiting.credit
        }
        self._cancels = {
            number: None for number, waiting in self._waiting.items() if waiting.cancelled
        }

    def _fail_forgotten(self, until: int) -> None:
        """The host may have forgotten these calls, and must not run them again."""
        error = Unavailable(
            f"this process stood still for so long that the host {self.host} may have forgotten "
            "the call: it may have taken effect, so look before you call again"
        )
        waiting = self._waiting
        # The replies of objects' calls are kept for days.
        gone = [n for n, each in waiting.items() if n <= until and not each.call.held]
        for number in gone:
            self._tell(waiting.pop(number).replied, error)

    def _fail_waiting(self, outcome: Reply | RayObjectsError, *, resent_only: bool = False) -> None:
        """Ends the calls that wait with an error, or redirects them; a new session must follow.

        Args:
            resent_only: not those that were made since this session began.
        """
        waiting = self._waiting
        upto = self._resent_until if resent_only else self._number
        self._waiting = {n: each for n, each in waiting.items() if n > upto}
        self._queue.begin_again([])
        self._credits.clear()
        self._cancels.clear()
        for number, each in waiting.items():
            if number <= upto:
                self._tell(each.replied, outcome)

    def close(self) -> None:
        """Ends the channel; calls without a reply fail with Unavailable."""
        self.closed = True
        self._connected = False
        self._session += 1
        self._session_ended()
        self._fail_waiting(self._closed_error())

    def _closed_error(self) -> RayObjectsError:
        return shut_down()


def shut_down() -> Unavailable:
    """The error for a call of a client that has been, or is being, shut down."""
    return Unavailable("the client was shut down: call ro.init() again")


def taken_back(call: Call) -> Cancelled:
    """The error for a call that its caller has taken back before it was sent."""
    return Cancelled(
        f"the call to {call.class_name}/{call.name} was cancelled by its caller, and never sent"
    )


def _replied_to_cancelled(call: Call, replied: Replied, outcome: Reply | RayObjectsError) -> None:
    """One that was taken back, and is hosted elsewhere by now, does not go there."""
    redirected = isinstance(outcome, Reply) and outcome.status == REDIRECT
    replied(taken_back(call) if redirected else outcome)
