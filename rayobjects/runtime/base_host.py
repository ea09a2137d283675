"""What both kinds of hosts do: take batches, open their ledger, and begin anew when it fails.

A host opens its ledger with the first call and keeps the error if that fails: then every call is
answered with it, and the next call after OPEN_AGAIN_S tries again, so a full disk that has room
again needs no restart. A ledger that fails later takes the whole core with it (see HostCore.fail);
the host opens a new one, exactly as a new process would, and channels send again what was not
answered. Its objects may have something to do whether anybody calls or not (schedules, messages
that were told, calls that were begun), so a host whose ledger has failed also tries by itself. Only
a host that has lost its epoch to another process ends its own: it is the stale one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from rayobjects.clock import SystemClock
from rayobjects.errors import RayObjectsError, StorageFailed, Unavailable, to_wire
from rayobjects.ids import ObjectId
from rayobjects.messages import ERROR, Replies, Reply, decode_batch, decode_poll, encode
from rayobjects.objects.catalog import ObjectClass
from rayobjects.objects.host_core import HostCore
from rayobjects.objects.ledger import Ledger
from rayobjects.objects.retrying import Retries
from rayobjects.randomness import seeded
from rayobjects.runtime import hosts_log, process
from rayobjects.runtime.around import Around, load
from rayobjects.runtime.background import spawn
from rayobjects.runtime.configuration import Configuration
from rayobjects.runtime.death_notes import DeathNotes
from rayobjects.runtime.gateways import Lookout
from rayobjects.runtime.host_classes import HostClasses
from rayobjects.runtime.link import DELIVER, POLL, LinkServer, Serve
from rayobjects.runtime.probation import CoreOnProbation, Probation, begin_life
from rayobjects.runtime.router import Router
from rayobjects.runtime.waking import Waker
from rayobjects.runtime.watchdog import Watchdog

logger = logging.getLogger("rayobjects")

OPEN_AGAIN_S = 0.5
"""After a failed opening, calls get its error for so long before the next attempt."""

SWEEP_EVERY_S = 1.0

COLLECT_AFTER = 10_000
"""How many more containers must live before Python looks for garbage in a host. Its own number,
700, is reached by a few dozen calls that are under way, which are no garbage: a durable write then
takes a seventh longer (`make benchmark`, 1,000 callers)."""

UNCALLED_AGAIN = Retries(first_s=1.0, longest_s=60.0)
"""Pauses before a host tries by itself to open a ledger that has failed. A full disk may stay so
for long, and each attempt is logged."""


def begin_process(host: str) -> None:
    """Makes this process one of a host; before anything of it is made."""
    hosts_log.begin(host)
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    gc.freeze()  # modules stay, nobody need look at them


class BaseHost:
    """The part of a host that does not depend on where its ledger is.

    Attributes:
        on_lane: whether methods run beside the host's own loop (see `HostCore`).
    """

    on_lane = False

    def __init__(self, configuration: Configuration, host: str) -> None:
        self.configuration = configuration
        self.host = host
        self.clock = SystemClock()
        self.incarnation = process.new_router_id()
        self.classes = HostClasses()
        self._around = Around()
        self.core: HostCore | None = None
        self._link = LinkServer(self.served(), self.incarnation)
        self._router: Router | None = None
        self._opening = asyncio.Lock()
        self._open_error: StorageFailed | None = None
        self._open_again_at = 0.0
        self._sweeper: asyncio.Task[None] | None = None
        self._stopped = False
        self._notes: DeathNotes | None = None
        self._probation: Probation | None = None
        self._random = seeded(self.incarnation)
        self._reopenings = 0
        self._reopen_at = 0.0
        if _is_restarted():
            logger.warning("the host %s is back: its process had ended, and its calls go on", host)
            # Its objects may have something to do, whether anybody calls or not.
            spawn(self._open_again())

    async def _open_again(self) -> None:
        with contextlib.suppress(RayObjectsError):  # the next call tries again, and gets the error
            await self._opened()

    # -- for subclasses ---------------------------------------------------------------------

    async def open_ledger(self) -> Ledger:
        """Opens the ledger; raises StorageFailed."""
        raise NotImplementedError

    async def close_ledger(self, *, cleanly: bool) -> None:
        """Closes it; unless `cleanly`, as a crash would leave it."""
        raise NotImplementedError

    def owns(self, id: ObjectId, object_class: ObjectClass | None) -> bool:
        """Whether the object lives here."""
        raise NotImplementedError

    async def sweep(self) -> None:
        """What else there is to do every second."""

    def served(self) -> dict[int, Serve]:
        """What can be asked over the Unix socket."""
        return {DELIVER: self.deliver, POLL: self.poll}

    @property
    def link_path(self) -> str:
        """The host's Unix socket; "" where it has none."""
        return self._link.path

    # -- what channels ask --------------------------------------------------------------------

    async def deliver(self, body: bytes) -> bytes:
        """Takes a `Batch`, returns `Replies`."""
        core = self.core
        if core is None or core.failed is not None:
            try:
                core = await self._opened()
            except RayObjectsError as error:
                wire = to_wire(error, with_cause=False)
                batch = decode_batch(body)
                return encode(
                    Replies(
                        [Reply(call.number, ERROR, wire) for call in batch.calls],
                        incarnation=self.incarnation,
                        stale=bool(batch.forget) and not batch.calls,  # it must be said again
                    )
                )
        batch = decode_batch(body)
        replies = await core.deliver(batch)
        if batch.index == 0:
            replies.link = self._link.path
        return encode(replies)

    async def poll(self, body: bytes) -> bytes:
        """Takes a `Poll`, returns `Replies` when there is something to bring."""
        if self.core is None:
            return encode(Replies([], stale=True))
        return encode(await self.core.poll(decode_poll(body)))

    async def start(self) -> dict[str, Any]:
        """Opens the storage now instead of with the first call; returns `stats`."""
        await self._opened()
        return await self.stats()

    async def configure(self, configuration: Configuration) -> None:
        """The configuration has changed (the manifest of an older root had its own shards)."""
        self.configuration = configuration
        if self._router is not None:
            self._router.configuration = configuration

    async def refresh(self, class_names: list[str]) -> None:
        """These classes may have a new version."""
        if self._router is not None:
            await self._router.refresh()
        outdated = self.classes.outdated(set(class_names))
        if self.core is not None:
            self.core.refresh(outdated)

    async def try_around(self, bundle: bytes) -> str:
        """Why filters could not be loaded here; "" if they could."""
        try:
            await asyncio.to_thread(load, bundle)
        except RayObjectsError as error:
            return error.message
        return ""

    async def take_around(self) -> str:
        """Other filters are in force; returns why they cannot be loaded here, "" if they can."""
        await self._around.take()
        if self.core is not None:
            self.core.filters = self._around.filters
        return self._around.error

    async def stats(self) -> dict[str, Any]:
        """Figures for `rayobjects status`."""
        core = self.core
        return {
            "host": self.host,
            "pid": os.getpid(),
            "incarnation": self.incarnation,
            "live": len(core.activations) if core is not None else 0,
            "sockets": sum(map(len, core.gateways.sockets.values())) if core is not None else 0,
            "error": str((self._open_error if core is None else core.failed) or self._around.error),
            "around": self._around.error,
        }

    async def stop(self) -> None:
        """Lets all objects leave and closes the storage cleanly."""
        self._stopped = True
        async with self._opening:
            core, self.core = self.core, None
            if core is not None:
                await core.stop()
                await self.close_ledger(cleanly=True)
        if self._router is not None:
            await self._router.close()  # or what it has to say yet would start others again
        self._link.close()
        self.end_in_order()

    def end_in_order(self) -> None:
        """This process is about to end, and not because of a call that it runs."""
        if self._notes is not None:
            self._notes.close()

    # -- opening ------------------------------------------------------------------------------

    async def _opened(self) -> HostCore:
        async with self._opening:
            core = self.core
            if core is not None and core.failed is None:
                return core
            if core is not None:
                self._end_if_lost(core.failed)
            if self._stopped:
                raise Unavailable(f"the host {self.host} is being stopped: start the cluster again")
            now = self.clock.monotonic()
            if self._open_error is not None and now < self._open_again_at:
                raise self._open_error
            try:
                if core is not None:
                    self.core = None
                    core.release()
                    await self.close_ledger(cleanly=False)
                self.core = await self._open()
            except StorageFailed as error:
                self._open_error = error
                self._open_again_at = self.clock.monotonic() + OPEN_AGAIN_S
                logger.error("the host %s could not open its storage: %s", self.host, error)
                if self._router is not None:
                    self._router.fail_locally(error)
                self._end_if_lost(error)
                raise
            self._open_error = None
            return self.core

    async def _open(self) -> HostCore:
        loop = asyncio.get_running_loop()
        if self._router is None:
            self._router = Router(process.new_router_id(), loop, self.configuration, self.clock)
            process.adopt(self._router)
            await self._link.start()
            self._sweeper = spawn(self._sweep_for_ever())
            if not self.on_lane:
                Watchdog(self.clock)
        if self._notes is None:
            self._notes, self._probation = await asyncio.to_thread(
                begin_life, f"{self.configuration.cluster_id} {self.host}", _notes(), self.clock
            )
        make: Callable[..., HostCore] = HostCore
        if self._probation is not None:
            make = partial(CoreOnProbation, self._probation)
        await self._around.take()
        await self._router.refresh()  # its objects' messages are told by the keys of classes
        ledger = await self.open_ledger()
        core = make(
            ledger=ledger,
            classes=self.classes,
            clock=self.clock,
            owns=self.owns,
            incarnation=process.new_router_id(),
            idle_s=self.configuration.idle_s,
            on_lane=self.on_lane,
            suspect=Lookout(lambda gateway: core.gateways.died(gateway)).suspect,
            outgoing=self._router,
            wake=Waker(lambda: self.configuration).wake,
        )
        core.filters = self._around.filters
        self._router.serve_locally(self.host, core)
        core.begin()
        return core

    async def _sweep_for_ever(self) -> None:
        while not self._stopped:
            await asyncio.sleep(SWEEP_EVERY_S)
            core = self.core
            if core is None or core.failed is not None:
                await self._open_uncalled(core)
                continue
            self._reopenings = 0
            try:
                core.sweep()
                await self._around.look(self.clock.monotonic())
                core.filters = self._around.filters
                await self.sweep()
            except Exception:  # must not end the sweeper
                logger.exception("%s: the sweep failed", self.host)

    async def _open_uncalled(self, core: HostCore | None) -> None:
        if core is not None:
            self._end_if_lost(core.failed)
        now = self.clock.monotonic()
        if self._reopenings and now < self._reopen_at:
            return
        self._reopenings += 1
        self._reopen_at = now + UNCALLED_AGAIN.pause_s(self._reopenings, self._random)
        await self._open_again()

    def _end_if_lost(self, error: StorageFailed | None) -> None:
        """Another process has taken over: this one must not take it back."""
        if error is not None and error.details.get("lost") == "epoch":
            logger.error("%s ends, because another process has taken over", self.host)
            os._exit(1)


def _is_restarted() -> bool:
    """Whether this is an actor that Ray has started again, after its process had died."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    with warnings.catch_warnings():  # Ray warns of what it uses itself there
        warnings.simplefilter("ignore", DeprecationWarning)
        return context.get_actor_id() is not None and context.was_current_actor_reconstructed


def _notes() -> Path:
    """Where hosts of this node note which calls run: gone with Ray."""
    return Path(ray._private.worker._global_node.get_session_dir_path()) / "rayobjects"
