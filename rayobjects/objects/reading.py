"""Streams: the reader's end.

A call that is answered with OPENED is a stream. From then on its outcomes (items, and the reply
that ends it) go to a `Reading`, on the event loop of the router that brings them; whoever reads may
be on another loop or thread. The reader tells how far it has read, so that the method does not run
far ahead, and at last that it reads no more: when its `async for` ends by `break` or an error, or
it is forgotten. So a stream that nobody can read any more does not hold its object:

    Response ── until it is read ──→ Unread ──→ Reading ←── channel
    StreamReader ── while it is ──────────────────↑

The channel holds the `Reading` only; when the one on the left is dropped, the stream is closed.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from rayobjects.errors import InvalidCall, RayObjectsError, from_wire, misuse
from rayobjects.limits import STREAM_BYTES_AHEAD_MAX, STREAM_ITEMS_AHEAD_MAX
from rayobjects.messages import END, ERROR, ITEM, OK, OPENED, PICKLE, Reply, decode_count
from rayobjects.storage import values

T = TypeVar("T")

Outcome = Reply | RayObjectsError
Replied = Callable[[Outcome], None]


class Opened(Reply):
    """A stream begins: an outcome of a call, after which more follow.

    Attributes:
        credit: tells the host how far the items are read (-1: no more will be); on the router's
            loop.
        take: set by whoever reads: gets all outcomes that follow. If nobody does, they are
            dropped.
    """

    credit: Any = None
    take: Any = None


def opened(number: int, credit: Callable[[int], None]) -> Opened:
    """The outcome with which a stream begins."""
    return Opened(number, OPENED, b"", 0, credit)


class Router(Protocol):
    """What brings the outcomes."""

    loop: asyncio.AbstractEventLoop

    def runs_here(self) -> bool: ...

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None: ...


class Following:
    """Takes the outcomes of a call that is answered in this process, in place of a channel.

    Args:
        credit: as of `Opened`.
    """

    __slots__ = ("_credit", "_replied")

    def __init__(self, replied: Replied, credit: Callable[[int], None]) -> None:
        self._replied = replied
        self._credit = credit

    def __call__(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reply) and outcome.status == OPENED:
            begins = opened(outcome.number, self._credit)
            self._replied(begins)
            self._replied = begins.take or _drop
        else:
            self._replied(outcome)


def _drop(_: object) -> None:
    pass


class Reading:
    """A stream that is open, or has ended, and the items that have not been read.

    Attributes:
        end: the outcome that ended it; None while it is open.
        count: how many items have arrived.
    """

    __slots__ = (
        "_bytes",
        "_closed",
        "_credit",
        "_items",
        "_read",
        "_router",
        "_told",
        "_waiter",
        "count",
        "end",
    )

    def __init__(self, router: Router, begins: Opened) -> None:
        self._router = router
        self._credit: Callable[[int], None] = begins.credit
        self._items: deque[bytes] = deque()
        self._read = 0
        self._told = 0
        self._bytes = 0
        self._closed = False
        self._waiter: Any = None
        self.count = 0
        self.end: Outcome | None = None
        begins.take = self._take

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reply) and outcome.status == ITEM:
            self.count = outcome.sequence
            self._items.append(outcome.body)
        else:
            self.end = outcome
        # Here the item comes first and the waiter second, in `_wait` the other way round: one of
        # the two threads sees the other.
        waiter, self._waiter = self._waiter, None
        if type(waiter) is tuple:
            self._router.wake(*waiter)
        elif waiter is not None:
            waiter.set()

    def take(self) -> bytes | None:
        """The next item; None if there is none yet, or no more."""
        try:
            body = self._items.popleft()
        except IndexError:
            return None
        self._read += 1
        self._bytes += len(body)
        if (
            self._read - self._told >= STREAM_ITEMS_AHEAD_MAX // 2
            or self._bytes >= STREAM_BYTES_AHEAD_MAX // 2
        ):
            self._told, self._bytes = self._read, 0
            self._tell(self._read)
        return body

    @property
    def ended(self) -> bool:
        """Whether no more items will come; to be asked before `take`, which has the last ones."""
        return self.end is not None

    async def wait(self) -> None:
        """Returns when there is an item or the end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiter = (loop, future)
        if not self._items and self.end is None:
            await future

    def wait_blocking(self) -> None:
        """The same for plain code."""
        event = threading.Event()
        self._waiter = event
        if not self._items and self.end is None:
            event.wait()

    def close(self) -> None:
        """Reads no more; from any thread. Does nothing after the end."""
        if not self._closed and self.end is None:
            self._closed = True
            self._tell(-1)

    def _tell(self, upto: int) -> None:
        if self._router.runs_here():
            self._credit(upto)
            return
        try:
            self._router.loop.call_soon_threadsafe(self._credit, upto)
        except RuntimeError:
            pass  # the router is gone, and the host will notice

    def check_end(self) -> None:
        """Raises RayObjectsError if the stream did not come to its end."""
        if isinstance(self.end, RayObjectsError):
            raise self.end
        if self.end is None:
            return
        if self.end.status == ERROR:
            raise from_wire(self.end.body)
        if self.end.status == END and decode_count(self.end.body) != self.count:
            raise InvalidCall(
                f"{decode_count(self.end.body):,} items were yielded, and {self.count:,} have come "
                "here: a later caller with the same id has read the others",
                status=410,
            )


