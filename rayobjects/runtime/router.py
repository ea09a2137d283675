"""The router: one per process; brings each call to the channel of its object's host.

It lives on one event loop: that of the actor in hosts and gateways, a thread of its own in every
other process. Calls of other threads come in through an inbox, one wake-up for many, and their
results go back the same way. A router that is closed answers every call with Unavailable: those
that it had under way, wherever they were, and those that come later.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from rayobjects.clock import Clock, SystemClock
from rayobjects.errors import InvalidCall, RayObjectsError, Unavailable
from rayobjects.ids import ObjectId
from rayobjects.messages import Call, Push, Reply
from rayobjects.objects.caller_channel import TAKEN_BACK, Replied, shut_down, taken_back
from rayobjects.objects.catalog import ClassInfo
from rayobjects.objects.context import CallContext
from rayobjects.objects.reading import Reading, ask
from rayobjects.runtime import listing, placement
from rayobjects.runtime.background import spawn
from rayobjects.runtime.channel import Channel
from rayobjects.runtime.configuration import (
    Catalog,
    Configuration,
    no_class,
    read_catalog,
    read_configuration,
)
from rayobjects.runtime.follow import Follow
from rayobjects.runtime.gateway_sockets import GatewaySockets
from rayobjects.runtime.local_calls import LocalCalls
from rayobjects.runtime.questions import Questions

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

T = TypeVar("T")

REDIRECTS_MAX = 8
"""How often a call follows its class to another hosting before it gives up."""

REDIRECT_AGAIN_S = 0.1
"""The pause before a repeated redirection, times their number."""


class Router:
    """Brings calls to hosts.

    Args:
        id: names this process; for a gateway also its gateway id.
        loop: where it lives; `attach` must be called there.
    """

    def __init__(
        self, id: str, loop: asyncio.AbstractEventLoop, configuration: Configuration, clock: Clock
    ) -> None:
        self.id = id
        self.loop = loop
        self.configuration = configuration
        self.clock = clock
        self._thread = 0
        self._channels: dict[str, Channel] = {}
        self._catalog = Catalog(0, {})
        self._closed = False
        self._unresolved: dict[str, list[tuple[Call, Replied, CallContext | None]]] = {}
        self._moving: dict[int, Replied] = {}
        self._inbox: deque[tuple[Call, Replied, CallContext | None]] = deque()
        self._inbox_due = False
        self._wakes: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        self._sockets = GatewaySockets(self)
        self._local = LocalCalls(self)
        self._number = 0
        self._questions = Questions(loop)
        loop.call_soon_threadsafe(self._attach)

    def _attach(self) -> None:
        self._thread = threading.get_ident()

    def next_number(self) -> int:
        """The number of the next call of this process, whatever host it goes to."""
        self._number += 1
        return self._number

    def runs_here(self) -> bool:
        """Whether the caller is on the router's own loop."""
        return threading.get_ident() == self._thread

    def must_not_wait(self) -> bool:
        """Whether the caller is on a loop that must not wait for an answer: the router's own, or
        that of this host's large objects, for the answer may be theirs to give."""
        if self.runs_here():
            return True
        core = self._local.core
        return core is not None and not core.on_lane and core.lane.runs_here

    def question(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Asks the router something from any other thread; the answer raises Unavailable if the
        router is closed first."""
        return self._questions.ask(ask)

    def serve_locally(self, host: str, core: HostCore | None) -> None:
        """Calls to this host skip Ray: it is in this process. What an earlier core has not answered
        goes to this one, or fails where there is none."""
        self._local.serve(host, core)

    def fail_locally(self, error: RayObjectsError) -> None:
        """The host in this process could not open its storage again."""
        self._local.fail(error)

    # -- calls ------------------------------------------------------------------------------

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
        """Sends a call from the router's own loop; the future brings its reply, OK or ERROR.

        Raises (the future):
            Unavailable, Overloaded: the call did not reach a host, or its outcome is unknown.
            InvalidCall: there is no such class.
        """
        future: asyncio.Future[Reply] = self.loop.create_future()

        def replied(outcome: Reply | RayObjectsError) -> None:
            if future.done():
                return
            if isinstance(outcome, Reply):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
                future.exception()  # its owner may have gone

        call = Call(0, class_name, name, method, encoding, args, id, context=context)
        self._send(call, replied, None)
        return future

    def cancel(self, call: Call) -> None:
        """Has a call ended if it still can be, from any thread."""
        self.loop.call_soon_threadsafe(self._cancel, call)

    def _cancel(self, call: Call) -> None:
        if any(channel.cancel(call) for channel in self._channels.values()):
            return
        call.number = TAKEN_BACK
        if self._local.core is not None:
            self._local.core.cancel_for_caller(ObjectId(call.class_name, call.name), call.id)

    def ask(self, call: Call) -> asyncio.Future[Reply | Reading]:
        """Like `call`; if the method is a generator, the future brings its stream."""
        return ask(self, lambda replied: self._send(call, replied, None))

    def submit(self, call: Call, replied: Replied, context: CallContext | None) -> None:
        """Sends a call from any thread.

        Args:
            context: the running call of an object that makes this one.
        """
        if threading.get_ident() == self._thread:
            self._send_for(call, replied, context)
            return
        self._inbox.append((call, replied, context))
        if not self._inbox_due:
            if self._closed:  # asked after the call is in the inbox: see `close`
                self._refuse_inbox()
                return
            self._inbox_due = True
            self.loop.call_soon_threadsafe(self._take_inbox)

    def _take_inbox(self) -> None:
        self._inbox_due = False
        inbox = self._inbox
        while inbox:
            self._send_for(*inbox.popleft())

    def _refuse_inbox(self) -> None:
        """Perhaps on two threads at once."""
        with contextlib.suppress(IndexError):
            while True:
                _, replied, _ = self._inbox.popleft()
                replied(shut_down())

    def _send_for(self, call: Call, replied: Replied, context: CallContext | None) -> None:
        if context is None:
            self._send(call, replied, None)
        else:  # nothing leaves an object before what it wrote is on disk
            context.leave(call, lambda: self._send_late(call, replied, context), replied)

    def _send_late(
        self, call: Call, replied: Replied, context: CallContext | None, redirects: int = 0
    ) -> None:
        """Sends a call that had to wait, unless it was taken back meanwhile."""
        if call.number == TAKEN_BACK:
            replied(taken_back(call))
        else:
            self._send(call, replied, context, redirects)

    def _send(
        self, call: Call, replied: Replied, context: CallContext | None, redirects: int = 0
    ) -> None:
        info = self._catalog.find(call.class_name)
        waiting = self._unresolved.get(call.class_name)
        if waiting is not None:
            waiting.append((call, replied, context))
            return
        if info is None:
            if self._closed:
                replied(shut_down())
                return
            self._unresolved[call.class_name] = [(call, replied, context)]
            spawn(self._resolve(call.class_name))
            return
        call.class_name = info.key
        host = placement.host_of(ObjectId(info.key, call.name), info, self.configuration)
        local = self._local
        if host == local.host and local.core is not None:
            local.send(local.core, call, replied, context, redirects)
            return
        channel = self._channel(host, info)
        follow = Follow(self, channel, call, replied, context, redirects)
        follow.number = channel.send(call, follow, keep=context is not None)

    async def _resolve(self, class_name: str) -> None:
        """Reads the catalog for a class that is not known here yet."""
        failure: RayObjectsError | None = None
        try:
            await self.refresh()
            if self._catalog.find(class_name) is None:
                failure = no_class(class_name, self._catalog.classes)
        except Exception as error:
            failure = Unavailable(f"the cluster's catalog could not be read ({error}): try again")
        for call, replied, context in self._unresolved.pop(class_name, ()):
            if failure is not None:
                replied(failure)
            else:
                self._send_late(call, replied, context)

    async def refresh(self) -> None:
        """Reads the catalog anew."""
        configuration = await asyncio.to_thread(read_configuration)
        if configuration is not None:
            self.configuration = configuration
        catalog = await asyncio.to_thread(read_catalog)
        if self._closed:
            return
        self._catalog = catalog
        self._sockets.look_again()

    def know(self, classes: list[ClassInfo]) -> None:
        """These have just been deployed from here: the next call must find them as they are."""
        self.loop.call_soon_threadsafe(
            self._catalog.classes.update, {info.name: info for info in classes}
        )

    def key_of(self, class_name: str) -> str | None:
        """What the class of this name is called wherever that must not change; None if there is
        none, as far as known here."""
        info = self._catalog.find(class_name)
        return info.key if info is not None else None

    def redirected(
        self, call: Call, replied: Replied, context: CallContext | None, redirects: int
    ) -> None:
        """The object is hosted elsewhere by now: looks again and follows it."""

        async def follow() -> None:
            failure: RayObjectsError | None = None
            try:
                if redirects >= REDIRECTS_MAX:
                    raise Unavailable(
                        f"{call.class_name}/{call.name} is being moved between hosts: try again"
                    )
                await asyncio.sleep(REDIRECT_AGAIN_S * redirects)
                await self.refresh()
            except RayObjectsError as error:
                failure = error
            except Exception as error:
                failure = Unavailable(f"the cluster's catalog could not be read ({error})")
            if self._moving.pop(id(call), None) is None:
                return  # the router was closed, and has said so
            if failure is not None:
                replied(failure)
            else:
                self._send_late(call, replied, context, redirects + 1)

        self._moving[id(call)] = replied
        spawn(follow())

    def shard_channel(self, shard: int) -> Channel:
        """The channel to a shard's host."""
        return self._channel(placement.shard_host(shard), None)

    def _channel(self, host: str, info: ClassInfo | None) -> Channel:
        channel = self._channels.get(host)
        if channel is None:
            channel = self._channels[host] = self._new_channel(host, info)
        return channel

    @property
    def channels(self) -> Iterable[Channel]:
        """Those that there are."""
        return self._channels.values()

    def channel_of(self, class_name: str, name: str) -> tuple[str, Channel] | None:
        """The key of an object's class, and the channel to its host; None if there is no such
        class, as far as known here."""
        info = self._catalog.find(class_name)
        if info is None:
            return None
        host = placement.host_of(ObjectId(info.key, name), info, self.configuration)
        return info.key, self._channel(host, info)

    def _new_channel(self, host: str, info: ClassInfo | None) -> Channel:
        dedicated = info if placement.shard_of_host(host) is None else None
        attempts = itertools.count()

        async def locate() -> Any:
            again = next(attempts) > 0
            try:
                return await placement.locate(host, dedicated, again=again)
            except (InvalidCall, placement.Moved):  # the class is gone, and so are its objects
                self._sockets.forsaken(self._channels[host].sockets)
                raise

        return Channel(self, host, locate, self.clock, self.configuration.unavailable_after_s)

    # -- results for other threads -------------------------------------------------------------

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Resolves a future of any loop; those of one tick go over together."""
        if loop is self.loop:
            _resolve_all([future])
            return
        if not self._wakes:
            self.loop.call_soon(self._wake_all)
        self._wakes.setdefault(loop, []).append(future)

    def _wake_all(self) -> None:
        wakes, self._wakes = self._wakes, {}
        for loop, futures in wakes.items():
            try:
                loop.call_soon_threadsafe(_resolve_all, futures)
            except RuntimeError:
                pass  # that loop has been closed; nobody waits there any more

    # -- sockets (gateways) ----------------------------------------------------------------------

    @property
    def on_push(self) -> Callable[[Push], None] | None:
        """What takes socket messages; a gateway sets it. They come under each name that the
        object's class had when a socket was opened here."""
        return self._sockets.pushed if self._sockets.on_push is not None else None

    @on_push.setter
    def on_push(self, take: Callable[[Push], None] | None) -> None:
        self._sockets.on_push = take

    @property
    def on_unknown(self) -> Callable[[list[tuple[str, str, str]]], None]:
        """What takes the sockets that no object knows; a gateway sets it. They too come under each
        name."""
        return self._sockets.unknown

    @on_unknown.setter
    def on_unknown(self, take: Callable[[list[tuple[str, str, str]]], None]) -> None:
        self._sockets.on_unknown = take

    def socket_opened(self, class_name: str, name: str, socket: str) -> None:
        """Keeps a standing request to the object's host, from before its on_connect is sent."""
        self._sockets.opened((class_name, name, socket))

    def socket_closed(self, class_name: str, name: str, socket: str) -> None:
        """The object has been told that the socket is closed."""
        self._sockets.closed((class_name, name, socket))

    # -- the cluster ------------------------------------------------------------------------------

    async def catalog(self) -> dict[str, ClassInfo]:
        """Every deployed class, as of now."""
        await self.refresh()
        return self._catalog.classes

    async def list_objects(
        self, class_name: str, prefix: str = "", after: str = "", limit: int = 100
    ) -> list[str]:
        """Names of a class's objects, sorted, those after `after`, at most `limit`.

        Raises:
            InvalidCall: there is no such class.
            Unavailable: a host could not be asked for `unavailable_after_s` seconds.
            StorageFailed: a host cannot open its storage.
        """
        info = await self._class(class_name)
        return await listing.names_of(
            info.key, prefix, after, limit, self.configuration, self.clock
        )

    async def object_exists(self, class_name: str, name: str) -> bool:
        """Whether something is committed for the object. Wakes nothing.

        Raises:
            InvalidCall, Unavailable, StorageFailed: as `list_objects`.
        """
        id = ObjectId((await self._class(class_name)).key, name)
        return await listing.exists(id, self.configuration, self.clock)

    async def _class(self, class_name: str) -> ClassInfo:
        await self.refresh()
        info = self._catalog.find(class_name)
        if info is None:
            raise no_class(class_name, self._catalog.classes)
        return info

    async def close(self) -> None:
        """Ends all channels; calls under way, and what comes later, fail with Unavailable."""
        # The catalog is empty from here on, so the way of calls is the same as ever until a class
        # is not found. Other threads put a call into the inbox first and look second whether the
        # router is closed, here it is closed first and emptied second: one sees the other.
        self._closed = True
        self._catalog = Catalog(0, {})
        self._thread = 0  # another one may have this number when that has ended
        self._inbox_due = False
        self._refuse_inbox()
        unresolved, self._unresolved = self._unresolved, {}
        moving, self._moving = self._moving, {}
        waiting = [replied for calls in unresolved.values() for _, replied, _ in calls]
        for replied in (*waiting, *moving.values()):
            replied(shut_down())
        self._questions.close()
        await asyncio.gather(*(channel.let_go() for channel in self._channels.values()))
        for channel in self._channels.values():
            channel.close()
        self._channels = {}
        self._local.serve("", None)


async def connect() -> Router:
    """The router of an actor that is no host, such as a gateway's replica, on its own loop.

    Raises:
        InvalidCall: the cluster has no configuration: `ro.init` must come first.
    """
    from rayobjects.runtime import gateways, process  # which imports this module
    from rayobjects.runtime.around import Around

    configuration = await asyncio.to_thread(read_configuration)
    if configuration is None:
        raise InvalidCall("this Ray cluster runs no rayobjects yet: call ro.init(storage=…) first")
    router = Router(
        gateways.gateway_id(process.new_router_id()),
        asyncio.get_running_loop(),
        configuration,
        SystemClock(),
    )
    process.adopt(router)
    await Around().take()  # a gateway has no filters of its own, but process_setup
    return router


def _resolve_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
