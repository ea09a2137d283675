"""Telling objects that sockets have closed, until they know.

`on_close` may be answered with an error that passes: no host, a full disk, too many waiting calls.
A socket whose object has not been told would be in its room for ever. So it is told again, later
and later; and until it knows, the socket counts as one that this gateway holds, or the host would
close it with a code of its own.

An error that may mean that the class is gone may also come from the object's `on_start`; so before
the object is told again the catalog is read, once for all that wait for that at the same time.

A call whose outcome is unknown is sent again with another id. That does no harm: who closes a
socket takes it away in the same record, and the object no longer knows it the second time.

When this process dies, the hosts find its sockets gone, as all others of it (see
`objects.closings`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from rayobjects.errors import InvalidCall, RayObjectsError, info_from_wire
from rayobjects.limits import FAREWELLS_MAX
from rayobjects.messages import OK, SOCKET, Reply, SocketEvent, encode
from rayobjects.objects.closings import (
    RETRY_FIRST_S,
    RETRY_MAX_S,
    is_gone,
    may_have_no_class,
)
from rayobjects.serve.links import ObjectClass, Router

logger = logging.getLogger("rayobjects.gateway")


class Farewells:
    """Those of one gateway."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.waiting = 0
        """How many objects could not be told, and will be told again."""
        self._reading: asyncio.Task[Mapping[str, ObjectClass]] | None = None
        self._looking: set[asyncio.Task[bool]] = set()

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
            loop = asyncio.get_running_loop()
            loop.call_later(delay_s, look if _may_have_no_class(future) else again)

        def look() -> None:
            looking = asyncio.ensure_future(self._takes_sockets(class_name))
            self._looking.add(looking)
            looking.add_done_callback(looked)

        def looked(looking: asyncio.Task[bool]) -> None:
            self._looking.discard(looking)
            if looking.cancelled():
                return  # this process ends
            if looking.result():
                again()
            else:
                self.waiting -= 1
                self._router.socket_closed(*entry)

        def again() -> None:
            self.waiting -= 1
            self._tell(entry, code, reason, min(delay_s * 2, RETRY_MAX_S))

        future.add_done_callback(told)

    async def _takes_sockets(self, class_name: str) -> bool:
        """Whether there is a class of that name which takes sockets, as far as can be said."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._router.catalog())
        reading = self._reading
        try:
            catalog = await asyncio.shield(reading)
        except Exception as error:
            logger.warning("the catalog could not be read: %s", error)
            return True
        finally:
            if self._reading is reading:
                self._reading = None
        return any(each.sockets for each in catalog.values() if class_name in _names(each))


def _names(info: ObjectClass) -> set[str]:
    """A class's names: a socket may have been opened under one that it had before."""
    return {info.name, getattr(info, "key", info.name), *getattr(info, "former", ())}


def _is_told(future: asyncio.Future[Reply]) -> bool:
    """Whether there is nothing more to tell."""
    if future.cancelled():
        return True
    error = future.exception()
    if error is not None:
        logger.warning("on_close: %s", error)
        # The router's own: it has found no such class.
        return isinstance(error, InvalidCall) or not isinstance(error, RayObjectsError)
    reply = future.result()
    if reply.status == OK:
        return True
    info = info_from_wire(reply.body)
    if info.details.get("socket") != "gone":
        logger.warning("on_close: %s\n%s", info.message, info.traceback)
    return is_gone(reply.body)


def _may_have_no_class(future: asyncio.Future[Reply]) -> bool:
    return future.exception() is None and may_have_no_class(future.result().body)
