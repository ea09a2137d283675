"""One WebSocket between its client and its object.

    pending  on_connect is under way                  → open, refused
    open     accepted; messages go both ways          → closing
    closing  the object has been told (`on_close`)    → closed
    refused, closed                                   the end

Three things run for an open socket: the reader turns what the client sends into `on_message`
calls, all sent at once and in order; the writer sends what the object pushed; the calls' answers
come back through callbacks. Whatever ends the socket goes through `_finish`, which sends the one
`on_close`: after every `on_message`, because calls on an object keep their order.

What the object has said that a message is answered with (`auto_response`) is answered here.

Both directions are bounded. Towards the object: after SOCKET_UNANSWERED_MAX messages without an
answer the reader stops, and TCP makes the client wait. Towards the client: a socket whose queue
has SOCKET_QUEUE_BYTES_MAX waiting is closed with 1013, so that it holds up nobody else.

A client that is gone without a word is noticed by the server, which pings it: it closes a
connection whose pong does not come (`socket_ping_s`). One that is there and silent may stay, unless
`socket_idle_s` says for how long.

What this side closes with:

    1001  no message has come or gone for `socket_idle_s`
    1009  a message has more than SOCKET_MESSAGE_BYTES_MAX bytes
    1011  the object cannot take the message: its class has no such hook any more
    1012  the object does not know the socket: it was deleted, or took this gateway for dead
    1013  no host or no storage for now, or the client reads too slowly: connect again later

An `on_message` that raises was rolled back, and the socket stays open: one bad message must not
throw a client out of its room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from rayobjects.errors import RayObjectsError, info_from_wire
from rayobjects.limits import (
    SOCKET_CLOSE_WAIT_S,
    SOCKET_MESSAGE_BYTES_MAX,
    SOCKET_QUEUE_BYTES_MAX,
    SOCKET_UNANSWERED_MAX,
)
from rayobjects.messages import (
    BINARY,
    CLOSE,
    OK,
    SOCKET,
    TEXT,
    Reply,
    Send,
    SocketEvent,
    decode_socket_opened,
    encode,
)
from rayobjects.objects import carried
from rayobjects.objects.delivery import Delivery, Position
from rayobjects.serve.farewells import Farewells
from rayobjects.serve.links import Router
from rayobjects.serve.problems import Headers, problem_of_error, problem_of_info
from rayobjects.serve.requests import text_headers

logger = logging.getLogger("rayobjects.gateway")

IDLE, TOO_BIG, FAILED, GONE, TRY_LATER = 1001, 1009, 1011, 1012, 1013
NO_CODE, LOST = 1005, 1006

REASON_BYTES_MAX = 123
"""Of a close frame, whose payload has at most 125 bytes, 2 of them the code (RFC 6455, 5.5)."""

Event = MutableMapping[str, Any]
"""An ASGI event."""


class Socket:
    """One WebSocket. See the module.

    Args:
        router: the way to the object.
        class_name, name: the object.
        id: the socket's id, which no other socket has or had.
        receive, send: of the ASGI connection.
        farewells: tells the object when the socket has closed.
        idle_s: how many seconds it may be without a message in either direction; 0: for ever.
    """

    __slots__ = (
        "_active_at",
        "_class_name",
        "_close",
        "_context",
        "_delivery",
        "_ended",
        "_farewells",
        "_finished",
        "_idle_s",
        "_idle_timer",
        "_name",
        "_queue",
        "_queued_bytes",
        "_receive",
        "_router",
        "_send",
        "_unanswered",
        "_wake_reader",
        "_wake_writer",
        "id",
    )

    def __init__(
        self,
        router: Router,
        class_name: str,
        name: str,
        id: str,
        receive: Callable[[], Awaitable[Event]],
        send: Callable[[Event], Awaitable[None]],
        farewells: Farewells,
        idle_s: float = 0.0,
    ) -> None:
        self.id = id
        self._farewells = farewells
        self._idle_s = idle_s
        self._active_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._router = router
        self._class_name = class_name
        self._name = name
        self._receive = receive
        self._send = send
        # What the object sent and the client has not been sent yet; positions count until the
        # socket is accepted, and are not looked at later.
        self._queue: deque[tuple[Position, Event, int]] = deque()
        self._queued_bytes = 0
        self._delivery = Delivery()
        self._finished = False
        self._close: tuple[int, str] | None = None
        self._unanswered = 0
        self._context: dict[str, str] | None = None
        self._wake_writer: asyncio.Future[None] | None = None
        self._wake_reader: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- from the object -----------------------------------------------------------------------

    def push(self, position: Position, send: Send, event: Event) -> None:
        """Takes a message of the object that is for this socket, or for all; `event` is what the
        client is sent of it."""
        if self._close is None and self._delivery.take(position, send):
            self._put(event, 0 if send.kind == CLOSE else len(send.data))

    def vanished(self) -> None:
        """The object does not know this socket any more."""
        self._end(GONE, "the object does not know this socket any more")

    def _put(self, event: Event, size: int) -> None:
        """Queues what the client is sent."""
        self._queued_bytes += size
        if self._queued_bytes > SOCKET_QUEUE_BYTES_MAX:
            self._queue.clear()
            self._end(TRY_LATER, "reads too slowly")
            return
        self._queue.append((self._delivery.position, event, size))
        wake = self._wake_writer
        if wake is not None:
            self._wake_writer = None
            if not wake.done():
                wake.set_result(None)

    # ---- the life of the socket ----------------------------------------------------------------

    async def serve(self, scope: MutableMapping[str, Any]) -> tuple[int, Headers, bytes] | None:
        """Serves the connection to its end; returns the HTTP answer where it is refused."""
        await self._receive()  # websocket.connect
        headers = {name: value for name, value in scope["headers"] if name in carried.HEADERS}
        try:
            self._context = carried.from_headers(headers) if headers else None
        except RayObjectsError as error:
            return problem_of_error(error)
        self._router.socket_opened(self._class_name, self._name, self.id)
        subprotocols: list[str] = list(scope.get("subprotocols") or ())
        opened = self._call(
            "on_connect",
            query=_query(scope),
            headers=text_headers(scope),
            subprotocols=subprotocols,
        )
        try:
            reply = await asyncio.shield(opened)
        except RayObjectsError as error:
            # Whether the object has opened the socket is not known.
            self._finish(LOST, "")
            return problem_of_error(error)
        except asyncio.CancelledError:
            self._finish(LOST, "")
            raise
        if reply.status != OK:
            if not self._finished:
                self._finished = True
                self._router.socket_closed(self._class_name, self._name, self.id)
            return await self._refused(reply, subprotocols)
        self._begin(reply.sequence)
        try:
            agreed = decode_socket_opened(reply.body).subprotocol if reply.body else ""
            await self._send({"type": "websocket.accept", "subprotocol": agreed or None})
            self._watch_idle()
            await self._run()
        finally:
            # Only a connection that broke, or a server that stops, comes here unfinished.
            self._finish(LOST, "")
        return None

    async def _refused(
        self, reply: Reply, subprotocols: Iterable[str]
    ) -> tuple[int, Headers, bytes] | None:
        """Refuses as the object says: a browser shows its page the code of an opened socket that
        is closed, but nothing of an HTTP answer, nor of a socket that speaks none of what the page
        has offered."""
        info = info_from_wire(reply.body)
        if info.traceback:
            logger.error("%s\n%s", info.message, info.traceback)
        close = info.details.get("close")
        if close is None:
            return problem_of_info(info)
        code, reason = close
        offered = next(iter(subprotocols), None)
        await self._send({"type": "websocket.accept", "subprotocol": offered})
        await self._send({"type": "websocket.close", "code": code, "reason": _cut(reason)})
        return None

    def _begin(self, sequence: int) -> None:
        """Drops what was sent before the object knew the socket."""
        kept = [entry for entry in self._queue if entry[0][0] >= sequence]
        self._queue = deque(kept)
        self._queued_bytes = sum(entry[2] for entry in kept)
        self._delivery.begin(sequence)

    async def _run(self) -> None:
        reader = asyncio.ensure_future(self._read())
        writer = asyncio.ensure_future(self._write())
        try:
            await self._ended
            if self._close is not None:
                # The close frame is on its way, unless the client does not read.
                await asyncio.wait({writer}, timeout=SOCKET_CLOSE_WAIT_S)
        finally:
            reader.cancel()
            writer.cancel()

    async def _read(self) -> None:
        """Turns what the client sends into calls, until it closes."""
        try:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    self._finish(*_ending(message))
                    return
                if self._close is not None or self._finished:
                    continue
                text = message.get("text")
                kind, data = (BINARY, message["bytes"]) if text is None else (TEXT, text.encode())
                self._active_at = asyncio.get_running_loop().time()
                if len(data) > SOCKET_MESSAGE_BYTES_MAX:
                    self._end(TOO_BIG, f"a message has at most {SOCKET_MESSAGE_BYTES_MAX:,} bytes")
                    continue
                answer = self._delivery.answer(kind, data)
                if answer is not None:
                    self._put(event_of(*answer), len(answer[1]))
                    continue
                self._unanswered += 1
                self._call("on_message", kind=kind, data=data).add_done_callback(self._answered)
                if self._unanswered >= SOCKET_UNANSWERED_MAX:
                    self._wake_reader = asyncio.get_running_loop().create_future()
                    await self._wake_reader
        finally:
            self._finish(LOST, "")  # receive() failed: the connection broke

    async def _write(self) -> None:
        """Sends what the object pushed, until the socket is closed."""
        queue = self._queue
        try:
            while True:
                while queue:
                    _, message, size = queue.popleft()
                    if message["type"] == "websocket.close":
                        self._end(message["code"], message["reason"])
                        break
                    await self._send(message)
                    self._queued_bytes -= size
                    self._active_at = asyncio.get_running_loop().time()
                if self._close is not None:
                    code, reason = self._close
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
                    return
                self._wake_writer = asyncio.get_running_loop().create_future()
                await self._wake_writer
        except Exception:  # the server's own, and different for each: the client is gone
            self._finish(LOST, "")

    def _watch_idle(self) -> None:
        """Closes a socket that has been idle for too long, else looks again when it may be."""
        if not self._idle_s or self._finished:
            return
        loop = asyncio.get_running_loop()
        if not self._active_at:
            self._active_at = loop.time()
        left_s = self._active_at + self._idle_s - loop.time()
        if left_s > 0:
            self._idle_timer = loop.call_later(left_s, self._watch_idle)
        else:
            self._end(IDLE, f"no message for {self._idle_s:g} s")

    def _answered(self, future: asyncio.Future[Reply]) -> None:
        """Takes the answer to an `on_message`."""
        self._unanswered -= 1
        wake = self._wake_reader
        if wake is not None and not wake.done():
            wake.set_result(None)
        if future.cancelled():
            self._end(TRY_LATER, "the gateway stops")
            return
        error = future.exception()
        if error is not None:
            logger.warning("%s/%s: %s", self._class_name, self._name, error)
            self._end(TRY_LATER, str(error))
            return
        reply = future.result()
        if reply.status == OK:
            return
        info = info_from_wire(reply.body)
        logger.warning("%s\n%s", info.message, info.traceback)
        if info.kind in ("MethodError", "Deadlock"):
            return
        if info.details.get("socket") == "gone":
            self.vanished()
        elif info.status in (429, 503, 504):
            self._end(TRY_LATER, info.message)
        else:
            self._end(FAILED, info.message)

    def _end(self, code: int, reason: str) -> None:
        """Closes from this side: the writer sends the close frame when it has sent the rest."""
        if self._close is not None or self._finished:
            return
        self._close = (code, _cut(reason))
        self._finish(code, reason)
        wake = self._wake_writer
        if wake is not None and not wake.done():
            wake.set_result(None)

    def _finish(self, code: int, reason: str) -> None:
        """Tells the object, once, that the socket has closed. Not undone by anything."""
        if self._finished:
            return
        self._finished = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if not self._ended.done():
            self._ended.set_result(None)
        self._farewells.tell(self._class_name, self._name, self.id, code, reason.encode())

    def _call(self, method: str, **fields: Any) -> asyncio.Future[Reply]:
        event = SocketEvent(self.id, self._router.id, **fields)
        return self._router.call(
            self._class_name, self._name, method, SOCKET, encode(event), context=self._context
        )


def event_of(kind: int, data: bytes) -> Event:
    """A message as an ASGI event."""
    if kind == TEXT:
        return {"type": "websocket.send", "text": data.decode("utf-8", "replace")}
    return {"type": "websocket.send", "bytes": data}


def _ending(message: Event) -> tuple[int, str]:
    """Code and reason of a `websocket.disconnect`. A connection that was lost without a close
    frame is 1006 (RFC 6455, 7.1.5); uvicorn calls it 1005 too, but says no reason then."""
    code = message.get("code") or NO_CODE
    if code in (NO_CODE, LOST) and "reason" not in message:
        return LOST, "connection lost"
    return code, message.get("reason") or ""


def _query(scope: MutableMapping[str, Any]) -> str:
    query: bytes = scope["query_string"]
    return query.decode("latin-1")


def _cut(reason: str) -> str:
    """The reason, cut to what a close frame carries."""
    return reason.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore")
