"""Streams: methods that are generators, and hand out their items while they run. The host's end.

A stream is a call like any other: it has the object's turn unless it is marked concurrent, and what
it writes is committed at its end, with its id, or rolled back if it does not come to it. Beside its
reply it has items, numbered from 1:

    OPENED     when the method begins: the caller must know that items follow
    ITEM …     each as soon as everything that the object had committed before is on disk
    END        the reply, with the number of items; or ERROR, after the items that came before

The reader acknowledges the items that it has read; the method runs at most STREAM_ITEMS_AHEAD_MAX
items and STREAM_BYTES_AHEAD_MAX bytes ahead of it, and then waits inside its `yield`. Items that
are not acknowledged are kept here, and sent again if the channel begins a new session: only the
end of this process ends a stream. When it dies

    before an item has arrived     the reader has seen nothing: the call is sent and run again;
    after that, before the end     nothing was written, and the items that the reader has seen would
    is on disk                     come again, or others: it gets Unavailable, never a restart. The
                                   channel says how many it has seen (`Call.seen`);
    after the end is on disk       the stored END has the number of items: a reader that has all of
                                   them is done, another one is told what it has missed.

A stream that has called other objects has an intent. Its reader is told that it was cut off, so the
run that follows from the intent ends it, as if it had raised: what it asked of others stays.

The reader may go away: it says so, or its process is silent for STREAM_SILENT_S. Then the method is
cancelled: a generator that waits in a `yield` is closed (GeneratorExit), one that awaits something
gets CancelledError there. Its `finally` blocks run, and what it wrote is rolled back.

Callers that take no stream get all items in one reply (WHOLE: a JSON array), or drop them (NOTHING:
schedules and `tell`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from rayobjects import messages
from rayobjects.errors import InvalidCall, Overloaded, RayObjectsError, Unavailable, to_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import (
    CALL_BYTES_MAX,
    STREAM_BYTES_AHEAD_MAX,
    STREAM_GRACE_S,
    STREAM_ITEM_BYTES_MAX,
    STREAM_ITEMS_AHEAD_MAX,
    STREAM_SILENT_S,
    STREAM_STALLED_S,
    STREAMS_MAX,
)
from rayobjects.messages import END, ERROR, ITEM, ITEMS, JSON, NOTHING, OK, OPENED, WHOLE, Call
from rayobjects.objects.commit import Respond
from rayobjects.objects.context import current_call
from rayobjects.objects.invocation import Invocation, called, encode_result
from rayobjects.objects.marks import THREAD
from rayobjects.storage import values
from rayobjects.storage.records import Finished

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.host_core import HostCore

Key = tuple[str, str, str]
"""Class, object name and call id."""

CLOSED_BY_READER = 499
"""The status of a call whose reader has gone; nobody sees it."""

_PLAIN = Invocation(called, (), {}, False)


def begin(
    activation: Activation, call: Call, invocation: Invocation, respond: Respond
) -> tuple[Invocation, Respond]:
    """What runs a generator method in its place, and takes the call's reply in place of `respond`.

    Raises:
        Overloaded: the host has too many streams.
    """
    stream = Stream(activation, call, invocation, respond)
    invocation = invocation._replace(function=stream.produce, is_async=True, blocking=False)
    rerun = bool(call.id) and activation.host.intents.begun(activation.id, call.id) is not None
    if call.takes == NOTHING or rerun:  # nobody reads it
        return invocation, respond
    activation.host.streams.open(stream)
    return invocation, stream.finish


class Stream:
    """One stream. It lives on the host's loop; the method may run on another one (the lane).

    Attributes:
        call: what opened it.
        activation: of its object.
        unread: (number, body) of the items that have left and are not acknowledged.
        afterwards: what waits for its end.
    """

    def __init__(
        self, activation: Activation, call: Call, invocation: Invocation, respond: Respond
    ) -> None:
        self.call = call
        self.activation = activation
        self.unread: deque[tuple[int, bytes]] = deque()
        self.afterwards: list[Callable[[], None]] = []
        self._respond = respond
        self._held: deque[tuple[int, bytes, int]] = deque()  # they wait for what is being synced
        self._gating = False
        self._final: tuple[int, bytes, int] | None = None
        self._cut: RayObjectsError | None = None
        # Where the method runs:
        self._function = invocation.function
        self._blocking = invocation.stream == THREAD
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = 0
        self._acknowledged = 0
        self._ahead: deque[int] = deque()
        self._bytes = 0
        self._whole: list[bytes] = []
        self._room: asyncio.Future[None] | None = None

    @property
    def key(self) -> Key:
        """What tells it from the host's others."""
        return self.call.class_name, self.call.name, self.call.id

    # -- where the method runs ----------------------------------------------------------------

    async def produce(self, *arguments: Any, **keywords: Any) -> tuple[int, bytes]:
        """Runs the method to its end; returns the reply's status and body.

        Raises:
            BaseException: what the method raised.
            InvalidCall: an item cannot be encoded, or is too large.
            Unavailable: this is a rerun after a crash, and the reader was told so.
        """
        context = current_call.get()
        assert context is not None
        if context.begun is not None and self.call.takes == ITEMS:
            context.begun.made.update(context.begun.steps)  # it makes none of them again
            raise cut_off(self.call)
        self._loop = asyncio.get_running_loop()
        if self._cut is not None:
            raise self._cut
        generator = await self._call(self._function, *arguments, **keywords)
        if hasattr(generator, "__await__"):  # a decorator made it a coroutine
            generator = await generator
        try:
            if hasattr(generator, "__aiter__"):
                async for item in generator:
                    await self._give(item)
            elif self._blocking:
                steps = iter(generator)
                while found := await self._call(_step, steps):
                    await self._give(found[0])
            else:
                for item in generator:
                    await self._give(item)
        finally:
            if hasattr(generator, "aclose"):
                await generator.aclose()
            elif hasattr(generator, "close"):
                await self._call(generator.close)
        return self._end()

    async def _call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if not self._blocking:
            return function(*arguments, **keywords)
        invocation = Invocation(function, arguments, keywords, True)
        return await self.activation.host.threads.run(invocation)

    async def _give(self, item: Any) -> None:
        """Takes an item of the method; returns when that may go on."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            await asyncio.sleep(0)  # where it is yet to come
            raise asyncio.CancelledError  # the method has caught it
        self._count += 1
        if self.call.takes == ITEMS:
            body = self._encoded(item)
            self._ahead.append(len(body))
            self._bytes += len(body)
            self._at_home(self._emit, ITEM, body, self._count)
            while self._is_ahead():
                await self._wait_for_room()
            return
        if self.call.takes == WHOLE:
            body = self._encoded(item)
            self._whole.append(body)
            self._bytes += len(body) + 1
            if self._bytes > CALL_BYTES_MAX:
                raise InvalidCall(
                    f"{self._target} yielded more than {CALL_BYTES_MAX:,} bytes, too much for one "
                    "reply: read it as a stream (over HTTP: Accept: text/event-stream)"
                )
        if not self._count % STREAM_ITEMS_AHEAD_MAX:
            await asyncio.sleep(0)  # nothing else here lets others run

    def _encoded(self, item: Any) -> bytes:
        body = encode_result(self.call, _PLAIN, item)[1]
        if len(body) > STREAM_ITEM_BYTES_MAX:
            raise InvalidCall(
                f"{self._target} yielded {len(body):,} bytes; an item has at most "
                f"{STREAM_ITEM_BYTES_MAX:,}: yield it in parts"
            )
        return body

    def _end(self) -> tuple[int, bytes]:
        call = self.call
        if call.takes == ITEMS:
            return END, messages.encode(self._count)
        if call.takes == NOTHING:
            return encode_result(call, _PLAIN, None)
        if call.encoding == JSON:
            return OK, b"[" + b",".join(self._whole) + b"]"
        return OK, values.dump([values.load(body) for body in self._whole])

    def _is_ahead(self) -> bool:
        return len(self._ahead) >= STREAM_ITEMS_AHEAD_MAX or self._bytes >= STREAM_BYTES_AHEAD_MAX

    async def _wait_for_room(self) -> None:
        """Waits until the reader has read something."""
        assert self._loop is not None
        stalled = InvalidCall(
            f"{self._target} was ended, because its reader took no item for {STREAM_STALLED_S:g} s",
            status=408,
        )
        self._room = self._loop.create_future()
        timer = self._loop.call_later(STREAM_STALLED_S, self._at_home, self.cut, stalled)
        try:
            await self._room
        finally:
            timer.cancel()
            self._room = None

    def _read(self, upto: int) -> None:
        """The reader has read the items up to this number."""
        while self._acknowledged < upto and self._ahead:
            self._acknowledged += 1
            self._bytes -= self._ahead.popleft()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _at_home(self, run: Callable[..., None], *arguments: Any) -> None:
        home = self.activation.host.loop
        if self._loop is home:
            run(*arguments)
        else:
            home.call_soon_threadsafe(run, *arguments)

    # -- at home, on the host's loop ------------------------------------------------------------

    def opened(self) -> None:
        """The method is about to begin."""
        self._emit(OPENED, b"", 0)

    def _emit(self, status: int, body: bytes, number: int) -> None:
        if self._final is not None:  # it was cut off, and the lane had gone on meanwhile
            return
        self._held.append((status, body, number))
        self._gate()

    def _gate(self) -> None:
        """Lets out what is held now, when it may be seen (guarantees 1 and 4)."""
        if not self._gating:
            self._gating = True
            self.activation.when_shown(partial(self._shown, len(self._held)))

    def _shown(self, count: int, error: RayObjectsError | None) -> None:
        self._gating = False
        if error is not None:
            self._held.clear()
        else:
            for _ in range(count):
                status, body, number = self._held.popleft()
                if status == ITEM:
                    self.unread.append((number, body))
                self._respond(status, body, number)
        if self._held:
            self._gate()
        elif self._final is not None:
            self._ended()

    def finish(self, status: int, body: bytes, sequence: int) -> None:
        """The call's reply; it follows the items."""
        self._final = (status, body, sequence)
        if not self._held:
            self._ended()

    def _ended(self) -> None:
        assert self._final is not None
        self.activation.host.streams.ended(self)
        self._respond(*self._final)
        for run in self.afterwards:
            run()

    def credit(self, upto: int) -> None:
        """The reader has read the items up to this number; -1: it reads no more."""
        if upto < 0:
            if self.call.takes == WHOLE and self.activation.host.is_shared(self.key):
                return  # others wait for the same reply
            self.cut(InvalidCall(f"the reader of {self._target} has gone", status=CLOSED_BY_READER))
            return
        while self.unread and self.unread[0][0] <= upto:
            self.unread.popleft()
        if self._loop is None or self._final is not None:
            return
        if self._loop is self.activation.host.loop:
            self._read(upto)
        else:
            self._loop.call_soon_threadsafe(self._read, upto)

    def cut(self, error: RayObjectsError) -> None:
        """Ends it before its end: the method is cancelled, and the reader gets the error."""
        if self._final is not None:
            return
        self._cut = self._cut or error
        if self._loop is not None:  # else it ends when it begins: such a task must not be cancelled
            call = self.call
            self.activation.host.cancel(ObjectId(call.class_name, call.name), call.id, error)

    @property
    def is_cut(self) -> bool:
        """Whether it is being ended before its end."""
        return self._cut is not None

    @property
    def _target(self) -> str:
        return f"{self.activation.shown}.{self.call.method}"


