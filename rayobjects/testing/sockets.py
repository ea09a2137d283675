"""Clients' WebSockets without a server: what `rayobjects.serve` does for them, in a few lines.

A gateway takes an object's pushes, which may come again after a crash, and gives each socket what
is new to it (`objects.delivery`): each message once and in order. A socket's first position comes
with the reply to `on_connect`; what arrives before that is kept for it. Tags, auto responses and a
slow reader's bound are those of the real gateway; pings and idle times are not there: `lose` is
what a client does that no longer answers them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec

from rayobjects.errors import InvalidCall, MethodError, RayObjectsError, from_wire, info_from_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import SOCKET_QUEUE_BYTES_MAX
from rayobjects.messages import (
    BINARY,
    CLOSE,
    OK,
    SOCKET,
    SYSTEM,
    TEXT,
    Call,
    Push,
    Reply,
    SocketEvent,
    decode_socket_opened,
    encode,
    encode_json,
)
from rayobjects.objects.closings import LOST, is_gone, may_have_no_class
from rayobjects.objects.delivery import Delivery, Position
from rayobjects.testing.channel import LocalChannel

if TYPE_CHECKING:
    from rayobjects.testing.life import HostLife

Message = str | bytes

GONE = (1012, "the object does not know this socket any more")
SLOW = (1013, "reads too slowly")

AGAIN_FIRST_S = 0.01
AGAIN_MAX_S = 1.0
"""The pauses, in real time, before an object is told again that a socket has closed: each is twice
as long as the one before."""


class LocalSocket:
    """A client's end of a WebSocket. Made by `LocalHost.connect`.

    Attributes:
        id: the socket's id.
        received: all messages so far, str or bytes.
        positions: (sequence, index) of each of them.
        closed: (code, reason) once it is closed, from whichever side.
        subprotocol: the one that `on_connect` chose, or "".
    """

    def __init__(self, gateway: LocalGateway, object_id: ObjectId, id: str) -> None:
        self.id = id
        self.object_id = object_id
        self.received: list[Message] = []
        self.positions: list[Position] = []
        self.closed: tuple[int, str] | None = None
        self._gateway = gateway
        self.subprotocol = ""
        self._delivery = Delivery()
        self._early: list[tuple[Position, Push]] | None = []
        self._unread: list[tuple[Position, Message]] | None = None
        self._taken = 0
        self._news: list[asyncio.Future[None]] = []

    async def send(self, data: Message) -> None:
        """Sends a message; returns when the object has dealt with it, and what it sent to sockets
        of this gateway has arrived.

        Raises:
            RayObjectsError: `on_message` raised, or the object does not know the socket any more.
        """
        reply = await self.post(data)
        if reply.status != OK:
            if info_from_wire(reply.body).details.get("socket") == "gone":
                self._end(*GONE)
            raise self._gateway.error_of(reply)
        await self._gateway.settled()

    def post(self, data: Message) -> asyncio.Future[Reply]:
        """Sends a message and does not wait; the future brings the reply."""
        if self.closed is not None:
            raise InvalidCall(f"the socket is closed ({self.closed[0]}): connect again")
        kind, body = (TEXT, data.encode()) if isinstance(data, str) else (BINARY, bytes(data))
        answer = self._delivery.answer(kind, body)
        if answer is not None:
            self._receive(self._delivery.position, *answer)
            done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            done.set_result(Reply(0, OK, b""))
            return done
        return self._gateway.call(self, "on_message", kind=kind, data=body)

    async def receive(self) -> Message:
        """The next message that was not taken yet; waits for it.

        Raises:
            InvalidCall: the socket is closed and there is none.
        """
        while self._taken == len(self.received):
            if self.closed is not None:
                raise InvalidCall(f"the socket was closed ({self.closed[0]}: {self.closed[1]})")
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._news.append(future)
            await future
        self._taken += 1
        return self.received[self._taken - 1]

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes it from the client's side; returns when the object knows."""
        if self.closed is None:
            self._end(code, reason)
            await self._gateway.tell_closed(self, code, reason)
            await self._gateway.settled()

    async def lose(self) -> None:
        """The connection is lost without a word, and the gateway has noticed: nobody answers its
        pings. Returns when the object knows."""
        await self.close(LOST, "connection lost")

    def pause(self) -> None:
        """The client reads no more; what waits for it has a bound (close code 1013)."""
        if self._unread is None:
            self._unread = []

    def resume(self) -> None:
        """The client reads what has waited for it, and everything that comes."""
        unread, self._unread = self._unread or [], None
        for position, message in unread:
            self._read(position, message)

    @property
    def tags(self) -> frozenset[str]:
        """The tags that the object gave it, as its gateway knows them."""
        return self._delivery.tags

    def __repr__(self) -> str:
        return f"<LocalSocket of {self.object_id}, {len(self.received)} messages>"

    # -- for the gateway --------------------------------------------------------------------

    def _begin(self, sequence: int) -> None:
        """`on_connect` was record `sequence`: what came before is none of this socket's."""
        early, self._early = self._early or [], None
        self._delivery.begin(sequence)
        for position, push in early:
            if position >= (sequence, -1):
                self._deliver(position, push)

    def _take(self, position: Position, push: Push) -> None:
        if self.closed is not None or not self._delivery.take(position, push.send):
            return
        if self._early is not None:
            self._early.append((position, push))
        else:
            self._deliver(position, push)

    def _deliver(self, position: Position, push: Push) -> None:
        send = push.send
        if send.kind == CLOSE:
            self._end(send.code, send.data.decode())
            self._gateway.forget(self)
        else:
            self._receive(position, send.kind, send.data)

    def _receive(self, position: Position, kind: int, data: bytes) -> None:
        message = data.decode() if kind == TEXT else data
        if self._unread is None:
            self._read(position, message)
            return
        self._unread.append((position, message))
        if sum(len(each) for _, each in self._unread) > SOCKET_QUEUE_BYTES_MAX:
            self._unread.clear()
            self._end(*SLOW)
            self._gateway.tell_closed_soon(self, *SLOW)

    def _read(self, position: Position, message: Message) -> None:
        self.received.append(message)
        self.positions.append(position)
        self._tell()

    def _end(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, []
        for future in news:
            if not future.done():
                future.set_result(None)


class LocalGateway:
    """One pretended gateway process with its sockets. Made by `LocalHost.gateway`.

    Attributes:
        pushes: everything that has arrived, repetitions too.
        silent: while time moves, the host hears nothing of it.
    """

    def __init__(self, host: HostLife, id: str) -> None:
        self.id = id
        self.channel = LocalChannel(host, id, self._push)
        self.channel.on_unknown = self._unknown
        self.pushes: list[Push] = []
        self.silent = False
        self._host = host
        self._sockets: dict[ObjectId, dict[str, LocalSocket]] = {}
        self._ids = itertools.count(1)

    async def connect(
        self,
        object_id: ObjectId,
        query: str | Mapping[str, str] = "",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        subprotocols: Iterable[str] = (),
    ) -> LocalSocket:
        """Opens a socket; see `LocalHost.connect`."""
        socket = LocalSocket(self, object_id, f"{self.id}-{next(self._ids)}")
        self._sockets.setdefault(object_id, {})[socket.id] = socket
        self.channel.sockets.add((*object_id, socket.id))
        self.channel.need_poll()
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        try:
            reply = await self.call(
                socket,
                "on_connect",
                query=query if isinstance(query, str) else urlencode(query),
                headers=[(name.lower(), value) for name, value in pairs],
                subprotocols=list(subprotocols),
            )
            if reply.status != OK:
                raise self.error_of(reply)
        except RayObjectsError:
            self.forget(socket)
            raise
        if reply.body:
            socket.subprotocol = decode_socket_opened(reply.body).subprotocol
        socket._begin(reply.sequence)
        await self.settled()
        return socket

    def call(self, socket: LocalSocket, method: str, **fields: Any) -> asyncio.Future[Reply]:
        """Sends a socket's event to its object; the future brings the reply."""
        event = encode(SocketEvent(socket.id, self.id, **fields))
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def replied(outcome: Reply | RayObjectsError) -> None:
            if future.done():
                return
            if isinstance(outcome, Reply):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
                future.exception()  # its owner may have gone

        self.channel.send(Call(0, *socket.object_id, method, SOCKET, event), replied)
        return future

    def error_of(self, reply: Reply) -> RayObjectsError:
        """The error of a reply, with the exception itself, which no gateway needs but a test may
        look at."""
        error = from_wire(reply.body)
        core = self._host.core
        if isinstance(error, MethodError) and error.cause is None and core is not None:
            error.cause = error.__cause__ = core.cause_of(error)
        return error

    async def tell_closed(self, socket: LocalSocket, code: int, reason: str) -> None:
        """Tells the object that the socket is closed, as often as it takes; only then does the
        gateway forget it."""
        delay_s = AGAIN_FIRST_S
        try:
            while True:
                reply = await self.call(socket, "on_close", code=code, data=reason.encode())
                if reply.status == OK or is_gone(reply.body):
                    return
                if may_have_no_class(reply.body) and not await self._takes_sockets(socket):
                    return
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, AGAIN_MAX_S)
        finally:
            self.forget(socket)

    async def _takes_sockets(self, socket: LocalSocket) -> bool:
        """Whether there is a class, and one that takes sockets."""
        try:
            return (await self._host.classes.get(socket.object_id.class_name)).info.sockets
        except InvalidCall:
            return False

    def tell_closed_soon(self, socket: LocalSocket, code: int, reason: str) -> None:
        """The same in the background."""
        self._host.spawn(self._tell_closed(socket, code, reason))

    async def _tell_closed(self, socket: LocalSocket, code: int, reason: str) -> None:
        try:
            await self.tell_closed(socket, code, reason)
        except RayObjectsError:
            pass  # the host of this test has been closed

    def forget(self, socket: LocalSocket) -> None:
        """The gateway holds the socket no longer."""
        self.channel.sockets.discard((*socket.object_id, socket.id))
        self._sockets.get(socket.object_id, {}).pop(socket.id, None)

    async def settled(self) -> None:
        """Returns when every message that the host has for this gateway has arrived."""
        while self._host.pushes_waiting(self.id, self.channel):
            await self.channel.polled()

    def die(self) -> None:
        """The gateway's process dies: the host hears nothing of it any more."""
        self.channel.close()
        for sockets in self._sockets.values():
            for socket in sockets.values():
                socket._end(1006, "the gateway died")
        self._sockets = {}

    def _push(self, push: Push) -> None:
        self.pushes.append(push)
        send, position = push.send, (push.sequence, push.index)
        sockets = self._sockets.get(ObjectId(push.class_name, push.name), {})
        for id, socket in list(sockets.items()):
            if (send.sockets is None or id in send.sockets) and id not in send.exclude:
                socket._take(position, push)

    def _unknown(self, sockets: list[tuple[str, str, str]]) -> None:
        """The host does not know these sockets: asks their objects, as the real gateway does."""
        for class_name, name, id in sockets:
            socket = self._sockets.get(ObjectId(class_name, name), {}).get(id)
            if socket is not None:
                self._ask(socket)

    def _ask(self, socket: LocalSocket) -> None:
        def replied(outcome: Reply | RayObjectsError) -> None:
            if not isinstance(outcome, Reply) or outcome.status != OK:
                return  # it cannot say for now
            if socket.id in msgspec.json.decode(outcome.body, type=list[str]):
                socket._end(*GONE)
                self.tell_closed_soon(socket, *GONE)

        ids = encode_json([socket.id])
        call = Call(0, *socket.object_id, "unknown_sockets", SYSTEM, ids)
        self.channel.send(call, replied)
