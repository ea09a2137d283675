"""Renaming and deleting classes, on the side of whoever asks: the host of shard 0 changes what is
said of a class (`class_store`, which has the steps), and this tells the others and asks them.

Every step may be repeated, so whoever is cut off in between asks for the whole again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import ray

from rayobjects.errors import InvalidCall, Unavailable
from rayobjects.objects.catalog import ClassInfo
from rayobjects.runtime import placement, process
from rayobjects.runtime.client import ask_host, refresh_hosts

ACTORS_AT_ONCE_MAX = 100
"""Dedicated objects that are asked to end at the same time."""

ENDED_WITHIN_S = 25.0
"""How long a dedicated object may take to end: the call that it runs, and its last messages."""

_decode_info = msgspec.msgpack.Decoder(ClassInfo).decode


def rename_class(name: str, new_name: str) -> None:
    """Gives a class another name. Its objects, their sockets and stubs with the old name stay.

    Raises:
        InvalidCall: there is no such class, or the new name is none, or is taken.
        StorageFailed, Unavailable: it could not be stored; the class has its old name.
    """
    if not new_name.isidentifier() or new_name == placement.DEFAULT_POOL:
        raise InvalidCall(f"{new_name!r} cannot be the name of a class: use an identifier")
    answer = ask_host(
        placement.shard_host(0), lambda host: host.rename_class.remote(name, new_name)
    )
    refresh_hosts([_decode_info(answer).key])


def delete_class(name: str, deleted: Callable[[int], None] = lambda count: None) -> int:
    """Deletes a class with all of its objects; returns how many there were.

    Args:
        deleted: is told again and again how many have been deleted so far.

    Raises:
        InvalidCall: there is no such class, or this is a former name of one.
        Unavailable: an object still runs a call, or a host could not be reached: no call is taken
            any more, but not everything is deleted. Ask again.
        StorageFailed: the same, for that reason.
    """
    first = placement.shard_host(0)
    info = _decode_info(ask_host(first, lambda host: host.begin_class_deletion.remote(name)))
    refresh_hosts([info.key])
    count = _end_dedicated(info, deleted)
    for shard in range(process.router().configuration.shards):
        host = placement.shard_host(shard)
        while page := ask_host(host, lambda host: host.delete_objects.remote(info.key)):
            count += page
            deleted(count)
    ask_host(first, lambda host: host.end_class_deletion.remote(info.name))
    refresh_hosts([info.key])
    return count


def _end_dedicated(info: ClassInfo, deleted: Callable[[int], None]) -> int:
    """Lets the class's dedicated objects that live delete themselves, and ends their actors."""
    names = [host for host in placement.live_hosts() if host.partition("/")[0] == info.key]
    count = 0
    for start in range(0, len(names), ACTORS_AT_ONCE_MAX):
        actors = []
        for name in names[start : start + ACTORS_AT_ONCE_MAX]:
            try:
                actors.append(ray.get_actor(name, namespace=placement.NAMESPACE))
            except ValueError:
                continue  # it has ended meanwhile
        ending = [actor.delete_object.remote() for actor in actors]
        if ending:
            ray.wait(ending, num_returns=len(ending), timeout=ENDED_WITHIN_S)
        for actor, reference in zip(actors, ending, strict=True):
            try:
                count += ray.get(reference, timeout=0)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, Unavailable):  # it still runs a call
                    raise error.cause from None
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
                pass  # its shard's host deletes what it has, and refuses what it would still write
            ray.kill(actor, no_restart=True)
        deleted(count)
    return count
