"""The sockets that this gateway holds, by object, and the messages of objects to them.

An object sends to its sockets in pushes. A push reaches a gateway once for all of the object's
sockets there, in the object's order, and perhaps again after its host has died. Its position
(sequence, index) only grows, so each socket remembers the last one that it was given and takes
only what lies beyond: each message exactly once and in order (guarantee 6).

A socket's first position comes with the reply to `on_connect`: it is given what that call sent and
everything later, and nothing that was sent before the object knew it. Until that reply is here,
pushes are kept for the socket, because they may overtake it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rayobjects.messages import CLOSE, TEXT, Push
from rayobjects.serve.links import Router
from rayobjects.serve.problems import Headers
from rayobjects.serve.socket import Socket

logger = logging.getLogger("rayobjects.gateway")

ObjectKey = tuple[str, str]


class SocketTable:
    """All sockets of one gateway.

    Args:
        router: the way to the objects.
        new_id: makes the id of a new socket, which no other socket has or had.
    """

    def __init__(
        self, router: Router, *, new_id: Callable[[], str] = lambda: uuid.uuid4().hex
    ) -> None:
        self._router = router
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
        socket = Socket(self._router, class_name, name, self._new_id(), receive, send)
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
        if send.kind == CLOSE:
            reason = send.data.decode("utf-8", "replace")
            for socket in targets:
                socket.close_at(position, send.code, reason)
            return
        # One message for all of them: a thousand sockets share one string.
        message: dict[str, Any]
        if send.kind == TEXT:
            message = {"type": "websocket.send", "text": send.data.decode("utf-8", "replace")}
        else:
            message = {"type": "websocket.send", "bytes": send.data}
        size = len(send.data)
        for socket in targets:
            socket.deliver_at(position, message, size)
