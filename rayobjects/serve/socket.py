"""One WebSocket between its client and its object.

    pending  on_connect is under way                  → open, refused
    open     accepted; messages go both ways          → closing
    closing  the object has been told (`on_close`)    → closed
    refused, closed                                   the end

Three things run for an open socket: the reader turns what the client sends into `on_message`
calls, all sent at once and in order; the writer sends what the object pushed; the calls' answers
come back through callbacks. Whatever ends the socket goes through `_finish`, which sends the one
`on_close`: after every `on_message`, because calls on an object keep their order.

Both directions are bounded. Towards the object: after SOCKET_UNANSWERED_MAX messages without an
answer the reader stops, and TCP makes the client wait. Towards the client: a socket whose queue
has SOCKET_QUEUE_BYTES_MAX waiting is closed with 1013, so that it holds up nobody else.

What this side closes with:

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
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rayobjects.errors import RayObjectsError, info_from_wire
from rayobjects.limits import (
    SOCKET_CLOSE_WAIT_S,
    SOCKET_MESSAGE_BYTES_MAX,
    SOCKET_QUEUE_BYTES_MAX,
    SOCKET_UNANSWERED_MAX,
)
from rayobjects.messages import BINARY, OK, SOCKET, TEXT, Reply, SocketEvent, encode
from rayobjects.serve.links import Router
from rayobjects.serve.problems import Headers, problem_of_error, problem_of_info
from rayobjects.serve.requests import text_headers

logger = logging.getLogger("rayobjects.gateway")

TOO_BIG, FAILED, GONE, TRY_LATER = 1009, 1011, 1012, 1013

REASON_BYTES_MAX = 123
"""Of a close frame, whose payload has at most 125 bytes, 2 of them the code (RFC 6455, 5.5)."""

Position = tuple[int, int]

_START: Position = (0, -1)


class Socket:
    """One WebSocket. See the module.

    Args:
        router: the way to the object.
        class_name, name: the object.
        id: the socket's id, which no other socket has or had.
        receive, send: of the ASGI connection.
    """

    __slots__ = (
        "_class_name",
        "_close",
        "_ended",
        "_finished",
        "_name",
        "_position",
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
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        self.id = id
        self._router = router
        self._class_name = class_name
        self._name = name
        self._receive = receive
        self._send = send
        # What the object sent and the client has not been sent yet; positions count until the
        # socket is accepted, and are not looked at later.
        self._queue: deque[tuple[Position, MutableMapping[str, Any], int]] = deque()
        self._queued_bytes = 0
        self._position = _START
        self._finished = False
        self._close: tuple[int, str] | None = None
        self._unanswered = 0
        self._wake_writer: asyncio.Future[None] | None = None
        self._wake_reader: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- from the object -----------------------------------------------------------------------

    def deliver_at(self, position: Position, message: MutableMapping[str, Any], size: int) -> None:
        """Queues a message (an ASGI event) of `size` bytes, unless the socket has had it."""
        if position <= self._position or self._close is not None:
            return
        self._position = position
        self._queued_bytes += size
        if self._queued_bytes > SOCKET_QUEUE_BYTES_MAX:
            self._queue.clear()
            self._end(TRY_LATER, "reads too slowly")
            return
        self._queue.append((position, message, size))
        wake = self._wake_writer
        if wake is not None:
            self._wake_writer = None
            if not wake.done():
                wake.set_result(None)

    def close_at(self, position: Position, code: int, reason: str) -> None:
        """Queues the object's closing of the socket, unless the socket has had it."""
        if position <= self._position or self._close is not None:
            return
        self.deliver_at(position, {"type": "websocket.close", "code": code, "reason": reason}, 0)

    # ---- the life of the socket ----------------------------------------------------------------

    async def serve(self, scope: MutableMapping[str, Any]) -> tuple[int, Headers, bytes] | None:
        """Serves the connection to its end; returns the HTTP answer where it is refused."""
        await self._receive()  # websocket.connect
        self._router.socket_opened(self._class_name, self._name, self.id)
        opened = self._call("on_connect", query=_query(scope), headers=text_headers(scope))
        try:
            reply = await asyncio.shield(opened)
        except RayObjectsError as error:
            # Whether the object has opened the socket is not known.
            self._finish(1006, "")
            return problem_of_error(error)
        except asyncio.CancelledError:
            self._finish(1006, "")
            raise
        if reply.status != OK:
            if not self._finished:
                self._finished = True
                self._router.socket_closed(self._class_name, self._name, self.id)
            return await self._refused(reply)
        self._begin(reply.sequence)
        try:
            await self._send({"type": "websocket.accept"})
            await self._run()
        finally:
            # Only a connection that broke, or a server that stops, comes here unfinished.
            self._finish(1006, "")
        return None

    async def _refused(self, reply: Reply) -> tuple[int, Headers, bytes] | None:
        """Refuses as the object says: a browser shows its page the code of an opened socket that
        is closed, but nothing of an HTTP answer."""
        info = info_from_wire(reply.body)
        if info.traceback:
            logger.error("%s\n%s", info.message, info.traceback)
        close = info.details.get("close")
        if close is None:
            return problem_of_info(info)
        code, reason = close
        await self._send({"type": "websocket.accept"})
        await self._send({"type": "websocket.close", "code": code, "reason": _cut(reason)})
        return None

    def _begin(self, sequence: int) -> None:
        """Drops what was sent before the object knew the socket."""
        kept = [entry for entry in self._queue if entry[0][0] >= sequence]
        self._queue = deque(kept)
        self._queued_bytes = sum(entry[2] for entry in kept)
        self._position = max((sequence, -1), kept[-1][0] if kept else _START)

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
                    self._finish(message.get("code") or 1005, message.get("reason") or "")
                    return
                if self._close is not None or self._finished:
                    continue
                text = message.get("text")
                kind, data = (BINARY, message["bytes"]) if text is None else (TEXT, text.encode())
                if len(data) > SOCKET_MESSAGE_BYTES_MAX:
                    self._end(TOO_BIG, f"a message has at most {SOCKET_MESSAGE_BYTES_MAX:,} bytes")
                    continue
                self._unanswered += 1
                self._call("on_message", kind=kind, data=data).add_done_callback(self._answered)
                if self._unanswered >= SOCKET_UNANSWERED_MAX:
                    self._wake_reader = asyncio.get_running_loop().create_future()
                    await self._wake_reader
        finally:
            self._finish(1006, "")  # receive() failed: the connection broke

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
                if self._close is not None:
                    code, reason = self._close
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
                    return
                self._wake_writer = asyncio.get_running_loop().create_future()
                await self._wake_writer
        except Exception:  # the server's own, and different for each: the client is gone
            self._finish(1006, "")

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
            self._end(GONE, "the object does not know this socket any more")
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
        if not self._ended.done():
            self._ended.set_result(None)
        closed = self._call("on_close", code=code, data=reason.encode())
        closed.add_done_callback(self._closed)

    def _closed(self, future: asyncio.Future[Reply]) -> None:
        """The router forgets the socket only now: until the object has taken `on_close`, a new
        session must still count it as open, or the host would close it with a code of its own."""
        self._router.socket_closed(self._class_name, self._name, self.id)
        if future.cancelled() or future.exception() is not None:
            return
        reply = future.result()
        if reply.status != OK:
            info = info_from_wire(reply.body)
            if info.details.get("socket") != "gone":
                logger.warning("%s\n%s", info.message, info.traceback)

    def _call(self, method: str, **fields: Any) -> asyncio.Future[Reply]:
        event = SocketEvent(self.id, self._router.id, **fields)
        return self._router.call(self._class_name, self._name, method, SOCKET, encode(event))


def _query(scope: MutableMapping[str, Any]) -> str:
    query: bytes = scope["query_string"]
    return query.decode("latin-1")


def _cut(reason: str) -> str:
    """The reason, cut to what a close frame carries."""
    return reason.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore")
