"""The host of a shard: a named detached Ray actor that runs the shard's objects beside their
storage, and commits for the dedicated objects whose state lies in its shard."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from rayobjects.errors import InvalidCall, RayObjectsError, StorageFailed, to_wire
from rayobjects.ids import ObjectId
from rayobjects.objects.catalog import ClassInfo, ObjectClass
from rayobjects.objects.ledger import Ledger
from rayobjects.runtime import hosts_log, placement
from rayobjects.runtime.base_host import BaseHost
from rayobjects.runtime.configuration import (
    Catalog,
    Configuration,
    read_catalog,
    write_catalog,
    write_configuration,
)
from rayobjects.runtime.remote_ledger import LedgerAnswer, LedgerRequest, decode_request
from rayobjects.storage.manifest import Manifest
from rayobjects.storage.ownership import Claims
from rayobjects.storage.records import PendingSends
from rayobjects.storage.shard import Shard


class Deployment(msgspec.Struct):
    """What `ro.deploy` hands over: the classes' descriptions and their code, in one pickle."""

    classes: list[ClassInfo]
    blob: bytes


class ShardHost(BaseHost):
    """The actor `default/0003`."""

    def __init__(self, configuration: Configuration, host: str) -> None:
        super().__init__(configuration, host)
        hosts_log.begin(host)
        shard = placement.shard_of_host(host)
        assert shard is not None
        self.number = shard
        self.manifest: Manifest | None = None
        self.shard: Shard | None = None
        self._claims = Claims()
        self._dedicated: set[str] = set()
        self._deploying = asyncio.Lock()

    async def open_ledger(self) -> Ledger:
        loop = asyncio.get_running_loop()

        def open() -> Shard:
            configuration = self.configuration
            if self.manifest is None:
                self.manifest = Manifest.open(
                    configuration.root, configuration.cluster_id, configuration.shards
                )
            self._adopt_shards(self.manifest.shards)
            catalog = read_catalog()
            self._dedicated = {
                name
                for name, info in catalog.classes.items()
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
        if self.number == 0:
            self._publish_stored_classes()
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

    async def sweep(self) -> None:
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

    # -- classes (the host of shard 0) ---------------------------------------------------------

    async def deploy(self, body: bytes) -> bytes:
        """Stores classes in the manifest and publishes them; returns their infos, with the
        versions that they have got. An unchanged class keeps its version."""
        await self._opened()
        async with self._deploying:
            return await self._deploy(msgspec.msgpack.decode(body, type=Deployment))

    async def _deploy(self, deployment: Deployment) -> bytes:
        manifest = self.manifest
        assert manifest is not None
        catalog = await asyncio.to_thread(read_catalog)
        blobs = {}
        for info in deployment.classes:
            known = catalog.classes.get(info.name)
            if known is not None and known.digest == info.digest:
                continue
            if known is not None and known.hosting != info.hosting:
                # Its live objects would have two homes for a while, and both could commit.
                raise InvalidCall(
                    f"{info.name} is deployed with hosting={known.hosting or 'default'!r}, which "
                    "cannot be changed while the cluster runs: deploy the class under another name"
                )
            stored = manifest.classes().get(info.name)
            info.version = max(known.version if known else 0, stored[0] if stored else 0) + 1
            await asyncio.to_thread(
                manifest.store_class,
                info.name,
                info.version,
                deployment.blob,
                msgspec.msgpack.encode(info),
            )
            catalog.classes[info.name] = info
            blobs[info.name] = deployment.blob
        if blobs:
            catalog.version += 1
            await asyncio.to_thread(write_catalog, catalog, blobs)
        return msgspec.msgpack.encode([catalog.classes[info.name] for info in deployment.classes])

    def _publish_stored_classes(self) -> None:
        """After a restart of the whole cluster the manifest knows the classes, Ray does not."""
        manifest = self.manifest
        assert manifest is not None
        catalog = read_catalog()
        stored = manifest.classes()
        if catalog.version or not stored:
            return
        classes, blobs = {}, {}
        for name, (version, info) in stored.items():
            classes[name] = msgspec.msgpack.decode(info, type=ClassInfo)
            blobs[name] = manifest.class_blob(name, version)
        write_catalog(Catalog(1, classes), blobs)

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
            shard.forget(call_id)
        for sequence, gateway in request.sent:
            shard.sent(id, sequence, gateway)
        if request.operation == "commit":
            return await self._commit(shard, id, request)
        if request.operation == "claim":
            last = request.owner_epoch
            epoch = await _done(lambda done: shard.claim_object(id, done, last=last))
            pending: list[PendingSends] = shard.pending_of(id)
            return LedgerAnswer(
                owner_epoch=epoch,
                loaded=await shard.load(id),
                finished=shard.finished_of(id),
                pending=pending,
                sockets=[(socket.socket, socket.gateway) for socket in shard.sockets_of(id)],
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
        commits = [
            _done(lambda done, record=record: shard.commit(record, done))
            for record in request.records
        ]
        results = await asyncio.gather(*commits, return_exceptions=True)
        if request.confirm:
            await _done(lambda done: shard.confirm_object(id, request.owner_epoch, done))
        sequences = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            sequences.append(result)
        return LedgerAnswer(sequences=sequences)


def _done(start: Any) -> asyncio.Future[int]:
    """Starts a ledger operation at once; the future brings what its callback brings."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(error: StorageFailed | None, value: int) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    try:
        start(done)
    except RayObjectsError as error:
        future.set_exception(error)
    return future
