"""What the gateway needs of the layers below: a router and the catalog's entries.

The gateway talks to objects through these and nothing else, so that it runs in a test with a
double and no Ray. `rayobjects.runtime.router.Router` and `rayobjects.objects.catalog` are the real
ones; they have more than is named here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rayobjects.messages import Call, Push, Reply
from rayobjects.objects.reading import Reading

JsonSchema = dict[str, Any]


class Method(Protocol):
    """A method of a deployed class, as `/docs` shows it."""

    @property
    def name(self) -> str: ...
    @property
    def doc(self) -> str: ...
    @property
    def internal(self) -> bool: ...
    @property
    def parameters(self) -> JsonSchema: ...
    @property
    def returns(self) -> JsonSchema | None: ...
    @property
    def stream(self) -> bool: ...


class ObjectClass(Protocol):
    """A deployed class, as `/docs` shows it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def doc(self) -> str: ...
    @property
    def methods(self) -> Mapping[str, Method]: ...
    @property
    def sockets(self) -> bool: ...
    @property
    def requests(self) -> bool: ...
    @property
    def former(self) -> Sequence[str]: ...
    @property
    def definitions(self) -> Mapping[str, JsonSchema]: ...


class Router(Protocol):
    """Calls objects wherever they live. Lives on the loop of the process that made it."""

    id: str
    """The channel's id, and so this gateway's."""

    on_push: Callable[[Push], None] | None
    """Gets the messages of objects for sockets: in order for each object, perhaps repeated."""

    on_unknown: Callable[[list[tuple[str, str, str]]], None]
    """Gets sockets (class, name, id) that this gateway holds and a host does not know: one that
    took it for dead, or one that has not opened them yet."""

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
        """Sends a call. Calls on one object run in the order in which they were sent. The future
        raises RayObjectsError only; what the object answered, errors too, is the reply."""
        ...

    def ask(self, call: Call) -> asyncio.Future[Reply | Reading]:
        """Like `call`; if the method is a generator, the future brings its stream: without items
        and with all of them in its reply if the call takes it WHOLE."""
        ...

    def socket_opened(self, class_name: str, name: str, socket: str) -> None:
        """The gateway holds a socket to this object: from before `on_connect` is sent."""
        ...

    def socket_closed(self, class_name: str, name: str, socket: str) -> None:
        """The gateway holds it no longer."""
        ...

    async def catalog(self) -> Mapping[str, ObjectClass]:
        """The deployed classes by name."""
        ...

    async def list_objects(self, class_name: str, prefix: str, after: str, limit: int) -> list[str]:
        """Up to `limit` names of objects that begin with `prefix` and come after `after`.

        Raises:
            RayObjectsError: there is no such class, or a host could not be asked.
        """
        ...

    async def close(self) -> None:
        """Gives up the channels."""
        ...
