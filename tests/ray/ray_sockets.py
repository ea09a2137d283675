"""Sockets without a gateway's HTTP: this process's router plays the gateway."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import rayobjects as ro
from rayobjects.errors import from_wire
from rayobjects.messages import CLOSE, OK, SOCKET, Push, Reply, SocketEvent, encode
from rayobjects.runtime import process

WITHIN_S = 30.0
_ids = itertools.count()


class Sockets:
    """A gateway that is this process. A context manager."""

    def __init__(self) -> None:
        self.router = process.router()
        self.open: dict[str, FakeSocket] = {}
        self.arrived = threading.Condition()

    def __enter__(self) -> Sockets:
        self.router.on_push = self._push
        return self

    def __exit__(self, *_: object) -> None:
        for socket in list(self.open.values()):
            self.router.loop.call_soon_threadsafe(self.router.socket_closed, *socket.entry)
        self.router.on_push = None

    def connect(self, stub: ro.Stub) -> FakeSocket:
        socket = FakeSocket(self, stub)
        self.open[socket.id] = socket
        self.router.loop.call_soon_threadsafe(self.router.socket_opened, *socket.entry)
        socket.tell("on_connect")
        return socket

    def _push(self, push: Push) -> None:
        send = push.send
        for socket in list(self.open.values()):
            if socket.stub.id != (push.class_name, push.name):
                continue
            if send.sockets is not None and socket.id not in send.sockets:
                continue
            position = (push.sequence, push.index)
            if position <= socket.position:
                continue
            socket.position = position
            with self.arrived:
                if send.kind == CLOSE:
                    socket.closed = send.code
                else:
                    socket.received.append(send.data.decode())
                self.arrived.notify_all()


class FakeSocket:
    """One open WebSocket."""

    def __init__(self, gateway: Sockets, stub: ro.Stub) -> None:
        self.gateway = gateway
        self.stub = stub
        self.id = f"socket-{next(_ids)}-{time.time_ns()}"
        self.entry = (*stub.id, self.id)
        self.received: list[str] = []
        self.closed: int | None = None
        self.position = (0, -1)

    def tell(self, method: str, data: str = "") -> None:
        """Sends an event of the socket to the object, and waits for the answer."""
        router = self.gateway.router
        event = SocketEvent(self.id, router.id, data=data.encode())

        async def call() -> Reply:
            return await router.call(*self.stub.id, method, SOCKET, encode(event))

        reply = asyncio.run_coroutine_threadsafe(call(), router.loop).result(WITHIN_S)
        if reply.status != OK:
            raise from_wire(reply.body)

    def say(self, data: str) -> str:
        """Sends a message, and returns the next that arrives after it."""
        count = len(self.received)
        self.tell("on_message", data)
        self.wait(lambda: len(self.received) > count)
        return self.received[count]

    def wait(self, condition: Callable[[], Any]) -> None:
        with self.gateway.arrived:
            assert self.gateway.arrived.wait_for(condition, WITHIN_S)
