"""A Ray cluster on this machine, and how any process finds one.

`start_local` starts Ray with the environment that makes it quick (each variable has its reason
beside it) through a keeper process, which ends with its owner, however that ends. Everything
listens on 127.0.0.1 only, and Ray asks for a token that is made for this cluster.

`connect` finds the cluster that runs here, also from another shell (see `registry`).

    owner dies      the keeper's input ends, it ends Ray
    keeper dies     Ray's processes die with it; the owner, or the next start, ends the rest
    Ray dies        the keeper ends what is left
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayobjects.clock import SystemClock
from rayobjects.errors import InvalidCall, Unavailable
from rayobjects.runtime.keeper import MARK, Plan
from rayobjects.runtime.registry import (
    LOOPBACK_ENVIRONMENT,
    STOP_S,
    Record,
    find,
    forget,
    records_directory,
    running,
    wanted_address,
    write,
)
from rayobjects.runtime.starting import starting, with_storage
from rayobjects.settings import shards_default

logger = logging.getLogger("rayobjects")

NAMESPACE = "rayobjects"
"""Ray's namespace of everything here."""

PROBE_S = 3.0
"""How long an address may take to accept a connection. Ray itself would try for half a minute."""

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Ray's shared memory. Calls travel outside of it; Ray would take 30 % of the memory."""

DIRECTORY_BYTES_MAX = 36
"""Of Ray's directory: a Unix socket's path has at most 107, and Ray adds 66 of its own."""

SHORT_DIRECTORY = "/tmp"
"""Where Ray's files go if the cluster's directory has too long a path."""

WORKERS_BESIDE_SHARDS = 3
"""Actors that start with the cluster beside the hosts: Serve's controller, its proxy, the gateway.
Ray has as many warm processes ready as it counts CPUs; a cold one costs a second."""

RAY_ENVIRONMENT = {
    # Workers import these before they are needed: an actor starts in 0.1 s instead of 1.3 s.
    "RAY_preload_python_modules": (
        "fastapi,pydantic,uvloop,numpy,rayobjects.runtime.host,rayobjects.runtime.dedicated"
    ),
    # The first driver waits until so many workers are up, so no more than there are CPUs.
    "RAY_worker_maximum_startup_concurrency": str(min(8, max(2, os.cpu_count() or 1))),
    "RAY_num_workers_soft_limit": "30",
    "RAY_idle_worker_killing_time_threshold_ms": "100000000",
    # A caller learns of its host's death in half a second instead of two.
    "RAY_timeout_ms_task_wait_for_death_info": "50",
    # Another node is known to be dead after 4 s instead of 16.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Hosts are asked to stop before Ray is; Ray itself need not wait.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Numeric libraries would start a thread for each CPU in each host.
    "OMP_NUM_THREADS": "1",
}
"""What Ray must be started with; cluster.yaml has the same for each node."""


