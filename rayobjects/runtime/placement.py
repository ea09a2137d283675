"""Which host an object lives in, and how to find or make that host.

Every id resolves to a named detached Ray actor in the namespace `rayobjects`: `default/0003` for
shard 3 of the pool `default`, or `Model/llama-7` for an object with an actor of its own. Ray keeps
the names unique; the epoch in the storage makes it true when Ray is wrong.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayobjects.errors import InvalidCall
from rayobjects.ids import SLOT_COUNT, ObjectId, slot_of
from rayobjects.objects.catalog import ClassInfo
from rayobjects.runtime.configuration import Configuration

NAMESPACE = "rayobjects"
"""Ray's namespace for the names of hosts."""

DEFAULT_POOL = "default"

CALLS_AT_ONCE_MAX = 10_000
"""Ray calls that one host takes at once: each process has up to three (two batches and a standing
request). Ray's own default is 1,000, and the call after that waits without a word."""


@cache
def shard_host(shard: int) -> str:
    """The host of a shard of the default pool."""
    return f"{DEFAULT_POOL}/{shard:04d}"


def shard_of_host(host: str) -> int | None:
    """The shard of such a host; None for a dedicated one."""
    pool, _, number = host.partition("/")
    return int(number) if pool == DEFAULT_POOL else None


def shard_of(id: ObjectId, shards: int) -> int:
    """The shard that an id's slot belongs to: the slots are dealt out evenly, in ranges."""
    return slot_of(id) * shards // SLOT_COUNT


def is_dedicated(info: ClassInfo, configuration: Configuration) -> bool:
    """Whether objects of the class have actors of their own."""
    return (info.hosting or configuration.hosting) == "dedicated"


def host_of(id: ObjectId, info: ClassInfo, configuration: Configuration) -> str:
    """The name of the object's host."""
    if is_dedicated(info, configuration):
        return str(id)
    return shard_host(shard_of(id, configuration.shards))


async def locate(host: str, configuration: Configuration, info: ClassInfo | None) -> Any:
    """Finds a host's actor, creating it where there is none.

    Args:
        info: the class of a dedicated host's object.

    Raises:
        InvalidCall: the class's ray_options are not understood by Ray.
        ray.exceptions.RayError: Ray could not be asked.
    """
    return await asyncio.to_thread(locate_blocking, host, configuration, info)


def locate_blocking(host: str, configuration: Configuration, info: ClassInfo | None) -> Any:
    """The same as `locate`, for plain code."""
    try:
        return ray.get_actor(host, namespace=NAMESPACE)
    except ValueError:
        pass  # no such actor yet
    # Imported here because hosts call other objects, and so need placement themselves.
    from rayobjects.runtime.dedicated import DedicatedHost
    from rayobjects.runtime.host import ShardHost

    options: dict[str, Any] = {
        "name": host,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_concurrency": CALLS_AT_ONCE_MAX,
        "num_cpus": 0,
    }
    if info is not None:
        try:
            return (
                ray.remote(DedicatedHost)
                .options(**(options | info.ray_options))
                .remote(configuration, host)
            )
        except (ValueError, TypeError) as error:
            raise InvalidCall(f"Ray does not take {info.name}'s ray_options: {error}") from error
    if configuration.node_id:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
            configuration.node_id, soft=False
        )
    return ray.remote(ShardHost).options(**options).remote(configuration, host)


def live_hosts() -> list[str]:
    """The names of all hosts that Ray knows."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)