class Streams:
    """The open streams of one host."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._open: dict[Key, Stream] = {}

    def open(self, stream: Stream) -> None:
        """Tells the caller that a stream begins.

        Raises:
            Overloaded: there are too many.
        """
        if len(self._open) >= STREAMS_MAX:
            raise Overloaded(
                f"{STREAMS_MAX:,} streams are open at this host: close some, or try again later"
            )
        self._open[stream.key] = stream
        stream.opened()

    def of(self, call: Call) -> Stream:
        """The open stream of a call."""
        return self._open[call.class_name, call.name, call.id]

    def ended(self, stream: Stream) -> None:
        """It has its reply."""
        if self._open.get(stream.key) is stream:
            del self._open[stream.key]

    def credit(self, key: Key, upto: int) -> None:
        """A reader in this process has read so far."""
        stream = self._open.get(key)
        if stream is not None:
            stream.credit(upto)

    def taken_over(self, call: Call, again: Callable[[], None]) -> bool:
        """A call comes again whose stream is open: that has left its items to another reader, who
        has probably died. Ends it, and runs `again` then. Returns False where there is no such
        stream, or where both get its items in one reply."""
        stream = self._open.get((call.class_name, call.name, call.id))
        if stream is None or (stream.call.takes != ITEMS and not stream.is_cut):
            return False
        stream.afterwards.append(again)
        if not stream.is_cut:
            stream.cut(
                Unavailable(
                    f"{_target(call)} was called again with the same id, and the later caller "
                    "reads it"
                )
            )
        return True

    def outdated(self, activation: Activation) -> None:
        """An object is to move to a new version of its class: its streams have some time left."""

        def cut() -> None:
            self.cut("the class of its object has a new version", activation)

        if any(self._of(activation)):
            self._host.later(STREAM_GRACE_S, cut)

    def cut(self, why: str, activation: Activation | None = None) -> None:
        """Cuts off the streams of an activation, or all."""
        for stream in list(self._of(activation)):
            stream.cut(cut_off(stream.call, why))

    def _of(self, activation: Activation | None) -> Iterator[Stream]:
        for stream in self._open.values():
            if activation is None or stream.activation is activation:
                yield stream

    def sweep(self, now: float) -> None:
        """Ends the streams of processes that are silent.

        Args:
            now: the monotonic time, in seconds.
        """
        if not self._open:
            return
        started_at = self._host.gateways.started_at
        for channel in self._host.channels.values():
            if now - max(channel.heard_at, started_at) > STREAM_SILENT_S:
                channel.cut_streams(f"nothing was heard of its reader for {STREAM_SILENT_S:g} s")


def repeated(call: Call, finished: Finished) -> tuple[int, bytes, int]:
    """The answer to a call that is finished: (status, body, sequence). The items of a stream are
    not kept, so one that has not seen them all gets an error."""
    if finished.status == END:
        count = messages.decode_count(finished.reply)
        if call.takes != ITEMS and not count:
            body = b"[]" if call.encoding == JSON else values.dump([])
            return OK, body, finished.sequence
        if count != call.seen:
            error = InvalidCall(
                f"{_target(call)} has run to its end and has taken effect, but only {call.seen:,} "
                f"of its {count:,} items have arrived here, and they are not kept: use a new id to "
                "run it again",
                status=410,
            )
            return ERROR, to_wire(error, with_cause=False), 0
    return finished.status, finished.reply, finished.sequence


def cut_off(call: Call, why: str = "its host has ended") -> Unavailable:
    """The error for a reader whose stream does not come to its end."""
    return Unavailable(
        f"the stream of {_target(call)} was cut off, because {why}; what it wrote and had not "
        "committed was rolled back: read it again",
        details={"cut_off": True},
    )


def _target(call: Call) -> str:
    return f"{call.class_name}/{call.name}.{call.method}"


def _step(steps: Iterator[Any]) -> tuple[Any] | None:
    """The next item of a plain generator on a thread."""
    for item in steps:
        return (item,)
    return None
