"""Which objects exist: what their shards' hosts say. Wakes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from rayobjects.clock import Clock
from rayobjects.ids import ObjectId
from rayobjects.limits import LIST_HOSTS_AT_ONCE_MAX
from rayobjects.runtime import placement
from rayobjects.runtime.asking import answer_of
from rayobjects.runtime.configuration import Configuration


async def names_of(
    class_key: str,
    prefix: str,
    after: str,
    limit: int,
    configuration: Configuration,
    clock: Clock,
) -> list[str]:
    """Names of a class's objects, sorted, those after `after`, at most `limit`.

    Raises:
        Unavailable: a host could not be asked for `unavailable_after_s` seconds.
        StorageFailed: a host cannot open its storage.
    """
    gate = asyncio.Semaphore(LIST_HOSTS_AT_ONCE_MAX)

    async def of_shard(shard: int) -> list[str]:
        host = placement.shard_host(shard)

        def ask(handle: Any) -> Any:
            return handle.list_objects.remote(class_key, prefix, after, limit)

        async with gate:
            names: list[str] = await answer_of(host, configuration, clock, ask)
        return names

    found = await asyncio.gather(*(of_shard(shard) for shard in range(configuration.shards)))
    return sorted(name for names in found for name in names)[:limit]


async def exists(id: ObjectId, configuration: Configuration, clock: Clock) -> bool:
    """Whether something is committed for the object.

    Raises:
        Unavailable, StorageFailed: as `names_of`.
    """
    host = placement.shard_host(placement.shard_of(id, configuration.shards))

    def ask(handle: Any) -> Any:
        return handle.object_exists.remote(*id)

    found: bool = await answer_of(host, configuration, clock, ask)
    return found
