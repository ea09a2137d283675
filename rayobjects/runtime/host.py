"""The host of a shard: a named detached Ray actor that runs the shard's objects beside their
storage, and commits for the dedicated objects whose state lies in its shard."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec

from rayobjects.errors import InvalidCall, RayObjectsError, StorageFailed, to_wire
from rayobjects.ids import ObjectId
from rayobjects.objects import failures
from rayobjects.objects.catalog import ClassInfo, ObjectClass
from rayobjects.objects.ledger import Ledger
from rayobjects.runtime import placement
from rayobjects.runtime.background import spawn
from rayobjects.runtime.base_host import BaseHost, begin_process
from rayobjects.runtime.class_deletion import ShardDeletion, end_activations
from rayobjects.runtime.class_store import ClassStore, Deployment
from rayobjects.runtime.configuration import Configuration, read_catalog, write_configuration
from rayobjects.runtime.link import LEDGER, Serve
from rayobjects.runtime.outcome import outcome
from rayobjects.runtime.remote_ledger import LedgerAnswer, LedgerRequest, decode_request
from rayobjects.runtime.trial import on_trial
from rayobjects.runtime.warm_pool import WarmPool, fill
from rayobjects.storage.manifest import Manifest
from rayobjects.storage.ownership import Claims
from rayobjects.storage.records import PendingSends
from rayobjects.storage.shard import Shard


class ShardHost(BaseHost):
    """The actor `default/0003`."""

    def __init__(self, configuration: Configuration, host: str) -> None:
        begin_process(host)
        super().__init__(configuration, host)
        shard = placement.shard_of_host(host)
        assert shard is not None
        self.number = shard
        self.manifest: Manifest | None = None
        self.shard: Shard | None = None
        self._claims = Claims()
        self._dedicated: set[str] = set()
        self._deleted: set[str] = set()
        self._deletions: dict[str, ShardDeletion] = {}
        self._store: ClassStore | None = None
        self._warm_pool = WarmPool()

    def served(self) -> dict[int, Serve]:
        return super().served() | {LEDGER: self.ledger}

    async def open_ledger(self) -> Ledger:
        loop = asyncio.get_running_loop()

        def open() -> Shard:
            configuration = self.configuration
            if self.manifest is None:
                self.manifest = Manifest.open(
                    configuration.root, configuration.cluster_id, configuration.shards
                )
            self._adopt_shards(self.manifest.shards)
            if self.number == 0:
                self._store = self._store or ClassStore(
                    self.manifest, self._try_classes, configuration.hosting
                )
                self._store.publish()
            catalog = read_catalog()
            self._deleted = {info.key for info in catalog.classes.values() if info.deleting}
            self._dedicated = {
                info.key
                for info in catalog.classes.values()
                if placement.is_dedicated(info, configuration)
            }
            return Shard.open(
                self.manifest.shard_root(self.number),
                self.manifest.shard_name(self.number),
                clock=self.clock,
                soon=loop.call_soon,
                post=loop.call_soon_threadsafe,
                claims=self._claims,
            )

        self.shard = await asyncio.to_thread(open)
        return self.shard

    def _adopt_shards(self, shards: int) -> None:
        """The manifest decides how many shards there are, whatever `ro.init` proposed."""
        if self.number >= shards:
            raise StorageFailed(
                f"the storage root has {shards} shards, and none of the number {self.number}: "
                "call ro.init() again"
            )
        if shards == self.configuration.shards:
            return
        self.configuration = msgspec.structs.replace(self.configuration, shards=shards)
        if self._router is not None:
            self._router.configuration = self.configuration
        write_configuration(self.configuration, overwrite=True)

    async def close_ledger(self, *, cleanly: bool) -> None:
        shard, self.shard = self.shard, None
        if shard is not None:
            await asyncio.to_thread(shard.close if cleanly else shard.abandon)
        if cleanly and self.manifest is not None:
            self.manifest.close()
            self.manifest = None

    def owns(self, id: ObjectId, object_class: ObjectClass | None) -> bool:
        if placement.shard_of(id, self.configuration.shards) != self.number:
            return False
        if object_class is None:
            return id.class_name not in self._dedicated
        return not placement.is_dedicated(object_class.info, self.configuration)

    async def _try_classes(self, classes: list[ClassInfo], blob: bytes) -> None:
        await on_trial(classes, blob, self.configuration)

    async def sweep(self) -> None:
        changed = await self.classes.look(self.clock.monotonic())
        if changed:
            await self.refresh(changed)
        if self.shard is not None and self.core is not None:
            self.shard.expire()
            # A stale owner that nobody calls must let go of the files all the same.
            self.core.confirm(lambda error: None)

    async def stats(self) -> dict[str, Any]:
        figures = await super().stats()
        if self.shard is not None:
            figures |= self.shard.stats()
        if self.manifest is not None:
            figures["shards"] = self.manifest.shards
        return figures

    async def list_objects(self, class_name: str, prefix: str, after: str, limit: int) -> list[str]:
        """Names of the class's objects in this shard."""
        await self._opened()
        assert self.shard is not None
        return await self.shard.list_objects(class_name, prefix, after, limit)

    async def list_promises(
        self, kinds: list[str], class_key: str, failed: bool, limit: int
    ) -> list[dict[str, Any]]:
        """What the objects of this shard have promised and not done, the next one first.

        Args:
            class_key: only this class's; "" for all.
            failed: only what was given up.
        """
        await self._opened()
        assert self.shard is not None
        return failures.listed(self.shard.promises(), kinds, class_key, failed, limit)

    async def object_exists(self, class_name: str, name: str) -> bool:
        """Whether something is committed for an object of this shard."""
        await self._opened()
        assert self.shard is not None
        return await self.shard.exists(ObjectId(class_name, name))

    # -- classes (the host of shard 0) ---------------------------------------------------------

    async def deploy(self, body: bytes) -> bytes:
        """Takes a `Deployment`; returns its classes' infos, with the versions that they got."""
        deployment = msgspec.msgpack.decode(body, type=Deployment)
        deployed = await (await self._class_store()).deploy(deployment)
        for info in deployed:
            if placement.is_dedicated(info, self.configuration):
                spawn(asyncio.to_thread(fill, info))
        return msgspec.msgpack.encode(deployed)

    async def rename_class(self, name: str, new_name: str) -> bytes:
        """Returns the renamed class's info."""
        return msgspec.msgpack.encode(await (await self._class_store()).rename(name, new_name))

    async def begin_class_deletion(self, name: str) -> bytes:
        """Returns the marked class's info."""
        return msgspec.msgpack.encode(await (await self._class_store()).begin_deletion(name))

    async def end_class_deletion(self, name: str) -> None:
        """After every shard has no object of the class any more."""
        await (await self._class_store()).end_deletion(name)

    async def _class_store(self) -> ClassStore:
        await self._opened()
        assert self._store is not None
        return self._store

    async def delete_objects(self, class_key: str) -> int:
        """Deletes a page of the objects, in this shard, of a class that is marked; returns how
        many: 0 when there are none."""
        core = await self._opened()
        assert self.shard is not None
        self._deleted.add(class_key)
        self.classes.outdated({class_key})
        await end_activations(core, class_key, self.clock)
        deletion = self._deletions.get(class_key)
        if deletion is None or deletion.core is not core:
            deletion = self._deletions[class_key] = ShardDeletion(core, self.shard, class_key)
        count = await deletion.page()
        if not count:
            del self._deletions[class_key]
            self._dedicated.discard(class_key)
            core.others.take_over(class_key)  # what its objects had told others goes from here
        return count

    async def _is_deleted(self, class_key: str) -> bool:
        """Whether a class is being deleted, or was and has not come back."""
        if class_key not in self._deleted:
            return False
        info = (await asyncio.to_thread(read_catalog)).find(class_key)
        if info is not None and not info.deleting:
            self._deleted.discard(class_key)
        return class_key in self._deleted

    # -- the ledger of dedicated objects -------------------------------------------------------

    async def ledger(self, body: bytes) -> bytes:
        """Takes a `LedgerRequest`, returns a `LedgerAnswer`."""
        request = decode_request(body)
        try:
            await self._opened()
            answer = await self._ledger(request)
        except RayObjectsError as error:
            answer = LedgerAnswer(error=to_wire(error, with_cause=False))
        return msgspec.msgpack.encode(answer)

    async def _ledger(self, request: LedgerRequest) -> LedgerAnswer:
        shard = self.shard
        assert shard is not None
        id = ObjectId(request.class_name, request.name)
        for call_id in request.forget:
            shard.forget(call_id, id)
        for sequence, gateway in request.sent:
            shard.sent(id, sequence, gateway)
        if request.operation == "commit":
            return await self._commit(shard, id, request)
        if request.operation == "claim":
            if await self._is_deleted(request.class_name):
                raise InvalidCall(f"the class of {id} is being deleted", status=404)
            if self.core is not None:
                self.core.others.hand_over(id)
            last = request.owner_epoch
            epoch = await outcome(lambda done: shard.claim_object(id, done, last=last))
            if request.node:
                self._warm_pool.taken(request.node)
            pending: list[PendingSends] = shard.pending_of(id)
            return LedgerAnswer(
                owner_epoch=epoch,
                loaded=await shard.load(id),
                finished=shard.finished_of(id),
                pending=pending,
                sockets=[(socket.socket, socket.gateway) for socket in shard.sockets_of(id)],
                promises=shard.promises_of(id),
                link=self.link_path,
            )
        if request.operation == "load":
            return LedgerAnswer(loaded=await shard.load(id))
        if request.operation == "read":
            entry = await asyncio.to_thread(shard.read, id, request.key)
            return LedgerAnswer(entries=[(request.key, *entry)] if entry is not None else [])
        if request.operation == "scan":
            return LedgerAnswer(
                entries=await asyncio.to_thread(
                    shard.scan,
                    id,
                    prefix=request.prefix,
                    start=request.start,
                    end=request.end,
                    limit=request.limit,
                    reverse=request.reverse,
                )
            )
        if request.operation == "count":
            return LedgerAnswer(count=await asyncio.to_thread(shard.count, id))
        raise InvalidCall(f"there is no ledger operation {request.operation!r}")

    async def _commit(self, shard: Shard, id: ObjectId, request: LedgerRequest) -> LedgerAnswer:
        """Commits in order; the answer comes when the last record is on disk."""
        commits: list[asyncio.Future[int]] = []
        for record in request.records:
            commits.append(outcome(partial(shard.commit, record)))
            if commits[-1].done() and commits[-1].exception() is not None:
                break  # refused, and those behind it ran on top of it
        results = await asyncio.gather(*commits, return_exceptions=True)
        if request.confirm:
            await outcome(lambda done: shard.confirm_object(id, request.owner_epoch, done))
        if self.core is not None:
            for record, result in zip(request.records, results, strict=False):
                if not isinstance(result, BaseException):
                    self.core.promised_elsewhere(record)
        sequences = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            sequences.append(result)
        return LedgerAnswer(sequences=sequences)
