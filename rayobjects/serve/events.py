"""Streams over HTTP: as server-sent events, or whole, as a JSON array.

    POST …/watch, Accept: text/event-stream     data: 1

                                                data: 2

                                                event: end
                                                data: {"items":2}

Each item is an event; a stream that fails ends with `event: error`, whose data is the problem that
would else be the answer. So a client that has seen neither `end` nor `error` knows that it lacks
something. A comment every EVENT_PING_S seconds keeps proxies from taking the connection for dead.

Without that header the items come as one JSON array, when the stream has ended: whoever does not
know that a method is a generator gets what a list would look like, and an Idempotency-Key holds for
it as for any other reply. It is the host that collects them.

Either way a client that goes away closes the stream, unlike a call, since nobody else could end it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from rayobjects.errors import RayObjectsError, info_from_wire
from rayobjects.limits import EVENT_PING_S
from rayobjects.messages import ERROR, Reply
from rayobjects.objects.reading import Reading
from rayobjects.serve.problems import Headers, problem_of_error, problem_of_info

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHUNK_BYTES = 64 * 1024
"""Items that are there already go out together, up to so many bytes."""

MEDIA_TYPE = b"text/event-stream"

_HEADERS: Headers = [
    (b"content-type", MEDIA_TYPE),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx, and what follows it, would hold the items back
]


def wants_events(accept: bytes) -> bool:
    """Whether a client asks for events by name; */* does not."""
    for each in accept.lower().split(b","):
        media_type, *parameters = (part.strip() for part in each.split(b";"))
        if media_type == MEDIA_TYPE:
            return not any(part.replace(b" ", b"") in (b"q=0", b"q=0.0") for part in parameters)
    return False


async def send_events(reading: Reading, receive: Receive, send: Send) -> None:
    """Sends the items of a stream as they come."""
    gone = asyncio.ensure_future(_gone(receive))
    waiting: asyncio.Future[None] | None = None
    try:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        while True:
            ended = reading.ended
            chunk = _items(reading)
            if not chunk:
                if ended:
                    break
                waiting = waiting or asyncio.ensure_future(reading.wait())
                done, _ = await asyncio.wait(
                    {waiting, gone}, timeout=EVENT_PING_S, return_when=asyncio.FIRST_COMPLETED
                )
                if gone in done:
                    return
                if waiting in done:
                    waiting = None
                    continue
                chunk = b": ping\n\n"
            elif gone.done():
                return
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": _last(reading)})
    except OSError:
        pass  # the connection broke while it was written to
    finally:
        reading.close()
        for task in (gone, waiting):
            if task is not None:
                task.cancel()


async def whole(reading: Reading, receive: Receive) -> Reply | None:
    """The reply with all items of a stream; None if the client has gone.

    Raises:
        RayObjectsError: the host could not be reached.
    """
    gone = asyncio.ensure_future(_gone(receive))
    waiting = asyncio.ensure_future(reading.wait())
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        reading.close()
        gone.cancel()
        waiting.cancel()
    if isinstance(reading.end, RayObjectsError):
        raise reading.end
    return reading.end


async def answer_of(future: asyncio.Future[Reply | Reading]) -> Reply | Reading:
    """What a call is answered with. If nobody waits for it any more, a stream is closed at once,
    and any other call goes on."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_close)
        raise


def _close(future: asyncio.Future[Reply | Reading]) -> None:
    with contextlib.suppress(RayObjectsError, asyncio.CancelledError):
        answer = future.result()
        if isinstance(answer, Reading):
            answer.close()


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _items(reading: Reading) -> bytes:
    chunk = bytearray()
    while len(chunk) < CHUNK_BYTES and (body := reading.take()) is not None:
        chunk += b"data: %b\n\n" % body
    return bytes(chunk)


def _last(reading: Reading) -> bytes:
    """The last event."""
    try:
        if isinstance(reading.end, Reply) and reading.end.status == ERROR:
            problem = problem_of_info(info_from_wire(reading.end.body))[2]
        else:
            reading.check_end()
            return b"event: end\ndata: %b\n\n" % msgspec.json.encode({"items": reading.count})
    except RayObjectsError as error:
        problem = problem_of_error(error)[2]
    return b"event: error\ndata: %b\n\n" % problem
