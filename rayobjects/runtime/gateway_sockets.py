"""What a router does for the sockets of its gateway: it keeps a standing request to the host of
each one's object, and brings what comes for them under the names that they were opened by.

Objects are named by the keys of their classes wherever that must not change; a class that was
renamed has sockets that were opened under several names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from rayobjects.messages import Push
from rayobjects.objects.sockets import farewells

if TYPE_CHECKING:
    from rayobjects.runtime.router import Router

LAST_SEQUENCE = 2**63 - 1
"""Behind every sequence of a record: for the very last message to a socket."""

Entry = tuple[str, str, str]
"""(class, name, socket id)."""


class GatewaySockets:
    """One router's.

    Attributes:
        on_push: what takes socket messages; a gateway sets it.
        on_unknown: what takes the sockets that no object knows; a gateway sets it.
    """

    def __init__(self, router: Router) -> None:
        self.on_push: Callable[[Push], None] | None = None
        self.on_unknown: Callable[[list[Entry]], None] = lambda sockets: None
        self._router = router
        self._names: dict[str, set[str]] = {}
        # By how they were opened: how their channel has them; None while their class is unknown.
        self._open: dict[Entry, Entry | None] = {}

    def opened(self, entry: Entry) -> None:
        """Keeps a standing request to the object's host."""
        self._open[entry] = None
        self._keep_standing(entry)

    def closed(self, entry: Entry) -> None:
        """The object has been told. By now its class may have another name, or none."""
        held = self._open.pop(entry, None)
        if held is not None:
            for channel in self._router.channels:
                channel.sockets.discard(held)

    def look_again(self) -> None:
        """The catalog is another: classes may have been unknown, or have moved."""
        for entry in list(self._open):
            self._keep_standing(entry)

    def _keep_standing(self, entry: Entry) -> None:
        class_name, name, socket = entry
        found = self._router.channel_of(class_name, name)
        if found is not None:
            class_key, channel = found
            if class_key != class_name:  # pushes name the object by its key
                self._names.setdefault(class_key, {class_key}).add(class_name)
            self._open[entry] = held = (class_key, name, socket)
            channel.sockets.add(held)
            channel.need_poll()

    def pushed(self, push: Push) -> None:
        """A message has come."""
        assert self.on_push is not None
        for class_name in self._names.get(push.class_name, (push.class_name,)):
            self.on_push(msgspec.structs.replace(push, class_name=class_name))

    def unknown(self, sockets: list[Entry]) -> None:
        """A host says that no object of its knows these."""
        self.on_unknown(
            [
                (class_name, name, socket)
                for class_key, name, socket in sockets
                for class_name in self._names.get(class_key, (class_key,))
            ]
        )

    def forsaken(self, sockets: Iterable[Entry]) -> None:
        """There is nobody any more who could close them."""
        if self.on_push is not None:
            for class_key, name in {(class_key, name) for class_key, name, _ in sockets}:
                for send in farewells([self._router.id]):
                    self.pushed(Push(class_key, name, LAST_SEQUENCE, 0, send))
