"""What the command line asks: the state of hosts and objects, and the end of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import ray

from rayobjects.clock import SystemClock
from rayobjects.errors import InvalidCall, Unavailable
from rayobjects.ids import check_object_name
from rayobjects.messages import JSON, SYSTEM
from rayobjects.runtime import placement
from rayobjects.runtime.asking import answer
from rayobjects.runtime.configuration import (
    begin_stop,
    delete_configuration,
    no_class,
    read_catalog,
    read_configuration,
)
from rayobjects.runtime.stubs import Namespace, send

ASK_WITHIN_S = 10.0
STOP_WITHIN_S = 60.0


class HostStatus(msgspec.Struct):
    """One host.

    Attributes:
        state: "alive", or why it did not answer.
        figures: what the host says of itself (`stats`): live objects, sockets, epoch, journal …
    """

    name: str
    state: str
    figures: dict[str, Any]


class ClassStatus(msgspec.Struct):
    """One deployed class."""

    name: str
    version: int
    hosting: str
    methods: list[str]


class Status(msgspec.Struct):
    """What runs, and where its storage is."""

    cluster_id: str
    storage: str
    shards: int
    hosting: str
    pinned_to: str
    hosts: list[HostStatus]
    classes: list[ClassStatus]


def status() -> Status:
    """The state of the cluster's hosts and classes.

    Raises:
        InvalidCall: this cluster runs no rayobjects.
    """
    configuration = read_configuration()
    if configuration is None:
        raise InvalidCall("this Ray cluster runs no rayobjects: start it with `rayobjects serve`")
    asked: dict[str, Any] = {}
    for host in placement.live_hosts():
        try:
            asked[host] = ray.get_actor(host, namespace=placement.NAMESPACE).stats.remote()
        except ValueError:
            continue  # it has ended meanwhile
    references = list(asked.values())
    if references:
        ray.wait(references, num_returns=len(references), timeout=ASK_WITHIN_S)
    hosts = []
    for host, reference in asked.items():
        try:
            figures = ray.get(reference, timeout=0.1)
            hosts.append(HostStatus(host, figures.get("error") or "alive", figures))
        except ray.exceptions.GetTimeoutError:
            hosts.append(HostStatus(host, f"no answer within {ASK_WITHIN_S:g} s", {}))
        except ray.exceptions.RayError as error:
            hosts.append(HostStatus(host, f"restarting ({type(error).__name__})", {}))
    catalog = read_catalog()
    return Status(
        cluster_id=configuration.cluster_id,
        storage=configuration.root,
        shards=configuration.shards,
        hosting=configuration.hosting,
        pinned_to=configuration.node_id,
        hosts=hosts,
        classes=[
            ClassStatus(
                info.name,
                info.version,
                info.hosting or configuration.hosting,
                sorted(name for name, method in info.methods.items() if not method.internal),
            )
            for info in sorted(catalog.classes.values(), key=lambda each: each.name)
        ],
    )


def call(class_name: str, name: str, method: str, keywords: dict[str, Any]) -> Any:
    """Calls a method with JSON arguments, as HTTP does; returns what its JSON reply says."""
    return _ask(class_name, name, method, JSON, json.dumps(keywords).encode())


def object_state(class_name: str, name: str, *, limit: int = 1_000) -> dict[str, Any]:
    """An object's attributes and at most `limit` of its storage keys, as JSON types."""
    state: dict[str, Any] = _ask(
        class_name, name, "state", SYSTEM, json.dumps({"limit": limit}).encode()
    )
    return state


def delete_object(class_name: str, name: str) -> bool:
    """Deletes an object with all that it has; returns whether it existed."""
    existed: bool = _ask(class_name, name, "delete", SYSTEM, b"")
    return existed


def list_objects(class_name: str, prefix: str = "", after: str = "", limit: int = 100) -> list[str]:
    """Names of a class's objects that exist."""
    return Namespace[Any](class_name).list(prefix, after, limit)


def list_promises(
    kinds: Sequence[str], class_name: str | None, failed: bool, limit: int
) -> list[dict[str, Any]]:
    """What objects have promised and not done, the next one first, as JSON types.

    Args:
        kinds: "schedule", "tell", "intent".
        class_name: only this class's objects; None for all.
        failed: only what was given up.
        limit: at most so many.

    Raises:
        InvalidCall: this cluster runs no rayobjects, or there is no such class.
        Unavailable: a host could not be asked.
    """
    configuration = read_configuration()
    if configuration is None:
        raise InvalidCall("this Ray cluster runs no rayobjects: start it with `rayobjects serve`")
    catalog = read_catalog()
    info = catalog.find(class_name) if class_name is not None else None
    if class_name is not None and info is None:
        raise no_class(class_name, catalog.classes)
    asked = {}
    for shard in range(configuration.shards):
        host = placement.shard_host(shard)
        handle = placement.locate_blocking(host, None)
        asked[host] = handle.list_promises.remote(
            list(kinds), info.key if info is not None else "", failed, limit
        )
    found = [each for host, reference in asked.items() for each in answer(reference, 30.0, host)]
    names = {each.key: each.name for each in catalog.classes.values()}
    for each in found:
        each["class"] = names.get(each["class"], each["class"])
        if "to" in each:
            key, _, name = each["to"].partition("/")
            each["to"] = f"{names.get(key, key)}/{name}"
    found.sort(key=lambda each: (each["due"], each["class"], each["name"], each["key"]))
    return found[:limit]


def settle_promise(class_name: str, name: str, how: str, kind: str, key: str) -> str:
    """Retries or discards one of an object's promises; returns "retried" or "discarded".

    Raises:
        InvalidCall: there is none of this kind and key, or it has not failed.
    """
    chosen = json.dumps({"kind": kind, "key": key}).encode()
    done: str = _ask(class_name, name, how, SYSTEM, chosen)
    return done


def _ask(class_name: str, name: str, method: str, encoding: int, args: bytes) -> Any:
    return send(class_name, check_object_name(name), method, encoding, args).result()


def stop_hosts() -> None:
    """Lets every object leave, closes the storage and ends all hosts; the state stays. Callers get
    Unavailable from now on. May be repeated, if it was cut off.

    Raises:
        Unavailable: a host has not ended in time; no other is made until this is repeated.
    """
    begin_stop()
    clock = SystemClock()
    give_up_at = clock.monotonic() + 2 * STOP_WITHIN_S
    while hosts := placement.live_hosts():  # again for those whose making had begun
        if clock.monotonic() > give_up_at:
            raise Unavailable(
                f"{', '.join(hosts[:3])} ({len(hosts):,} in all) did not end: see whether their "
                "nodes answer, then run `rayobjects down` again"
            )
        # Dedicated objects first: they commit through the hosts of the shards.
        shards = [host for host in hosts if placement.shard_of_host(host) is not None]
        for group in ([host for host in hosts if host not in shards], shards):
            _stop(group)
    delete_configuration()


def _stop(hosts: list[str]) -> None:
    handles = []
    for host in hosts:
        try:
            handles.append(ray.get_actor(host, namespace=placement.NAMESPACE))
        except ValueError:
            continue
    stopping = [handle.stop.remote() for handle in handles]
    if stopping:
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_WITHIN_S)
    for handle in handles:
        ray.kill(handle, no_restart=True)
