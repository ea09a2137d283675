"""The sockets that this gateway holds, by object, and the messages of objects to them.

An object sends to its sockets in pushes. A push reaches a gateway once for all of the object's
sockets there, in the object's order, and perhaps again after its host has died; what each socket
makes of it is decided in `objects.delivery` (guarantee 6).

A gateway that stood still for a while may have been taken for dead, and its sockets closed behind
its back. Hosts tell it which of its sockets they do not know (`unknown`). That may be wrong, for a
socket that is just being opened or an object that has moved; so the object itself is asked, in
order after everything that was sent to it before, and what it does not know is closed with 1012.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from rayobjects.errors import InvalidCall
from rayobjects.messages import AUTO, CLOSE, OK, SYSTEM, TAGS, Push, Reply, encode_json
from rayobjects.objects.closings import RETRY_FIRST_S, RETRY_MAX_S
from rayobjects.serve.farewells import Farewells
from rayobjects.serve.links import Router
from rayobjects.serve.problems import Headers
from rayobjects.serve.socket import Event, Socket, event_of

logger = logging.getLogger("rayobjects.gateway")

ObjectKey = tuple[str, str]


class SocketTable:
    """All sockets of one gateway.

    Args:
        router: the way to the objects.
        new_id: makes the id of a new socket, which no other socket has or had.
        idle_s: how many seconds a socket may be without a message; 0: for ever.
    """

    def __init__(
        self,
        router: Router,
        *,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        idle_s: float = 0.0,
    ) -> None:
        self._router = router
        self._idle_s = idle_s
        self._farewells = Farewells(router)
        self._new_id = new_id
        self._objects: dict[ObjectKey, dict[str, Socket]] = {}

    def __len__(self) -> int:
        return sum(len(sockets) for sockets in self._objects.values())

    async def serve(
        self,
        class_name: str,
        name: str,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> tuple[int, Headers, bytes] | None:
        """Serves one WebSocket from its opening to its end.

        Returns None once the socket has been open and is closed, and the HTTP answer where it is
        to be refused.
        """
        socket = Socket(
            self._router,
            class_name,
            name,
            self._new_id(),
            receive,
            send,
            self._farewells,
            self._idle_s,
        )
        key = (class_name, name)
        self._objects.setdefault(key, {})[socket.id] = socket
        try:
            return await socket.serve(scope)
        finally:
            sockets = self._objects[key]
            del sockets[socket.id]
            if not sockets:
                del self._objects[key]

    def push(self, push: Push) -> None:
        """Gives an object's message to those of its sockets that it is for."""
        sockets = self._objects.get((push.class_name, push.name))
        if sockets is None:
            return  # they have closed since
        send = push.send
        position = (push.sequence, push.index)
        if send.sockets is None:
            targets = list(sockets.values())
        else:
            targets = [sockets[id] for id in send.sockets if id in sockets]
        if send.exclude:
            exclude = frozenset(send.exclude)
            targets = [socket for socket in targets if socket.id not in exclude]
        # One event for all of them: a thousand sockets share one string.
        event: Event = {}
        if send.kind == CLOSE:
            reason = send.data.decode("utf-8", "replace")
            event = {"type": "websocket.close", "code": send.code, "reason": reason}
        elif send.kind not in (TAGS, AUTO):
            event = event_of(send.kind, send.data)
        for socket in targets:
            socket.push(position, send, event)

    def unknown(self, sockets: list[tuple[str, str, str]]) -> None:
        """A host does not know these sockets: asks their objects."""
        by_object: dict[ObjectKey, list[str]] = {}
        for class_name, name, id in sockets:
            by_object.setdefault((class_name, name), []).append(id)
        for key, ids in by_object.items():
            self._ask(key, ids, RETRY_FIRST_S)

    def _ask(self, key: ObjectKey, ids: list[str], delay_s: float) -> None:
        held = self._objects.get(key, {})
        ids = [id for id in ids if id in held]
        if not ids:
            return

        def answered(future: asyncio.Future[Reply]) -> None:
            if future.cancelled() or isinstance(future.exception(), InvalidCall):
                return
            if future.exception() is not None or future.result().status != OK:
                # It cannot say for now: until it can, they stay open.
                again = min(delay_s * 2, RETRY_MAX_S)
                asyncio.get_running_loop().call_later(delay_s, self._ask, key, ids, again)
                return
            sockets = self._objects.get(key, {})
            for id in msgspec.json.decode(future.result().body, type=list[str]):
                if id in sockets:
                    sockets[id].vanished()

        asked = self._router.call(*key, "unknown_sockets", SYSTEM, encode_json(ids))
        asked.add_done_callback(answered)
