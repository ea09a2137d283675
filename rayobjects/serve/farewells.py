"""Telling objects that sockets have closed, until they know.

`on_close` may be answered with an error that passes: no host, a full disk, too many waiting calls.
A socket whose object has not been told would be in its room for ever. So it is told again, later
and later; and until it knows, the socket counts as one that this gateway holds, or the host would
close it with a code of its own.

A call whose outcome is unknown is sent again with another id. That does no harm: who closes a
socket takes it away in the same record, and the object no longer knows it the second time.

When this process dies, the hosts find its sockets gone, as all others of it (see
`objects.closings`).
"""

from __future__ import annotations

import asyncio
import logging

from rayobjects.errors import InvalidCall, RayObjectsError, info_from_wire
from rayobjects.limits import FAREWELLS_MAX
from rayobjects.messages import OK, SOCKET, Reply, SocketEvent, encode
from rayobjects.objects.closings import RETRY_FIRST_S, RETRY_MAX_S, is_final
from rayobjects.serve.links import Router

logger = logging.getLogger("rayobjects.gateway")


class Farewells:
    """Those of one gateway."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.waiting = 0
        """How many objects could not be told, and will be told again."""

    def tell(self, class_name: str, name: str, socket: str, code: int, reason: bytes) -> None:
        """Calls the object's `on_close`, as often as it takes; then the router forgets the
        socket."""
        self._tell((class_name, name, socket), code, reason, RETRY_FIRST_S)

    def _tell(self, entry: tuple[str, str, str], code: int, reason: bytes, delay_s: float) -> None:
        class_name, name, socket = entry
        event = SocketEvent(socket, self._router.id, code=code, data=reason)
        future = self._router.call(class_name, name, "on_close", SOCKET, encode(event))

        def told(future: asyncio.Future[Reply]) -> None:
            if _is_told(future) or self.waiting >= FAREWELLS_MAX:
                self._router.socket_closed(*entry)
                return
            self.waiting += 1
            asyncio.get_running_loop().call_later(delay_s, again)

        def again() -> None:
            self.waiting -= 1
            self._tell(entry, code, reason, min(delay_s * 2, RETRY_MAX_S))

        future.add_done_callback(told)


def _is_told(future: asyncio.Future[Reply]) -> bool:
    """Whether there is nothing more to tell."""
    if future.cancelled():
        return True
    error = future.exception()
    if error is not None:
        logger.warning("on_close: %s", error)
        return isinstance(error, InvalidCall) or not isinstance(error, RayObjectsError)
    reply = future.result()
    if reply.status == OK:
        return True
    info = info_from_wire(reply.body)
    if info.details.get("socket") != "gone":
        logger.warning("on_close: %s\n%s", info.message, info.traceback)
    return is_final(reply.body)
