"""The life of a host without Ray: opening, dying, and what channels ask of it.

    closed → alive (`_open`) → dead (`_die`: by `kill`, `crash`, or where the files stop dead)
             ↑__________________|

A death drops everything as it is: channels first, so that nothing leaves any more, then the
storage, then the activations. A life that follows has its own incarnation, and takes over nothing
but the files. Where the storage itself fails (`StorageFailed`), the host begins anew with the next
batch, in the same process, as a host of the cluster does.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Self

from rayobjects.clock import Clock
from rayobjects.errors import (
    InvalidCall,
    MethodError,
    RayObjectsError,
    StorageFailed,
    miscalled,
    misuse,
    to_wire,
)
from rayobjects.limits import ACTIVATIONS_MAX, PAGE_KEYS_MAX
from rayobjects.messages import ERROR, Call, Replies, Reply, decode_batch, decode_poll, encode
from rayobjects.objects.activation import Activation
from rayobjects.objects.caller_channel import Replied
from rayobjects.objects.catalog import ObjectClass, check_class, describe
from rayobjects.objects.context import local_router
from rayobjects.objects.filters import Filter
from rayobjects.objects.filters import check as check_filters
from rayobjects.objects.host_core import HostCore
from rayobjects.objects.model import DurableObject
from rayobjects.objects.tracing import with_spans
from rayobjects.storage.files import Files
from rayobjects.storage.ownership import Claims
from rayobjects.storage.shard import Shard
from rayobjects.testing.channel import LocalChannel
from rayobjects.testing.clock import ManualClock
from rayobjects.testing.files import Crashed, FaultyFiles
from rayobjects.testing.router import LocalRouter
from rayobjects.testing.sockets import LocalGateway

STOP_WITHIN_S = 5.0
"""How long the end of `async with` waits for calls that still run, before it drops them."""

RAISED_KEPT = 100
"""So many of the last exceptions that methods have raised are kept for their callers."""

SHARD = "default-0000"

_MADE_BY_OPENING = frozenset(("client", "loop", "router"))


class HostLife:
    """The part of a `LocalHost` that does not know what its objects are."""

    clock: Clock
    client: LocalChannel

    def __init__(
        self,
        classes: Iterable[type[DurableObject]] | type[DurableObject],
        directory: str | None = None,
        *,
        files: Files | None = None,
        clock: Clock | None = None,
        idle_s: float = 60.0,
        activations_max: int = ACTIVATIONS_MAX,
        filters: Iterable[Filter] = (),
    ) -> None:
        self._filters = check_filters(filters)
        self.clock = clock if clock is not None else ManualClock()
        self.core: LocalCore | None = None
        self.shard: Shard | None = None
        self._temporary: str | None = None
        if files is None:
            if directory is None:
                directory = self._temporary = tempfile.mkdtemp(prefix="rayobjects-")
            files = FaultyFiles(str(directory))
        self._files = files
        self.classes = LocalClasses(_listed(classes))
        self._idle_s = idle_s
        self._activations_max = activations_max
        self._gateways: dict[str, LocalGateway] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._held: deque[Callable[[], None]] | None = None
        self._telling: set[str] = set()
        self._late: set[object] = set()  # schedules and messages that wait for something
        self._unopened = False
        self._first_epoch = 0
        self._claims = Claims()
        self._lives = itertools.count(1)

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        self._alive = asyncio.Event()
        self._died = asyncio.Event()
        self.client = LocalChannel(self, "")
        self._context = contextvars.copy_context()
        self._outer_router = local_router.get()
        self.router = LocalRouter(self, self.client.send)
        self._context.run(local_router.set, self.router)
        local_router.set(self.router)
        self._open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.core is not None and self.core.failed is None:
                await self._stop()
            else:
                self._die()
            for gateway in self._gateways.values():
                gateway.channel.close()
            self.client.close()
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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What `async with` makes is not there yet."""
            if name in _MADE_BY_OPENING:
                raise misuse("open the host first: `async with LocalHost([…]) as host:`")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def _stop(self) -> None:
        assert self.core is not None
        assert self.shard is not None
        try:
            await asyncio.wait_for(self.core.stop(), STOP_WITHIN_S)
            self.core, shard = None, self.shard
            self.shard = None
            shard.close()
        except StorageFailed:
            pass  # the last fold failed, or another host has taken over: the journal has it all
        except (TimeoutError, Crashed):
            self._die()

    def _open(self) -> None:
        """Opens storage and core; stays dead if the files stop dead under way."""
        life = next(self._lives)

        def soon(task: Callable[[], None]) -> None:
            if self._held is not None:
                self._held.append(lambda: self._run(life, task))
            else:
                self.loop.call_soon(self._run, life, task)

        try:
            shard = Shard.open(
                self._files,
                SHARD,
                clock=self.clock,
                soon=soon,
                post=soon,
                claims=self._claims,
                threads=False,
            )
        except Crashed:
            self._died.set()
            return
        if not self.client.id:
            self._first_epoch = shard.epoch
            self.client.id = self.new_id("client")
        telling = Telling(self.router)
        self._life = life
        self._unopened = False
        self.shard = shard
        self.core = LocalCore(
            ledger=shard,
            classes=self.classes,
            clock=self.clock,
            owns=lambda id, object_class: True,
            incarnation=self._incarnation(shard.epoch),
            idle_s=self._idle_s,
            activations_max=self._activations_max,
            suspect=self._suspect,
            outgoing=telling,
        )
        self._telling = telling.under_way
        self.core.filters = with_spans(self._filters)
        self._context.copy().run(self.core.begin)  # whose objects call others
        self._died.clear()
        self._alive.set()

    def _incarnation(self, epoch: int) -> str:
        """Names a life of the host."""
        return f"epoch-{epoch}"

    def _suspect(self, gateway: str) -> None:
        """The host has not heard of a gateway: has its process ended?"""
        core = self.core
        ended = any(each.channel.closed for each in self._gateways.values() if each.id == gateway)
        if core is not None and ended:
            self.loop.call_soon(core.gateways.died, gateway)

    def _open_again(self, failure: StorageFailed | None) -> None:
        """As a host of the cluster does: in the same process, unless another one has taken the
        shard over; then that process ends, and the next takes the shard back."""
        if failure is None or "lost" not in failure.details:
            try:
                self._open()
                return
            except StorageFailed as error:
                if "lost" not in error.details:
                    raise
        self._claims = Claims()
        self._open()

    def _begin_anew(self) -> StorageFailed | None:
        """If the storage has failed, opens it again; returns why it cannot be opened."""
        if self.core is not None and self.core.failed is None:
            return None
        if self.core is None and not self._unopened:
            return None
        failure = self.core.failed if self.core is not None else None
        self._die()
        try:
            self._open_again(failure)
        except StorageFailed as error:
            self._unopened = True  # the next call tries again
            self._alive.set()
            return error
        return None

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
        self._claims = Claims()  # of a new process
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
        self._claims = Claims()  # of a new process
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

    # -- what channels ask --------------------------------------------------------------------

    async def deliver(self, body: bytes) -> bytes:
        """Takes a `Batch`, returns `Replies`."""
        await self.alive()
        error = self._begin_anew()
        if error is not None:
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

    async def list_objects(
        self, class_name: str, prefix: str = "", after: str = "", limit: int = PAGE_KEYS_MAX
    ) -> list[str]:
        """Names of a class's objects, sorted; those with `prefix`, behind `after`."""
        assert self.shard is not None, "the host is dead"
        return await self.shard.list_objects(class_name, prefix, after, limit)

    def pushes_waiting(self, gateway: str, channel: LocalChannel) -> bool:
        """Whether the host has messages that a gateway, which asks for them, does not have yet."""
        if not channel.sockets:
            return False
        if self.core is None or self.core.failed is not None:
            return True
        outbox = self.core.gateways.outboxes.get(gateway)
        return outbox is not None and outbox.count > channel.pushed(self.core.incarnation)

    def new_id(self, name: str) -> str:
        """The id of a pretended process. Call ids follow from it, and the storage remembers them,
        so no other host on the same storage may use it again: epochs are never used twice."""
        assert self._first_epoch, "the host has never lived"
        return f"{name}-{self._first_epoch}"

    async def alive(self) -> None:
        """Returns when the host lives."""
        await self._alive.wait()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine in the background; what it raises is raised by the end of the host."""
        task = self.loop.create_task(coroutine, context=self._context.copy())
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


class Telling:
    """The way that messages of a host's objects to others take.

    Attributes:
        under_way: the ids of those that have no answer yet.
    """

    def __init__(self, router: LocalRouter) -> None:
        self.under_way: set[str] = set()
        self._router = router

    def submit(self, call: Call, replied: Replied, context: Any) -> None:
        id = call.id
        if not call.held:
            self._router.submit(call, replied, context)
            return

        def ended(outcome: Reply | RayObjectsError) -> None:
            self.under_way.discard(id)
            replied(outcome)

        self.under_way.add(id)
        self._router.submit(call, ended, context)

    def key_of(self, class_name: str) -> str | None:
        return self._router.key_of(class_name)

    async def refresh(self) -> None:
        await self._router.refresh()


class LocalCore(HostCore):
    """A core that says when an object has left, and what was raised."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._raised: deque[MethodError] = deque(maxlen=RAISED_KEPT)
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

    def raised(self, target: str, error: BaseException) -> MethodError:
        wrapped = super().raised(target, error)
        self._raised.append(wrapped)
        return wrapped

    def cause_of(self, error: MethodError) -> BaseException | None:
        """What a method has raised, for whoever has the error from a reply that does not carry
        it, as those to gateways; None if that is long ago."""
        for each in reversed(self._raised):
            if (each.message, each.traceback) == (error.message, error.traceback):
                return each.cause
        return None


