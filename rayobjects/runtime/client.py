"""`ro.init`, `ro.deploy`, `ro.namespace`: from nothing to a stub."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any, overload

import msgspec
import ray

from rayobjects.errors import InvalidCall
from rayobjects.limits import SHARDS_DEFAULT_MAX, SHARDS_MAX
from rayobjects.objects import carried
from rayobjects.objects.catalog import ClassInfo, describe, pickle_classes
from rayobjects.objects.filters import Filter
from rayobjects.objects.model import DurableObject
from rayobjects.runtime import cluster, placement, process
from rayobjects.runtime.around import Handed, Setup, hand_in
from rayobjects.runtime.asking import answer, answer_of
from rayobjects.runtime.class_store import Deployment
from rayobjects.runtime.configuration import (
    Configuration,
    delete_configuration,
    read_around_name,
    read_configuration,
    write_around,
    write_configuration,
)
from rayobjects.runtime.stubs import Namespace
from rayobjects.settings import Settings
from rayobjects.storage.files import parse_root

START_WITHIN_S = 60.0
"""A host starts in one to two seconds; on a machine under load it may take many times that."""


def init(
    storage: str | None = None,
    *,
    address: str | None = None,
    shards: int | None = None,
    hosting: str | None = None,
    idle_s: float | None = None,
    storage_shared: bool | None = None,
    filters: Iterable[Filter] | None = None,
    process_setup: Setup | None = None,
    client: str | None = None,
) -> None:
    """Connects this process to the objects of a Ray cluster, starting what is missing.

    The first `init` of a cluster fixes its configuration; later ones, in any process, find it and
    need no arguments. Arguments that are left out come from `RAYOBJECTS_*` in the environment.

    Args:
        storage: the storage root: a directory, or `file:///directory`.
        address: the Ray cluster; None takes the one that this process is connected to, then that
            of `RAYOBJECTS_ADDRESS` or `RAY_ADDRESS`, then the one of this machine that has the
            storage root, then starts Ray on this machine, until this process ends. Without a
            storage root it is the cluster that runs on this machine.
        shards: how many shards a new storage root gets: by default one for each CPU of the
            cluster, 16 at most. An existing root keeps its own number.
        hosting: for classes that do not say: "shared" (default) or "dedicated".
        idle_s: after how many seconds without a call an object leaves memory (default 60).
        storage_shared: every node of the cluster sees the storage root, so hosts may live
            anywhere; else they are pinned to this node.
        filters: async functions `(call, proceed)` around each call of a method, on the object's
            host; the first is the outermost (docs/middleware.md). They hold for the whole cluster,
            from all its processes, until others are given or the cluster ends; an empty list takes
            them away.
        process_setup: a function without arguments that every process of hosts and gateways runs
            when it starts or gets it: for logging and tracing. Where one of `filters` and this is
            given, both are.
        client: the name of this process, as objects see it in `ro.context().caller`.

    Raises:
        InvalidCall: an argument is out of bounds or contradicts the running configuration, or the
            cluster has none and `storage` is missing.
        StorageFailed: the storage root cannot be used; the message says why.
        Unavailable: no Ray at that address, or the first host did not start.
    """
    settings = Settings()
    storage = storage if storage is not None else settings.storage
    shards = shards if shards is not None else settings.shards
    hosting = hosting if hosting is not None else settings.hosting
    if hosting not in ("shared", "dedicated"):
        raise InvalidCall(f'hosting is "shared" or "dedicated", not {hosting!r}')
    if shards is not None and not 1 <= shards <= SHARDS_MAX:
        raise InvalidCall(f"shards is a number from 1 to {SHARDS_MAX}, not {shards!r}")
    root = parse_root(storage) if storage is not None else None
    handed = None
    if filters is not None or process_setup is not None:
        handed = hand_in(filters or (), process_setup)
    if client is not None:
        carried.check({carried.CALLER: client})
        carried.name_client(client)
    cluster.attach(root, address)
    configuration = read_configuration()
    if configuration is None:
        if root is None:
            raise InvalidCall(
                "this Ray cluster runs no rayobjects yet, so it needs to know where to store its "
                'objects: ro.init(storage="./data"), or RAYOBJECTS_STORAGE=./data'
            )
        if handed is not None:
            write_around(*handed)
            handed = None
        configuration = _first_configuration(
            Configuration(
                cluster_id=uuid.uuid4().hex,
                root=root,
                shards=shards or default_shards(),
                hosting=hosting,
                idle_s=idle_s if idle_s is not None else settings.idle_s,
                unavailable_after_s=settings.unavailable_after_s,
                node_id=""
                if (settings.storage_shared if storage_shared is None else storage_shared)
                else ray.get_runtime_context().get_node_id(),
            )
        )
        _start_others(configuration)
    elif root is not None and root != configuration.root:
        raise InvalidCall(
            f"this cluster stores its objects in {configuration.root}, not in {root}: leave "
            "`storage` out, or stop it first with `rayobjects down`"
        )
    process.attach(configuration)
    if handed is not None and handed.name != read_around_name():
        _put_in_force(handed)


def _start_others(configuration: Configuration) -> None:
    """Starts the hosts of all shards, and does not wait for them: their objects may have something
    to do that came due while nothing ran."""
    for shard in range(1, configuration.shards):
        placement.locate_blocking(placement.shard_host(shard), None).start.remote()


def _put_in_force(handed: Handed) -> None:
    """Puts other filters around the calls of a cluster that runs."""
    first = placement.shard_host(0)
    problem = ask_host(first, lambda host: host.try_around.remote(handed.bundle))
    if problem:
        raise InvalidCall(f"{problem}. Those that were in force before still are", status=500)
    write_around(*handed)
    for problem in _tell_hosts(placement.live_hosts(), lambda host: host.take_around.remote()):
        if problem:  # of another node than the first
            raise InvalidCall(problem, status=500)


def default_shards() -> int:
    """One shard for each CPU of the cluster, 1 to 16."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(cpus, SHARDS_DEFAULT_MAX))