class LocalCluster:
    """A cluster that this process has started. A context manager: the end stops it."""

    def __init__(self, record: Record, keeper: subprocess.Popen[str]) -> None:
        self.record = record
        self._keeper = keeper

    @property
    def address(self) -> str:
        """`127.0.0.1:port` of Ray."""
        return self.record.address

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which another process attaches to this cluster."""
        return self.record.environment

    @property
    def is_alive(self) -> bool:
        """Whether the keeper lives, and so Ray."""
        return self._keeper.poll() is None

    def announce(self, **facts: Any) -> None:
        """Writes facts (JSON types) into the cluster's file, for other processes."""
        self.record = replace(self.record, facts=self.record.facts | facts)
        write(self.record)

    def stop(self) -> None:
        """Ends every process of the cluster and removes its files. May be called again."""
        _detach_ray(self.address)
        if self._keeper.stdin is not None:
            with contextlib.suppress(OSError):
                self._keeper.stdin.close()
        try:
            self._keeper.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        forget(self.record)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_local(
    directory: str | Path | None = None,
    *,
    num_cpus: int | None = None,
    environment: Mapping[str, str] | Callable[[str], Mapping[str, str]] | None = None,
) -> LocalCluster:
    """Starts Ray on this machine and returns when it takes clients, after about 3 s.

    Args:
        directory: for Ray's and HAProxy's files; a temporary one, which `stop` removes, unless
            given. Where its path is too long for Unix sockets, Ray's files go to a short one.
        num_cpus: what Ray counts, and how many warm worker processes wait; by default enough for
            one host a CPU and the gateway.
        environment: further variables for Ray's processes, which win; or a function that makes
            them for a directory of its own, as `serve.haproxy.environment` does. Without that one
            Serve's own slow proxy answers.

    Raises:
        Unavailable: Ray did not start; the message says where its log is.
    """
    running()  # ends what dead clusters left behind
    root, temporary = _directory(directory)
    mark = secrets.token_hex(8)
    port = _free_port()
    record = Record(
        address=f"127.0.0.1:{port}",
        token=secrets.token_hex(32),
        mark=mark,
        owner=os.getpid(),
        started_at=SystemClock().now(),
        directory=str(root),
        temporary=temporary,
        path=str(records_directory() / f"{port}-{mark}.json"),
    )
    write(record)
    plan = Plan(
        record=record.path,
        directory=str(root),
        port=port,
        num_cpus=num_cpus or shards_default() + WORKERS_BESIDE_SHARDS,
        object_store_bytes=OBJECT_STORE_BYTES,
    )
    further = environment(str(root / "ha")) if callable(environment) else environment or {}
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    variables = (
        inherited
        | RAY_ENVIRONMENT
        | LOOPBACK_ENVIRONMENT
        | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": record.token, MARK: mark}
        | dict(further)
    )
    log = root / "keeper.log"
    with log.open("ab") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "rayobjects.runtime.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables,
            start_new_session=True,
        )
    cluster = LocalCluster(replace(record, keeper=keeper.pid), keeper)
    try:
        answer = _ask(keeper, plan)
    except BaseException:  # Ctrl-C while it starts, too
        keeper.kill()
        cluster.stop()
        raise
    if answer != "ready":
        descriptor, kept = tempfile.mkstemp(prefix="rayobjects-", suffix=".log")
        os.close(descriptor)
        shutil.copyfile(log, kept)
        cluster.stop()
        raise Unavailable(
            f"Ray did not start ({answer or 'its process died'}): see {kept}, and check that "
            "memory and disk are not full"
        )
    cluster.record = replace(cluster.record, ready=True)
    write(cluster.record)
    return cluster