def _listed(classes: Iterable[type[DurableObject]] | Any) -> list[type[DurableObject]]:
    if isinstance(classes, type):
        return [classes]
    if not isinstance(classes, Iterable) or isinstance(classes, str):
        raise misuse(f"a host takes a list of classes, not {classes!r}: LocalHost([Counter])")
    return list(classes)


class LocalClasses:
    """The classes of a host."""

    def __init__(self, classes: Iterable[type[DurableObject]]) -> None:
        self._classes: dict[str, ObjectClass] = {}
        self.add(classes)

    def add(self, classes: Iterable[type[DurableObject]]) -> None:
        classes = list(classes)
        for each in classes:
            check_class(each)
        for name, count in Counter(each.__name__ for each in set(classes)).items():
            if count > 1:  # objects are found by the name of their class
                raise InvalidCall(
                    f"there are {count} classes of the name {name!r}: give them different names"
                )
        for each in classes:
            info = describe(each)
            before = self._classes.get(info.name)
            info.version = before.info.version + 1 if before is not None else 1
            self._classes[info.name] = ObjectClass(each, info)

    async def get(self, name: str) -> ObjectClass:
        found = self._classes.get(name)
        if found is None:
            known = ", ".join(sorted(self._classes)) or "none"
            message = f"no class {name!r} is deployed (there are: {known})"
            raise miscalled(name, message, status=404)
        return found