class Unread:
    """The outcome of a call that is a stream nobody reads yet."""

    __slots__ = ("_reading",)

    def __init__(self, reading: Reading) -> None:
        self._reading: Reading | None = reading

    def take(self) -> Reading | None:
        """The stream, for the first who asks."""
        reading, self._reading = self._reading, None
        return reading

    def __del__(self) -> None:
        if self._reading is not None:
            self._reading.close()


class Answer(Protocol):
    """A response, as its reader needs it."""

    _encoding: int
    _outcome: Any
    _router: Any

    @property
    def _target(self) -> str: ...
    def _wait(self) -> Any: ...
    def _wait_blocking(self, timeout_s: float | None) -> None: ...
    def _awaited(self) -> AbstractContextManager[None]: ...


class StreamReader(Generic[T]):
    """The items of a stream, as they come: `async for item in stub.watch.remote()`.

    One that is dropped closes the stream: the method is cancelled, and rolled back.
    """

    __slots__ = ("_reading", "_response")

    def __init__(self, response: Answer) -> None:
        self._response = response
        self._reading: Reading | None = None

    # -- in async code ------------------------------------------------------------------------

    def __aiter__(self) -> StreamReader[T]:
        return self

    async def __anext__(self) -> T:
        response = self._response
        if self._reading is None:
            await _Waited(response)
            self._reading = _reading_of(response)
        reading = self._reading
        while True:
            ended = reading.ended
            body = reading.take()
            if body is not None:
                return self._decoded(body)
            if ended:
                reading.check_end()
                raise StopAsyncIteration
            with response._awaited():
                await reading.wait()

    async def aclose(self) -> None:
        """Closes the stream before its end."""
        self.close()

    # -- in plain code ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        response = self._response
        if response._router.must_not_wait():
            raise misuse(
                f"{response._target}: a plain `for` would wait for ever here, because it holds up "
                "the event loop that brings the items: use `async for`"
            )
        if self._reading is None:
            response._wait_blocking(None)
            self._reading = _reading_of(response)
        reading = self._reading
        while True:
            ended = reading.ended
            body = reading.take()
            if body is not None:
                return self._decoded(body)
            if ended:
                reading.check_end()
                raise StopIteration
            with response._awaited():
                reading.wait_blocking()

    def close(self) -> None:
        """Closes the stream before its end."""
        if self._reading is not None:
            self._reading.close()

    def __del__(self) -> None:
        self.close()

    def _decoded(self, body: bytes) -> T:
        response = self._response
        item: T
        try:
            item = values.load(body) if response._encoding == PICKLE else json.loads(body)
        except Exception as error:
            self.close()
            raise InvalidCall(
                f"an item of {response._target} could not be unpickled here "
                f"({type(error).__name__}: {error}): install the same packages as on the hosts, or "
                "yield plain data"
            ) from error
        return item


class _Waited:
    """Awaits that a response has an outcome."""

    def __init__(self, response: Answer) -> None:
        self._response = response

    def __await__(self) -> Any:
        return self._response._wait()


def _reading_of(response: Answer) -> Reading:
    """The stream that a response has turned out to be.

    Raises:
        InvalidCall: it is none, or is being read already.
        RayObjectsError: the call failed.
    """
    outcome = response._outcome
    if isinstance(outcome, Unread):
        reading = outcome.take()
        if reading is None:
            raise misuse(f"{response._target}: a stream can be read once: call it again")
        return reading
    if isinstance(outcome, RayObjectsError):
        raise outcome
    if outcome.status == END:
        return _ended(response._router, outcome)
    if outcome.status == OK:
        raise misuse(
            f"{response._target} is no generator and returns one value: `await` the response"
        )
    raise from_wire(outcome.body)


def _ended(router: Router, end: Reply) -> Reading:
    """A stream without items, which had ended when it was asked for again."""
    reading = Reading(router, opened(0, _drop))
    reading.end = end
    return reading


def not_awaited(target: str, unread: Unread | None) -> InvalidCall:
    """Somebody wants the one result of a stream: closes it, for nobody else will."""
    reading = unread.take() if unread is not None else None
    if reading is not None:
        reading.close()
    return misuse(
        f"{target} is a generator, and its items come as a stream: read it with "
        f"`async for item in …remote(…)`, or `for` in plain code"
    )


def ask(router: Router, send: Callable[[Replied], None]) -> asyncio.Future[Reply | Reading]:
    """Sends a call from the router's own loop; the future brings the reply, or the stream that it
    has opened.

    Args:
        send: sends it; is given what takes the outcomes.
    """
    future: asyncio.Future[Reply | Reading] = router.loop.create_future()

    def replied(outcome: Outcome) -> None:
        if isinstance(outcome, Opened):
            reading = Reading(router, outcome)
            if future.done():
                reading.close()
            else:
                future.set_result(reading)
        elif future.done():
            pass
        elif isinstance(outcome, Reply):
            ended = outcome.status == END
            future.set_result(_ended(router, outcome) if ended else outcome)
        else:
            future.set_exception(outcome)
            future.exception()  # its owner may have gone

    send(replied)
    return future