def connect(address: str | None = None) -> str:
    """Attaches this process to a running cluster as a Ray driver. Does nothing if it is attached.

    Args:
        address: see `find`; also of a cluster that others have started.

    Returns:
        Ray's address.

    Raises:
        Unavailable: none runs here, or none answers at the address.
        InvalidCall: several run and none was named; the address is no address.
    """
    record = find(address)
    target = record.address if record is not None else wanted_address(address)
    if record is not None:
        _apply(record.environment)
    elif "://" in target or target.isdigit():  # a gateway's, and none that is listed
        raise Unavailable(f"no cluster of this machine serves {target}: {_what_runs()}")
    _probe(target)

    import ray

    if ray.is_initialized():
        return target
    ray._private.worker.print_to_stdstream = _log_what_raylet_says
    try:
        ray.init(
            address=target,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except ray.exceptions.AuthenticationError as error:
        raise Unavailable(
            f"the Ray cluster at {target} asks for a token: set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN ({str(error).splitlines()[0]})"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Unavailable(
            f"the Ray cluster at {target} does not let this process in: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; check that it "
            "runs on this machine, and that Python and Ray have the same versions"
        ) from error
    return target


def _log_what_raylet_says(said: Mapping[str, Any], *_: Any, **__: Any) -> None:
    """Takes the place of Ray's function that prints on standard output what the raylet tells each
    driver, whatever `log_to_driver` says: of workers that died, though hosts are made to be killed
    and callers hear of what concerns them, and of many workers, though each dedicated object has
    one. A program's output is its own, so it goes to the log."""
    for line in said["lines"]:
        logger.info("Ray: %s", line)


@contextmanager
def attach(storage: str | None, address: str | None = None) -> Iterator[None]:
    """Attaches this process to the cluster that has a storage root, or starts one for it.

    Does nothing if the process is attached to that Ray. An address, given or from the environment,
    wins; then a cluster of this machine with this storage, also one that another process is just
    starting, which is waited for. Where there is none, one is started that ends with this process.
    Without a storage root it is the cluster that runs here.

    Its body is what makes a cluster that was started ready for others, who wait for its end.

    Args:
        storage: the storage root's absolute path.
        address: see `find`.

    Raises:
        Unavailable: as `connect`, `start_local` and `starting` do.
        InvalidCall: the same; or the process is attached to another Ray than the address names.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        if address and address != "auto":
            _check_attached(address)
        yield
        return
    if storage is None or wanted_address(address):
        connect(address)
        yield
        return
    with starting(storage):
        record = with_storage(storage)
        if record is None:
            started = start_local(num_cpus=shards_default())  # no gateway will come
            atexit.register(started.stop)
            started.announce(storage=storage)
            connect(started.address)
            yield
            return
    connect(record.address)
    yield


def _check_attached(address: str) -> None:
    import ray

    record = find(address)
    named = record.address if record is not None else address
    attached = ray.get_runtime_context().gcs_address
    if named.rpartition(":")[2] != attached.rpartition(":")[2]:
        raise InvalidCall(
            f"this process is attached to the Ray at {attached}, and {address} is another: call "
            "ro.shutdown() and ray.shutdown() first"
        )


def _ask(keeper: subprocess.Popen[str], plan: Plan) -> str:
    """Sends the plan; the answer, "" if the keeper died."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        keeper.stdin.write(plan.to_line())
        keeper.stdin.flush()
    except BrokenPipeError:
        return ""
    return keeper.stdout.readline().strip()


def _apply(variables: Mapping[str, str]) -> None:
    """Sets what Ray reads when it is imported, also where it has been imported before."""
    os.environ.update(variables)
    constants: Any = sys.modules.get("ray._private.ray_constants")
    native: Any = sys.modules.get("ray._raylet")
    if constants is not None and native is not None and not sys.modules["ray"].is_initialized():
        constants.ENABLE_RAY_CLUSTER = False
        native.Config.initialize("")  # reads RAY_AUTH_MODE again
        native.AuthenticationTokenLoader.instance().reset_cache()


def _detach_ray(address: str) -> None:
    """Disconnects this process's Ray driver from a cluster that is about to end."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        gcs_address = ray.get_runtime_context().gcs_address
        if gcs_address == address:
            ray.shutdown()
    for name, value in (("RAYOBJECTS_ADDRESS", address), ("RAY_ADDRESS", address)):
        if os.environ.get(name) == value:
            del os.environ[name]


def _what_runs() -> str:
    names = [str(record.facts.get("url", record.address)) for record in running()]
    if not names:
        return "none runs here, start one with `rayobjects serve FILE`"
    return f"name one that runs ({', '.join(names)}) with --address"


def _probe(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidCall(
            f"{address!r} is no address of a Ray cluster: give host:port, for example "
            "127.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {address} ({error}): check the address, or start one with "
            "`rayobjects serve FILE`"
        ) from None


def _directory(directory: str | Path | None) -> tuple[Path, bool]:
    """Where Ray's files go, and whether that was made for this cluster alone."""
    if directory is not None:
        root = Path(directory).absolute()
        root.mkdir(parents=True, exist_ok=True)
        if len(os.fsencode(root)) <= DIRECTORY_BYTES_MAX:
            return root, False
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) + len("/ro-12345678") > DIRECTORY_BYTES_MAX:
        base = SHORT_DIRECTORY
    root = Path(tempfile.mkdtemp(prefix="ro-", dir=base))
    return root, True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
