"""Calls that objects of a `LocalHost` make to each other: straight into its core, as on a host.

Takes the place of `runtime.router.Router` for everything that stubs and namespaces ask of it, so
`ro.namespace("Room").get("lobby")` works inside a method under test.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rayobjects.errors import Unavailable
from rayobjects.ids import ObjectId
from rayobjects.limits import PAGE_KEYS_MAX
from rayobjects.messages import OPENED, Call, Reply
from rayobjects.objects.caller_channel import TAKEN_BACK, Replied, taken_back
from rayobjects.objects.context import CallContext
from rayobjects.objects.reading import Following

if TYPE_CHECKING:
    from rayobjects.testing.life import HostLife

T = TypeVar("T")


class LocalRouter:
    """One host's router.

    Args:
        host: where the calls of objects go.
        send: where other calls go: the client's channel.
    """

    def __init__(self, host: HostLife, send: Callable[[Call, Replied], object]) -> None:
        self.loop = asyncio.get_running_loop()
        self._host = host
        self._send = send
        self._thread = threading.get_ident()
        self._calls = 0

    def runs_here(self) -> bool:
        """Whether the caller is on the host's own event loop."""
        return threading.get_ident() == self._thread

    def must_not_wait(self) -> bool:
        """Whether the caller is on a loop that must not wait for an answer: this one, or that of
        large objects."""
        if self.runs_here():
            return True
        core = self._host.core
        return core is not None and not core.on_lane and core.lane.runs_here

    def question(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Asks the router something from any other thread."""
        return asyncio.run_coroutine_threadsafe(ask(), self.loop)

    def submit(self, call: Call, replied: Replied, context: CallContext | None) -> None:
        """Sends a call, from any thread (large objects run on another one).

        Args:
            context: the running call of an object that makes this one.
        """
        if self.runs_here():
            self._submit(call, replied, context)
        else:
            self.loop.call_soon_threadsafe(self._submit, call, replied, context)

    def cancel(self, call: Call) -> None:
        """Has a call ended if it still can be, from any thread."""
        if self.runs_here():
            self._cancel(call)
        else:
            self.loop.call_soon_threadsafe(self._cancel, call)

    def _cancel(self, call: Call) -> None:
        core = self._host.core
        if self._host.client.cancel(call):
            return
        call.number = TAKEN_BACK
        if core is not None:
            core.cancel_for_caller(ObjectId(call.class_name, call.name), call.id)

    def key_of(self, class_name: str) -> str:
        """Classes of a `LocalHost` are never renamed."""
        return class_name

    async def refresh(self) -> None:
        """They are all known."""

    def _submit(self, call: Call, replied: Replied, context: CallContext | None) -> None:
        if context is None:
            self._send(call, replied)
        else:  # nothing leaves an object before what it wrote is on disk
            context.leave(call, lambda: self._send_locally(call, replied, context), replied)

    def _send_locally(self, call: Call, replied: Replied, context: CallContext) -> None:
        if call.number == TAKEN_BACK:
            replied(taken_back(call))
            return
        core = self._host.core
        if core is None or core.failed is not None:
            replied(Unavailable("the host of this test has died"))
            return
        if not call.id:
            self._calls += 1
            call.id = f"{core.incarnation}:local:{self._calls}"

        def respond(status: int, body: bytes, sequence: int) -> None:
            if sequence and status < OPENED:
                id = ObjectId(call.class_name, call.name)
                context.add_child(partial(core.forgetting.add, id, call.id))
            following(Reply(0, status, body, sequence))

        key = (call.class_name, call.name, call.id)
        following = Following(replied, lambda upto: core.streams.credit(key, upto))

        core.submit(call, respond, True, False)

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Resolves a future of any loop."""
        if loop is self.loop:
            _resolve(future)
            return
        try:
            loop.call_soon_threadsafe(_resolve, future)
        except RuntimeError:
            pass  # that loop has been closed; nobody waits there any more

    async def list_objects(
        self, class_name: str, prefix: str = "", after: str = "", limit: int = PAGE_KEYS_MAX
    ) -> list[str]:
        """Names of a class's objects, sorted, those after `after`, at most `limit`."""
        return await self._host.list_objects(class_name, prefix, after, limit)

    async def object_exists(self, class_name: str, name: str) -> bool:
        """Whether something is committed for the object. Wakes nothing."""
        return await self._host.list_objects(class_name, name, "", 1) == [name]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
