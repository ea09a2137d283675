"""A host without Ray: real objects, real storage, one process, one event loop.

    async with LocalHost([Counter]) as host:
        counter = host.get(Counter, "home")
        assert await counter.increment.remote(2) == 2
        await host.crash()                               # the power fails, and comes back
        assert await counter.increment.remote(1) == 3

Everything between a stub and the disk is what runs in production, but for Ray itself: batches,
sessions, activations, commits, the journal. Time stands still until `move`, the disk is a
`FaultyFiles`, and nothing runs on threads (large objects do), so a failure comes again with the
same steps.

The host dies by `kill`, by `crash`, or by itself where its files are told to stop dead
(`host.files.crash_at`). Then no reply and no message leaves it any more; callers wait, and send
again when it is back. What a dead host leaves behind is in the files, and nothing else is taken
over by its next life.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from rayobjects import messages
from rayobjects.clock import Clock
from rayobjects.errors import InvalidCall, RayObjectsError, StorageFailed, from_wire, to_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import ACTIVATIONS_MAX, PAGE_KEYS_MAX
from rayobjects.messages import (
    ERROR,
    JSON,
    SYSTEM,
    HttpRequest,
    HttpResponse,
    Replies,
    Reply,
    decode_batch,
    decode_poll,
    encode,
)
from rayobjects.objects.activation import Activation
from rayobjects.objects.catalog import ObjectClass, describe
from rayobjects.objects.context import local_router
from rayobjects.objects.host_core import HostCore
from rayobjects.objects.model import DurableObject
from rayobjects.storage.files import Files
from rayobjects.storage.shard import Shard
from rayobjects.testing.channel import LocalChannel
from rayobjects.testing.clock import ManualClock
from rayobjects.testing.files import Crashed, FaultyFiles
from rayobjects.testing.router import LocalRouter
from rayobjects.testing.sockets import LocalGateway, LocalSocket
from rayobjects.testing.stubs import LocalStub, send

STOP_WITHIN_S = 5.0
"""How long the end of `async with` waits for calls that still run, before it drops them."""

SHARD = "default-0000"

Target = LocalStub | ObjectId


class LocalHost:
    """A host for tests; use it with `async with`.

    Args:
        classes: the classes of its objects.
        directory: where it stores them, for later hosts to find; None: a temporary one.
        files: instead of `directory`: a disk of your own.
        clock: None: a `ManualClock`.
        idle_s: after so many seconds without a call objects leave (when `move` says so).
        activations_max: with more live objects than that, the longest idle ones leave.

    Attributes:
        clock: its clock.
        files: its disk, as this life of the host sees it.
        core: what runs the objects; None while the host is dead.
        shard: their storage; None while the host is dead.
        client: the channel that the test's own calls take.
    """

    clock: Clock
    client: LocalChannel

    def __init__(
        self,
        classes: Iterable[type[DurableObject]],
        directory: str | None = None,
        *,
        files: Files | None = None,
        clock: Clock | None = None,
        idle_s: float = 60.0,
        activations_max: int = ACTIVATIONS_MAX,
    ) -> None:
        self.clock = clock if clock is not None else ManualClock()
        self.core: HostCore | None = None
        self.shard: Shard | None = None
        self._temporary: str | None = None
        if files is None:
            if directory is None:
                directory = self._temporary = tempfile.mkdtemp(prefix="rayobjects-")
            files = FaultyFiles(str(directory))
        self._files = files
        self._classes = _Classes(classes)
        self._idle_s = idle_s
        self._activations_max = activations_max
        self._gateways: dict[str, LocalGateway] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._held: deque[Callable[[], None]] | None = None
        self._unopened = False
        self._lives = itertools.count(1)

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._alive = asyncio.Event()
        self._died = asyncio.Event()
        self.client = LocalChannel(self, "client")
        self.router = LocalRouter(self, self.client.send)
        self._context = contextvars.copy_context()
        self._context.run(local_router.set, self.router)
        self._outer_router = local_router.get()
        local_router.set(self.router)
        self._open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.core is not None and self.core.failed is None:
                await self._stop()
            else:
                self._die()
            for channel in (self.client, *(g.channel for g in self._gateways.values())):
                channel.close()
            self._alive.set()  # ends what waits for it
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            local_router.set(self._outer_router)
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)
        if kind is None and self._errors:
            raise self._errors[0]

    async def _stop(self) -> None:
        assert self.core is not None
        assert self.shard is not None
        try:
            await asyncio.wait_for(self.core.stop(), STOP_WITHIN_S)
            self.core, shard = None, self.shard
            self.shard = None
            shard.close()
        except (TimeoutError, Crashed):
            self._die()

    def _open(self) -> None:
        """Opens storage and core; stays dead if the files stop dead under way."""
        life = next(self._lives)

        def soon(task: Callable[[], None]) -> None:
            if self._held is not None:
                self._held.append(lambda: self._run(life, task))
            else:
                self._loop.call_soon(self._run, life, task)

        try:
            shard = Shard.open(
                self._files,
                SHARD,
                clock=self.clock,
                soon=soon,
                post=soon,
                threads=False,
            )
        except Crashed:
            self._died.set()
            return
        self._life = life
        self._unopened = False
        self.shard = shard
        self.core = _Core(
            ledger=shard,
            classes=self._classes,
            clock=self.clock,
            owns=lambda id, object_class: True,
            incarnation=f"life-{life}",
            idle_s=self._idle_s,
            activations_max=self._activations_max,
        )
        self._died.clear()
        self._alive.set()

    def _run(self, life: int, task: Callable[[], None]) -> None:
        """What the storage does on the loop; dies where the files say so."""
        if self.core is None or life != self._life:
            return
        try:
            task()
        except Crashed:
            self._die()

    def _die(self) -> None:
        """Drops everything as it is. Nothing leaves any more, and no error is answered."""
        core, shard = self.core, self.shard
        self.core = self.shard = None
        self._alive.clear()
        self._unopened = False
        self._died.set()
        self._held = None if self._held is None else deque()
        if core is None or shard is None:
            return
        core.release()
        shard.abandon()
        core.failed = core.failed or shard.failed
        activations, core.activations = core.activations, {}
        for activation in activations.values():
            activation.abandon()

    async def kill(self, *, crash_at: int | None = None) -> None:
        """The process dies and starts again: what it had written is there, synced or not.

        Args:
            crash_at: its next life stops dead at this operation on its files (the first is 0).

        Raises:
            StorageFailed: the storage cannot be opened again.
        """
        self._die()
        if isinstance(self._files, FaultyFiles):
            self._files = self._files.kill()
            self._files.crash_at = crash_at
        self._open()

    async def crash(self, *, crash_at: int | None = None) -> None:
        """The power fails and comes back: of what was not synced, anything may be lost.

        Args:
            crash_at: its next life stops dead at this operation on its files (the first is 0).

        Raises:
            StorageFailed: the storage cannot be opened again.
        """
        self._die()
        if isinstance(self._files, FaultyFiles):
            self._files = self._files.crash()
            self._files.crash_at = crash_at
        self._open()

    @property
    def files(self) -> Any:
        """The disk: a `FaultyFiles`, unless another was handed in."""
        return self._files

    @property
    def dead(self) -> bool:
        """Whether the host has died and not been started again."""
        return self.core is None

    async def death(self) -> None:
        """Returns when the host is dead."""
        await self._died.wait()

    # -- time and syncs -----------------------------------------------------------------------

    async def move(self, seconds: float) -> None:
        """Moves the time on, and does what a host does every second.

        Raises:
            TypeError: the clock is no ManualClock.
        """
        if not isinstance(self.clock, ManualClock):
            raise TypeError("this host's time moves by itself: call sweep()")
        self.clock.move(seconds)
        await self.sweep()

    async def sweep(self) -> None:
        """What a host does every second: idle objects leave, silent gateways are given up, old
        replies are forgotten."""
        core, shard = self.core, self.shard
        if core is None or shard is None or core.failed is not None:
            return
        core.sweep()
        try:
            shard.expire()
        except Crashed:
            self._die()

    async def fold(self) -> None:
        """Folds the journal into the checkpoint (DuckDB) now."""
        assert self.shard is not None, "the host is dead"
        try:
            await self.shard.fold()
        except Crashed:
            self._die()

    @contextmanager
    def syncs_held(self) -> Iterator[None]:
        """While it is open the disk is slow: nothing is written or synced, so nothing that waits
        for that may leave."""
        held: deque[Callable[[], None]] = deque()
        self._held = held
        try:
            yield
        finally:
            held, self._held = self._held, None
            while held:
                held.popleft()()

    # -- objects ------------------------------------------------------------------------------

    def get(self, object_class: type[DurableObject] | str, name: str) -> LocalStub:
        """A stub of an object: `await stub.method.remote(…)`."""
        return LocalStub(_class_name(object_class), name, self.router)

    async def list(
        self,
        object_class: type[DurableObject] | str,
        prefix: str = "",
        after: str = "",
        limit: int = PAGE_KEYS_MAX,
    ) -> list[str]:
        """Names of the class's objects that exist, sorted; those with `prefix`, behind `after`."""
        assert self.shard is not None, "the host is dead"
        return await self.shard.list_objects(_class_name(object_class), prefix, after, limit)

    async def deploy(self, *classes: type[DurableObject]) -> None:
        """Deploys new versions of classes, or further ones: live objects move between two calls."""
        self._classes.add(classes)
        if self.core is not None:
            self.core.refresh({each.__name__ for each in classes})

    async def evict(self, stub: Target) -> None:
        """Takes an object out of memory, after the call that runs; returns when it has left."""
        core = self.core
        assert isinstance(core, _Core), "the host is dead"
        activation = core.activations.get(_id(stub))
        if activation is not None:
            activation.retire()
            await core.left(activation)

    def is_live(self, stub: Target) -> bool:
        """Whether the object is in memory."""
        return self.core is not None and _id(stub) in self.core.activations

    async def state(self, stub: Target) -> dict[str, Any]:
        """What is committed of an object, in JSON types: `{"attributes": …, "storage": …}`."""
        id = _id(stub)
        state: dict[str, Any] = await send(
            LocalStub(*id, self.router), "state", SYSTEM, messages.encode_json({})
        )
        return state

    async def post(
        self,
        stub: Target,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str = "",
    ) -> Any:
        """Calls a method as `POST /objects/…` does: arguments and result are JSON.

        Raises:
            RayObjectsError: as for HTTP clients; InvalidCall where arguments do not fit.
        """
        return await send(
            LocalStub(*_id(stub), self.router),
            method,
            JSON,
            messages.encode_json(dict(arguments or {})),
            f"key:{idempotency_key}" if idempotency_key else "",
        )

    async def fetch(
        self,
        stub: Target,
        method: str = "GET",
        path: str = "/",
        *,
        query: str = "",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> HttpResponse:
        """Sends a raw request to `on_request`."""
        request = HttpRequest(method, path, query, list(headers), body)
        future: asyncio.Future[Reply | RayObjectsError] = self._loop.create_future()
        call = messages.Call(0, *_id(stub), "on_request", messages.REQUEST, encode(request))
        self.client.send(call, future.set_result)
        outcome = await future
        if isinstance(outcome, RayObjectsError):
            raise outcome
        if outcome.status == ERROR:
            raise from_wire(outcome.body)
        return messages.decode_response(outcome.body)

    # -- sockets ------------------------------------------------------------------------------

    def gateway(self, id: str = "gateway") -> LocalGateway:
        """The gateway of this name, made when it is first asked for."""
        gateway = self._gateways.get(id)
        if gateway is None:
            gateway = self._gateways[id] = LocalGateway(self, id)
        return gateway

    async def connect(
        self,
        stub: Target,
        *,
        query: str | Mapping[str, str] = "",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        gateway: str = "gateway",
    ) -> LocalSocket:
        """Opens a WebSocket to an object; returns when it is open and what `on_connect` sent has
        arrived.

        Args:
            query: of the opening request: a query string, or its parameters.
            headers: of the opening request.
            gateway: which gateway holds the socket.

        Raises:
            InvalidCall: the object refused it, or takes no sockets.
            RayObjectsError: `on_connect` raised.
        """
        return await self.gateway(gateway).connect(_id(stub), query, headers)

    async def settled(self) -> None:
        """Returns when every socket message that has left an object has arrived."""
        for gateway in list(self._gateways.values()):
            await gateway.settled()

    def pushes_waiting(self, gateway: str, channel: LocalChannel) -> bool:
        """Whether the host has messages that a gateway, which asks for them, does not have yet."""
        if not channel.sockets:
            return False
        if self.core is None or self.core.failed is not None:
            return True
        outbox = self.core.outboxes.get(gateway)
        return outbox is not None and outbox.count > channel.pushed(self.core.incarnation)

    # -- what channels ask --------------------------------------------------------------------

    async def deliver(self, body: bytes) -> bytes:
        """Takes a `Batch`, returns `Replies`."""
        await self.alive()
        if self.core.failed is not None if self.core is not None else self._unopened:
            # As a host of the cluster does: it begins anew in the same process.
            self._die()
            try:
                self._open()
            except StorageFailed as error:
                self._unopened = True  # the next call tries again
                self._alive.set()
                wire = to_wire(error, with_cause=False)
                calls = decode_batch(body).calls
                return encode(Replies([Reply(call.number, ERROR, wire) for call in calls]))
        core = self.core
        if core is None:
            raise ConnectionError("the host is dead")
        replies = await core.deliver(decode_batch(body))
        if core is not self.core:
            raise ConnectionError("the host died")
        return encode(replies)

    async def poll(self, body: bytes) -> bytes:
        """Takes a `Poll`, returns `Replies`."""
        core = self.core
        if core is None:
            raise ConnectionError("the host is dead")
        replies = await core.poll(decode_poll(body))
        if core is not self.core:
            raise ConnectionError("the host died")
        return encode(replies)

    async def alive(self) -> None:
        """Returns when the host lives."""
        await self._alive.wait()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine in the background; what it raises is raised by the end of the host."""
        task = self._loop.create_task(coroutine, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Crashed):
            self._die()
        elif error is not None:
            self._errors.append(error)


class _Core(HostCore):
    """A core that says when an object has left."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._leaving: dict[int, list[asyncio.Future[None]]] = {}

    async def left(self, activation: Activation) -> None:
        if not activation.gone:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._leaving.setdefault(id(activation), []).append(future)
            await future

    def dropped(self, activation: Activation) -> None:
        super().dropped(activation)
        for future in self._leaving.pop(id(activation), ()):
            if not future.done():
                future.set_result(None)


class _Classes:
    """The classes of a host."""

    def __init__(self, classes: Iterable[type[DurableObject]]) -> None:
        self._classes: dict[str, ObjectClass] = {}
        self.add(classes)

    def add(self, classes: Iterable[type[DurableObject]]) -> None:
        for each in classes:
            info = describe(each)
            before = self._classes.get(info.name)
            info.version = before.info.version + 1 if before is not None else 1
            self._classes[info.name] = ObjectClass(each, info)

    async def get(self, name: str) -> ObjectClass:
        found = self._classes.get(name)
        if found is None:
            known = ", ".join(sorted(self._classes)) or "none"
            raise InvalidCall(f"no class {name!r} is deployed (there are: {known})", status=404)
        return found


def _class_name(object_class: type[DurableObject] | str) -> str:
    return object_class if isinstance(object_class, str) else object_class.__name__


def _id(stub: Target) -> ObjectId:
    return stub if isinstance(stub, ObjectId) else stub.id
