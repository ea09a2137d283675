"""A router without a cluster: calls are answered by functions of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayobjects.errors import InvalidCall, RayObjectsError, Unavailable, to_wire
from rayobjects.limits import STREAM_ITEMS_AHEAD_MAX
from rayobjects.messages import (
    ERROR,
    ITEM,
    OK,
    SOCKET,
    TEXT,
    Call,
    Push,
    Reply,
    Send,
    SocketEvent,
    decode_socket_event,
)
from rayobjects.objects.reading import Reading, opened

Handler = Callable[[Call], "Reply | bytes | RayObjectsError"]


@dataclass
class Method:
    name: str
    doc: str = ""
    internal: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    returns: dict[str, Any] | None = None
    stream: bool = False


@dataclass
class Info:
    name: str
    version: int = 1
    doc: str = ""
    methods: dict[str, Method] = field(default_factory=dict)
    sockets: bool = False
    requests: bool = False
    former: list[str] = field(default_factory=list)
    definitions: dict[str, Any] = field(default_factory=dict)


def echo(call: Call) -> bytes:
    """What the double does unless the test says otherwise: returns the arguments."""
    if call.method == "busy":
        raise Unavailable("no host: try again")
    return call.args


class DoubleRouter:
    """Answers each call on the next turn of the loop with what `handler` returns or raises."""

    id = "gateway-1"

    def __init__(self, handler: Handler = echo, classes: Mapping[str, Info] | None = None) -> None:
        self.handler = handler
        self.classes = dict(classes or {})
        self.names: list[str] = []
        self.calls: list[Call] = []
        self.on_push: Callable[[Push], None] | None = None
        self.on_unknown: Callable[[list[tuple[str, str, str]]], None] = lambda sockets: None
        self.open: set[tuple[str, str, str]] = set()
        self.held: asyncio.Event | None = None
        self.closed = False
        self.sequence = 0
        self.listings: list[tuple[str, str, str, int]] = []

    def call(
        self,
        class_name: str,
        name: str,
        method: str,
        encoding: int,
        args: bytes,
        *,
        id: str = "",
        context: dict[str, str] | None = None,
    ) -> asyncio.Future[Reply]:
        number = len(self.calls)
        call = Call(number, class_name, name, method, encoding, args, id, context=context)
        return self.answer(call)

    def ask(self, call: Call) -> asyncio.Future[Any]:
        call.number = len(self.calls)
        return self.answer(call)

    def answer(self, call: Call) -> asyncio.Future[Any]:
        self.calls.append(call)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        if self.held is not None:
            waiter = loop.create_task(self.held.wait())
            waiter.add_done_callback(lambda _: self._answer(call, future))
        else:
            loop.call_soon(self._answer, call, future)
        return future

    def _answer(self, call: Call, future: asyncio.Future[Reply]) -> None:
        if future.cancelled():
            return
        try:
            result = self.handler(call)
        except Unavailable as error:
            future.set_exception(error)
            return
        except RayObjectsError as error:
            result = error
        if isinstance(result, RayObjectsError):
            result = Reply(call.number, ERROR, to_wire(result, with_cause=False))
        if isinstance(result, bytes):
            result = Reply(call.number, OK, result, self.sequence)
        future.set_result(result)

    def socket_opened(self, class_name: str, name: str, socket: str) -> None:
        self.open.add((class_name, name, socket))

    def socket_closed(self, class_name: str, name: str, socket: str) -> None:
        self.open.remove((class_name, name, socket))

    async def catalog(self) -> dict[str, Info]:
        return self.classes

    async def list_objects(self, class_name: str, prefix: str, after: str, limit: int) -> list[str]:
        if class_name not in self.classes:
            raise InvalidCall(f"no class {class_name!r} is deployed", status=404)
        self.listings.append((class_name, prefix, after, limit))
        matching = [name for name in self.names if name.startswith(prefix) and name > after]
        return sorted(matching)[:limit]

    async def close(self) -> None:
        self.closed = True

    def events(self, method: str) -> list[SocketEvent]:
        """The socket events of all calls of this hook."""
        return [decode_socket_event(call.args) for call in self.calls if call.method == method]


class ThisLoop:
    """What a stream's reader needs of a router."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def runs_here(self) -> bool:
        return True

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)


class EchoRoom(DoubleRouter):
    """An object that sends every message back to the socket that it came from. `watch` is a stream
    of which each item follows when the one before has been read, and `closed` counts those that
    were closed before their end."""

    def __init__(self) -> None:
        super().__init__(self._on_socket)
        self.streams_closed = 0

    def ask(self, call: Call) -> asyncio.Future[Any]:
        return self._watch() if call.method == "watch" else super().ask(call)

    def _watch(self) -> asyncio.Future[Any]:
        def credit(upto: int) -> None:
            if upto < 0:
                self.streams_closed += 1
            else:
                begins.take(Reply(0, ITEM, b"%d" % (upto + 1), upto + 1))

        begins = opened(0, credit)
        future = asyncio.get_running_loop().create_future()
        future.set_result(Reading(ThisLoop(), begins))
        for number in range(1, STREAM_ITEMS_AHEAD_MAX // 2 + 1):
            begins.take(Reply(0, ITEM, b"%d" % number, number))
        return future

    def _on_socket(self, call: Call) -> bytes:
        if call.method == "closed":
            return b"%d" % self.streams_closed
        if call.encoding != SOCKET:
            return echo(call)
        event = decode_socket_event(call.args)
        self.sequence += 1
        if call.method == "on_message":
            if event.data == b"forget me":
                raise InvalidCall("unknown socket", status=404, details={"socket": "gone"})
            self.send(call, event.data, event.kind, sockets=(event.socket,))
        return b""

    def send(
        self,
        call: Call,
        data: bytes,
        kind: int = TEXT,
        *,
        sockets: tuple[str, ...] | None = None,
        exclude: tuple[str, ...] = (),
        code: int = 0,
    ) -> Push:
        """Sends as the object that the call is for; returns the push."""
        send = Send(self.id, kind, data, code, sockets, exclude)
        push = Push(call.class_name, call.name, self.sequence, 0, send)
        assert self.on_push is not None
        self.on_push(push)
        return push


async def connect_echo_room() -> EchoRoom:
    """For a gateway on Serve: it is given to the replica, which calls it."""
    return EchoRoom()
