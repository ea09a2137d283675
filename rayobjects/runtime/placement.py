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

from rayobjects.errors import InvalidCall, Unavailable
from rayobjects.ids import SLOT_COUNT, ObjectId, slot_of
from rayobjects.objects.catalog import ClassInfo
from rayobjects.runtime import resources
from rayobjects.runtime.configuration import (
    Configuration,
    configuration_to_start,
    no_class,
    read_catalog,
)

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


class Moved(Exception):
    """The class has no dedicated objects any more: it was deleted, and deployed again. Whoever
    looks for the host of one has an old catalog."""


async def locate(host: str, info: ClassInfo | None, *, again: bool = False) -> Any:
    """Finds a host's actor, creating it where there is none.

    Args:
        info: the class of a dedicated host's object.
        again: the actor that was found before gave no answer.

    Raises:
        InvalidCall: the class is gone, or its ray_options are not understood by Ray.
        Unavailable: no node of the cluster has what the class asks for; or the cluster's objects
            have been stopped, and what runs no more is not begun again; or this process is not
            attached to Ray any more.
        Moved: the object has no actor of its own any more, but lives with its shard's host.
        resources.NoRoom: those that have it are full; only `again`.
        ray.exceptions.RayError: Ray could not be asked.
    """
    return await asyncio.to_thread(locate_blocking, host, info, again=again)


def locate_blocking(host: str, info: ClassInfo | None, *, again: bool = False) -> Any:
    """The same as `locate`, for plain code."""
    if not ray.is_initialized():  # Ray would attach to whatever it finds, or start another cluster
        raise Unavailable(
            f"the host {host} cannot be looked for, since ray.shutdown() has disconnected this "
            "process: call ro.init() again"
        )
    try:
        handle = ray.get_actor(host, namespace=NAMESPACE)
    except ValueError:
        pass  # no such actor yet
    else:
        if again and info is not None and _is_waiting(handle):
            resources.check_room(info)
        return handle
    configuration = configuration_to_start()
    if info is not None:
        current = read_catalog()
        known = current.find(info.key)  # perhaps with other options by now, or gone
        if known is None or known.deleting:
            raise no_class(info.name, current.classes)
        if not is_dedicated(known, configuration):
            raise Moved(f"{host} is hosted elsewhere")
        resources.check_possible(known)
        return dedicated_actor(known, host).remote(configuration, host)
    options = _options(host)
    if configuration.node_id:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
            configuration.node_id, soft=False
        )
    return _actor_classes()[0].options(**options).remote(configuration, host)


def dedicated_actor(info: ClassInfo, host: str) -> Any:
    """What makes a dedicated object's actor (`.remote(…)`), with the options of its class.

    Raises:
        InvalidCall: Ray does not take them.
    """
    try:
        options = {"num_cpus": 0} | info.ray_options | _options(host)
        return _actor_classes()[1].options(**options)
    except (ValueError, TypeError) as error:
        raise InvalidCall(f"Ray does not take the ray_options of {info.name}: {error}") from error


@cache
def _actor_classes() -> tuple[Any, Any]:
    """Ray's actor classes of shards' hosts and of dedicated ones, made once: Ray pickles and
    publishes each anew otherwise."""
    # Imported here because hosts call other objects, and so need placement themselves.
    from rayobjects.runtime.dedicated import DedicatedHost
    from rayobjects.runtime.host import ShardHost

    return ray.remote(num_cpus=0)(ShardHost), ray.remote(num_cpus=0)(DedicatedHost)


def _options(host: str) -> dict[str, Any]:
    return {
        "name": host,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_concurrency": CALLS_AT_ONCE_MAX,
    }


def _is_waiting(handle: Any) -> bool:
    """Whether Ray has not started the actor yet, or not again."""
    found: Any = ray._private.state.actors(handle._actor_id.hex())
    return found.get("State") in ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")


def live_hosts() -> list[str]:
    """The names of all hosts that Ray knows."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)
