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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote

from rayobjects import messages
from rayobjects.errors import RayObjectsError, from_wire, misuse
from rayobjects.ids import ObjectId
from rayobjects.limits import PAGE_KEYS_MAX
from rayobjects.messages import ERROR, JSON, SYSTEM, HttpRequest, HttpResponse, Reply, encode
from rayobjects.objects.model import DurableObject
from rayobjects.storage.records import SCHEDULE, Promise
from rayobjects.testing.clock import ManualClock
from rayobjects.testing.files import Crashed
from rayobjects.testing.life import HostLife, LocalCore
from rayobjects.testing.sockets import LocalGateway, LocalSocket
from rayobjects.testing.stubs import LocalStub, send

STEP_S = 1.0
"""A real host sweeps about once a second; time that is moved passes in such steps."""

DUE_WITHIN_S = 1.0
"""How long, of real time, `move` waits once for schedules' calls that do not end: one may wait for
what the test does next, or an object may plan itself anew without an end."""

DUE_TURNS = 200
"""So many turns of the event loop it gives them after that, or while nothing can be written: far
more than a call needs that nothing holds up."""

QUIET_TURNS = 5
"""After so many turns without anything under way nothing more is expected."""

Target = LocalStub | ObjectId


class LocalHost(HostLife):
    """A host for tests; use it with `async with`.

    Args:
        classes: the classes of its objects; a single one may stand for a list of it.
        directory: where it stores them, for later hosts to find; None: a temporary one.
        files: instead of `directory`: a disk of your own.
        clock: None: a `ManualClock`.
        idle_s: after so many seconds without a call objects leave (when `move` says so).
        activations_max: with more live objects than that, the longest idle ones leave.
        filters: around the calls of methods, as in `ro.init`.

    Attributes:
        clock: its clock.
        files: its disk, as this life of the host sees it.
        core: what runs the objects; None while the host is dead.
        shard: their storage; None while the host is dead.
        client: the channel that the test's own calls take.
    """

    # -- time and syncs -----------------------------------------------------------------------

    async def move(self, seconds: float) -> None:
        """Moves the time on, and does what a host does every second. A schedule fires when its time
        has come, a recurring one each time, and what raised is called again at its time; the time
        goes on when these calls have ended, and what they told others is delivered. Returns when
        what was sent to sockets has arrived. A call that does not end, because it waits for
        something else, is left to itself after a second of real time. Gateways that live, and are
        not told to be silent, were heard of all the while.

        Raises:
            TypeError: the clock is no ManualClock.
        """
        if not isinstance(self.clock, ManualClock):
            raise TypeError("this host's time moves by itself: call sweep()")
        left = seconds
        patient = await self._run_due(True)  # what is to happen before
        while True:
            step = self._step(left)
            self.clock.move(step)
            left -= step
            if left <= 0:
                break
            if self.core is not None and self.core.failed is None:
                # A host whose sweeps are far apart believes that it was held up itself.
                self.core.beat()
                patient = await self._run_due(patient)
        self._hear()
        await self.sweep()
        await self._run_due(patient)
        if self._held is None and not self._is_down():
            with suppress(TimeoutError):
                async with asyncio.timeout(DUE_WITHIN_S):
                    await self.settled()

    def _step(self, left: float) -> float:
        """How far the time moves at once: to what is due next, if that is soon."""
        core = self.core
        if core is None or core.failed is not None:
            return left
        step = min(left, STEP_S)
        for due, now in (
            (core.scheduler.next_at, self.clock.now()),
            (core.timers.next_at, self.clock.monotonic()),
        ):
            if due is not None and now < due < now + step:
                step = due - now
        return step

    async def _run_due(self, patient: bool) -> bool:
        """Fires what is due and waits for it, and for what it tells others, but not for ever.

        Args:
            patient: waits for DUE_WITHIN_S.

        Returns:
            Whether to be as patient the next time.
        """
        turns = quiet = 0
        until = self.loop.time() + DUE_WITHIN_S
        patient = patient and self._held is None
        while quiet < QUIET_TURNS:
            if self._is_due():
                quiet = 0
            elif not turns:
                break
            else:  # one that has ended may have told others something
                quiet += 1
            if turns >= DUE_TURNS:
                # What is told may wait for another host, which the test has to move first.
                only_told = self._under_way() - self._late <= self._telling
                if only_told or not patient or self.loop.time() >= until:
                    self._late |= self._under_way()
                    return patient and only_told
            turns += 1
            # At first as fast as it goes; then it is something that takes real time.
            await asyncio.sleep(0 if turns < DUE_TURNS else 0.001)
        return patient

    def _is_due(self) -> bool:
        """Whether a schedule or a message is due that is not known to wait for something; runs
        what has not begun."""
        core = self.core
        if self._is_down() or core is None:
            return False
        timer_at = core.timers.next_at  # of second attempts
        if timer_at is not None and timer_at <= self.clock.monotonic():
            self._context.copy().run(core.timers.run_due)
        next_at = core.scheduler.next_at
        if next_at is not None and next_at <= self.clock.now():
            self._context.copy().run(core.scheduler.run_due)
            next_at = core.scheduler.next_at
        under_way = self._under_way()
        self._late &= under_way
        waits = next_at is not None and next_at <= self.clock.now()  # its turn
        return waits or bool(under_way - self._late)

    def _under_way(self) -> set[object]:
        return {*self.core.scheduler.under_way, *self._telling} if self.core is not None else set()

    def _is_down(self) -> bool:
        return self.core is None or self.core.failed is not None

    def _hear(self) -> None:
        core = self.core
        living = [each.channel for each in self._gateways.values() if not each.silent]
        for channel in (self.client, *living):
            end = core.channels.get(channel.id) if core is not None else None
            if core is not None and end is not None and not channel.closed:
                end.heard_at = self.clock.monotonic()
                outbox = core.gateways.outboxes.get(channel.id)
                if outbox is not None:
                    outbox.heard_at = end.heard_at

    async def sweep(self) -> None:
        """What a host does every second: idle objects leave, silent gateways are given up, old
        replies are forgotten; one whose storage has failed begins anew."""
        self._begin_anew()
        core, shard = self.core, self.shard
        if core is None or shard is None:
            return
        self._context.copy().run(core.sweep)
        try:
            shard.expire()
        except Crashed:
            self._die()

    async def fire(self, stub: Target, key: str) -> None:
        """Moves the time to when a schedule is due (not at all if it is overdue), and returns when
        its call has ended: it is done then, or has its next time or attempt.

        Raises:
            KeyError: the object has no such schedule, or it has failed for good.
            TypeError: the clock is no ManualClock.
        """
        id = _id(stub)
        promise = self._schedule(id, key)
        if promise is None or promise.failed:
            raise KeyError(f"{id} has no schedule {key!r} that is still to fire")
        await self.move(max(0.0, promise.due - self.clock.now()))
        if self._schedule(id, key) is promise:
            while self._schedule(id, key) is promise:  # noqa: ASYNC110  the host's own steps
                await asyncio.sleep(0)
            await self.settled()

    def _schedule(self, id: ObjectId, key: str) -> Promise | None:
        return self.shard.promise(id, SCHEDULE, key) if self.shard is not None else None

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
        return await self.router.list_objects(_class_name(object_class), prefix, after, limit)

    async def deploy(self, *classes: type[DurableObject]) -> None:
        """Deploys new versions of classes, or further ones: live objects move between two calls."""
        self.classes.add(classes)
        if self.core is not None:
            self.core.refresh({each.__name__ for each in classes})

    async def evict(self, stub: Target) -> None:
        """Takes an object out of memory, after the call that runs; returns when it has left."""
        core = self.core
        assert isinstance(core, LocalCore), "the host is dead"
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
        """Sends a raw request to `on_request`.

        Args:
            path: what follows `/fetch` in a URL; it may have a query behind it, and is decoded
                (`%20`) as the gateway does.
            query: instead of one behind the path.

        Raises:
            InvalidCall: the object refused it or takes none, or there are two queries.
            RayObjectsError: `on_request` raised.
        """
        path, mark, behind = path.partition("?")
        if mark and query:
            raise misuse(f"the path has a query, {behind!r}: leave `query` out, or that one")
        request = HttpRequest(method, unquote(path), behind or query, list(headers), body)
        future: asyncio.Future[Reply | RayObjectsError] = self.loop.create_future()
        call = messages.Call(0, *_id(stub), "on_request", messages.REQUEST, encode(request))
        self.client.send(call, future.set_result)
        outcome = await future
        if isinstance(outcome, RayObjectsError):
            raise outcome
        if outcome.status == ERROR:
            raise from_wire(outcome.body)
        return messages.decode_response(outcome.body)

    # -- sockets ------------------------------------------------------------------------------

    def gateway(self, name: str = "gateway") -> LocalGateway:
        """The gateway of this name, made when it is first asked for."""
        gateway = self._gateways.get(name)
        if gateway is None:
            gateway = self._gateways[name] = LocalGateway(self, self.new_id(name))
        return gateway

    async def connect(
        self,
        stub: Target,
        *,
        query: str | Mapping[str, str] = "",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        subprotocols: Iterable[str] = (),
        gateway: str = "gateway",
    ) -> LocalSocket:
        """Opens a WebSocket to an object; returns when it is open and what `on_connect` sent has
        arrived.

        Args:
            query: of the opening request: a query string, or its parameters.
            headers: of the opening request.
            subprotocols: that the client offers to speak.
            gateway: which gateway holds the socket.

        Raises:
            InvalidCall: `on_connect` has closed the socket (403; `details["close"]` has code and
                reason) or raised an InvalidCall, or the object takes no sockets.
            MethodError: `on_connect` raised something else, which is the error's `cause`.
            RayObjectsError: the object could not be asked.
        """
        return await self.gateway(gateway).connect(_id(stub), query, headers, subprotocols)

    async def settled(self) -> None:
        """Returns when every socket message that has left an object has arrived."""
        for gateway in list(self._gateways.values()):
            await gateway.settled()


def _class_name(object_class: type[DurableObject] | str) -> str:
    return object_class if isinstance(object_class, str) else object_class.__name__


def _id(stub: Target) -> ObjectId:
    return stub if isinstance(stub, ObjectId) else stub.id
