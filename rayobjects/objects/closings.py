"""Sockets that are gone though their gateway never said so: tells their objects.

`on_close` is an ordinary call, and so may be answered with an error that passes: the object has too
many calls waiting, the disk is full, its `on_start` does not find its database. Then it is tried
again, later and later, until the object has taken it, or no longer knows the socket. Each socket
has at most one such call under way, however often it is found to be gone.

What does not pass: the object says that it does not know the socket; or there is no class that
takes sockets. The latter comes as an InvalidCall with status 404. But `on_start` may raise the
same, where it calls an object whose class is not there yet. So then the class itself is looked at.

The host may die at any time: the socket is still in the storage then, so the next host finds it
gone as this one did.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rayobjects.errors import InvalidCall, info_from_wire
from rayobjects.ids import ObjectId
from rayobjects.messages import ERROR, OK, SOCKET, TEXT, Call, SocketEvent, encode

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0

LOST = 1006
"""The close code of a connection that ended without one (RFC 6455, 7.4.1)."""

Entry = tuple[str, str, str]
"""(class name, object name, socket id)."""


def is_gone(body: bytes) -> bool:
    """Whether an error that answers `on_close` says that the object does not know the socket."""
    return info_from_wire(body).details.get("socket") == "gone"


def may_have_no_class(body: bytes) -> bool:
    """Whether an error that answers `on_close` may mean that there is no class that takes sockets;
    or it is what the object's `on_start` has raised."""
    info = info_from_wire(body)
    return info.kind == "InvalidCall" and info.status == 404


class Closings:
    """Those of one host."""

    def __init__(self, core: HostCore) -> None:
        self._core = core
        self._under_way: set[tuple[Entry, str]] = set()
        self._again: dict[tuple[Entry, str], tuple[float, float]] = {}
        """Those that failed: → (when to try again, how long to wait after that)."""
        self._looking: set[asyncio.Task[None]] = set()

    def close(self, entry: Entry, gateway: str) -> None:
        """Tells the object that the socket of this gateway is gone, unless it is being told."""
        if (entry, gateway) not in self._under_way and (entry, gateway) not in self._again:
            self._tell(entry, gateway, RETRY_FIRST_S)

    def sweep(self, now: float) -> None:
        """Tries again what is due."""
        for (entry, gateway), (due, delay_s) in list(self._again.items()):
            if due <= now:
                del self._again[entry, gateway]
                if entry in self._core.gateways.sockets.get(gateway, ()):
                    self._tell(entry, gateway, min(delay_s, RETRY_MAX_S))

    def _tell(self, entry: Entry, gateway: str, delay_s: float) -> None:
        class_name, name, socket = entry
        event = SocketEvent(socket, gateway, TEXT, b"connection lost", LOST)
        # With an id, so that what on_close calls is called once, whoever dies.
        id = f"closed:{gateway}:{socket}"
        call = Call(0, class_name, name, "on_close", SOCKET, encode(event), id)
        self._under_way.add((entry, gateway))

        def replied(status: int, body: bytes, sequence: int) -> None:
            if status == OK:
                self._under_way.discard((entry, gateway))
            elif status != ERROR or is_gone(body):
                self._forget(entry, gateway)
            elif may_have_no_class(body):
                look = asyncio.ensure_future(self._look(entry, gateway, delay_s))
                self._looking.add(look)
                look.add_done_callback(self._looking.discard)
            else:
                self._later(entry, gateway, delay_s)

        self._core.submit(call, replied, True, False)

    def _later(self, entry: Entry, gateway: str, delay_s: float) -> None:
        self._under_way.discard((entry, gateway))
        self._again[entry, gateway] = (self._core.clock.monotonic() + delay_s, delay_s * 2)

    def _forget(self, entry: Entry, gateway: str) -> None:
        """There is nothing more to tell."""
        self._under_way.discard((entry, gateway))
        held = self._core.gateways.sockets.get(gateway)
        if held is not None:
            held.discard(entry)

    async def _look(self, entry: Entry, gateway: str, delay_s: float) -> None:
        """Tells the object again, unless it has no class that takes sockets."""
        try:
            object_class = await self._core.class_for(ObjectId(*entry[:2]))
            takes_sockets = object_class.info.sockets
        except InvalidCall as error:
            takes_sockets = error.status != 404
        except Exception:  # its module raises, or the object has moved
            takes_sockets = True
        if takes_sockets:
            self._later(entry, gateway, delay_s)
        else:
            self._forget(entry, gateway)
