"""The host of one dedicated object: an actor of its own, with its own resources. Its state lies in
its shard like any other's."""

from __future__ import annotations

import threading
from typing import Any

import ray

from rayobjects.errors import RayObjectsError
from rayobjects.ids import ObjectId
from rayobjects.objects.catalog import ObjectClass
from rayobjects.objects.ledger import Ledger
from rayobjects.runtime import placement
from rayobjects.runtime.background import spawn
from rayobjects.runtime.base_host import BaseHost, begin_process
from rayobjects.runtime.class_deletion import delete_object, end_activations, messages_fetched
from rayobjects.runtime.configuration import Configuration
from rayobjects.runtime.remote_ledger import Refusals, RemoteLedger


class DedicatedHost(BaseHost):
    """The actor `Model/llama-7`."""

    on_lane = True

    def __init__(self, configuration: Configuration, host: str) -> None:
        begin_process(host)
        super().__init__(configuration, host)
        class_name, _, name = host.partition("/")
        self.id = ObjectId(class_name, name)
        self._remote: RemoteLedger | None = None
        self._owner_epoch = 0
        self._refusals = Refusals(self.clock)
        self._idle_since = self.clock.monotonic()
        # Whoever wanted it may have given up while it waited for its resources: then nobody calls,
        # nothing opens, and it must let go of them all the same.
        self._uncalled = threading.Timer(configuration.idle_s, self._end_uncalled, [_actor()])
        self._uncalled.daemon = True
        self._uncalled.start()

    def _end_uncalled(self, actor: Any) -> None:
        if self._router is None:
            ray.kill(actor, no_restart=True)

    async def open_ledger(self) -> Ledger:
        spawn(self._load_class())  # while the shard is asked
        remote = RemoteLedger(self.id, self.configuration, self.clock, self._refusals)
        self._owner_epoch = await remote.open(self._owner_epoch)
        self._remote = remote
        return remote

    async def _load_class(self) -> None:
        try:
            await self.classes.get(self.id.class_name)
        except RayObjectsError:
            pass  # who needs it will see

    async def close_ledger(self, *, cleanly: bool) -> None:
        self._remote = None

    def owns(self, id: ObjectId, object_class: ObjectClass | None) -> bool:
        if id != self.id:
            return False
        return object_class is None or placement.is_dedicated(object_class.info, self.configuration)

    async def delete_object(self) -> int:
        """The object's class is being deleted: deletes the object if it lives here, and tells its
        sockets; returns how many it deleted, 1 or 0. The process is ended by who asks for this."""
        core, remote = self.core, self._remote
        if core is None or remote is None or core.failed is not None:
            return 0  # nothing lives here, so its shard's host can do it alone
        self.classes.outdated({self.id.class_name})
        await end_activations(core, self.id.class_name, self.clock)
        loaded = await remote.load(self.id)
        if not loaded.exists:
            return 0
        await delete_object(core, remote, self.id, {s.gateway for s in loaded.sockets})
        await messages_fetched(core, self.clock)
        self.end_in_order()
        return 1

    async def sweep(self) -> None:
        changed = await self.classes.look(self.clock.monotonic())
        if changed:
            await self.refresh(changed)
        if self._remote is not None:
            self._remote.expire()
        core = self.core
        if (
            core is None
            or core.activations
            or any(core.gateways.sockets.values())
            or core.has_errands
        ):
            self._idle_since = self.clock.monotonic()
        elif self.clock.monotonic() - self._idle_since > self.configuration.idle_s:
            # Nothing is live and nothing is unsynced: the process may go. A call that is on its
            # way here is sent again by its channel, to the next actor of this name.
            self.end_in_order()
            ray.kill(_actor(), no_restart=True)


def _actor() -> Any:
    return ray.get_runtime_context().current_actor