def _first_configuration(proposed: Configuration) -> Configuration:
    """Starts the first host with this configuration, unless another process was quicker."""
    write_configuration(proposed, overwrite=False)
    configuration = read_configuration()
    assert configuration is not None
    host = placement.shard_host(0)
    handle: Any = None
    try:
        handle = placement.locate_blocking(host, None)
        figures: dict[str, Any] = answer(handle.start.remote(), START_WITHIN_S, host)
        if figures["around"]:
            raise InvalidCall(figures["around"], status=500)
    except BaseException:  # also an interrupt: whoever comes next begins anew
        if configuration.cluster_id == proposed.cluster_id:
            if handle is not None:
                ray.kill(handle, no_restart=True)
            delete_configuration()
        raise
    if figures["shards"] != configuration.shards:  # the manifest of an older root decides
        configuration = msgspec.structs.replace(configuration, shards=figures["shards"])
        write_configuration(configuration, overwrite=True)
        answer(handle.configure.remote(configuration), START_WITHIN_S, host)
    return configuration


@overload
def deploy(object_class: type[DurableObject], /) -> Namespace[Any]: ...
@overload
def deploy(
    first: type[DurableObject], second: type[DurableObject], /, *others: type[DurableObject]
) -> tuple[Namespace[Any], ...]: ...
def deploy(*classes: type[DurableObject]) -> Any:
    """Makes classes known to the whole cluster, and durably so: their code goes into the storage.

    Deploying a changed class again moves its live objects to the new version between two calls.
    Before anything changes the classes are loaded on trial: if that fails, the old ones serve on.

    Returns:
        The class's namespace; for several classes a tuple of theirs.

    Raises:
        InvalidCall: no subclass of DurableObject, its code cannot be pickled or not be loaded on a
            host, or its options are none.
        StorageFailed, Unavailable: it could not be stored.
    """
    if not classes:
        raise InvalidCall("deploy at least one class: ro.deploy(Counter)")
    router = process.router()
    infos = [describe(each) for each in classes]
    for info in infos:
        if info.name == placement.DEFAULT_POOL:
            raise InvalidCall(f"a class cannot be called {info.name!r}: it is the name of a pool")
        if placement.is_dedicated(info, router.configuration):
            placement.dedicated_actor(info, info.name)  # Ray looks at the options
        elif info.ray_options:
            raise InvalidCall(
                f"{info.name} has ray_options, which are for objects with an actor of their own: "
                f'write class {info.name}(ro.DurableObject, hosting="dedicated", ray_options=…), '
                "or leave them out"
            )
    blob = pickle_classes(list(classes))
    body = msgspec.msgpack.encode(Deployment(infos, blob))
    answered = ask_host(placement.shard_host(0), lambda host: host.deploy.remote(body))
    deployed = msgspec.msgpack.decode(answered, type=list[ClassInfo])
    refresh_hosts([info.key for info in deployed])
    router.know(deployed)
    namespaces = tuple(Namespace[Any](info.name) for info in infos)
    return namespaces[0] if len(namespaces) == 1 else namespaces


def ask_host(host: str, ask: Callable[[Any], Any]) -> Any:
    """Asks the host of a shard something that may be asked twice; waits for the answer.

    Raises:
        RayObjectsError: the host's own error, or Unavailable.
    """
    router = process.router()
    return router.question(
        lambda: answer_of(host, router.configuration, router.clock, ask, START_WITHIN_S)
    ).result()


def refresh_hosts(class_keys: list[str]) -> None:
    """Tells the hosts that run now that classes have changed; those that start later read the new
    catalog by themselves."""
    wanted = {placement.DEFAULT_POOL, *class_keys}
    hosts = [host for host in placement.live_hosts() if host.partition("/")[0] in wanted]
    _tell_hosts(hosts, lambda host: host.refresh.remote(class_keys))


def _tell_hosts(hosts: Iterable[str], tell: Callable[[Any], Any]) -> list[Any]:
    """Tells hosts something that those who start later find out by themselves; returns what they
    say."""
    telling = []
    for host in hosts:
        try:
            handle = ray.get_actor(host, namespace=placement.NAMESPACE)
        except ValueError:
            continue  # it has ended meanwhile
        telling.append(tell(handle))
    if not telling:
        return []
    ready, _ = ray.wait(telling, num_returns=len(telling), timeout=START_WITHIN_S)
    answers = []
    for reference in ready:
        try:
            answers.append(ray.get(reference))
        except ray.exceptions.RayActorError:
            pass  # a host that died finds out when it is back
    return answers


def shutdown() -> None:
    """Disconnects this process from the objects, which stay where they are. A stub that is used
    after that connects it again, to the Ray that it is attached to (`ray.shutdown()` ends that).

    Raises:
        InvalidCall: in a method, or in a gateway: the process is not the caller's to disconnect.
    """
    process.detach()
    carried.name_client("")
