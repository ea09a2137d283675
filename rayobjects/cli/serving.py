"""`rayobjects serve`: starts Ray, the hosts and the gateway, waits, and stops all of it again.

What can be wrong with the arguments is looked at before anything is started: the file and whether
what it has can be deployed, the storage root (of another version, in use) and the port. Of two that
start at the same moment the second waits until the first has started (`runtime.starting`) and is
refused then; where it cannot know of the first, its host is refused, and nothing of it stays. From
the moment that Ray's processes exist, every way out ends them: Ctrl-C and SIGTERM in order (the
hosts close their storage), a second Ctrl-C at once. If this process is killed, the keeper ends Ray
(see `runtime.keeper`), and the next start recovers from the journal what the hosts had committed.

While it waits it shows what the hosts log, what methods print, and above all the
tracebacks of those that raised.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from rayobjects.cli.loading import Application, check_deployable, load
from rayobjects.cli.output import (
    note,
    notes,
    print_log_entry,
    progress,
    results,
)
from rayobjects.errors import InvalidCall, StorageFailed, Unavailable
from rayobjects.settings import STORAGE, Settings, shards_default
from rayobjects.storage.files import parse_root
from rayobjects.storage.manifest import Manifest

if TYPE_CHECKING:
    from rayobjects.runtime.hosts_log import Reader
    from rayobjects.runtime.registry import Record

WATCH_S = 0.5
"""How often it looks whether the cluster still lives, and what its hosts have logged."""

SHOWN_MAX = 100
"""Of what hosts log within WATCH_S; more scrolls away unread."""

RESERVED_CPUS = 3
"""Warm worker processes beside the hosts': Serve's controller, its proxy and the gateway."""


def serve(target: str, settings: Settings, *, given_storage: str | None) -> None:
    """Serves a file's or module's objects until it is told to stop.

    Raises:
        RayObjectsError: it could not be started; whatever had been started has been ended.
    """
    application = load(target)
    check_deployable(application)
    root = parse_root(settings.storage or STORAGE)
    stop = _Stop()
    stop.listen()
    if settings.address:
        _serve_attached(application, settings, root if given_storage else None, stop, target)
    else:
        check_storage(root, target)
        check_port(settings.host, settings.port)
        _serve_local(application, settings, root, stop, target)


def check_storage(root: str, target: str) -> None:
    """Refuses a storage root that hosts could not open.

    Raises:
        InvalidCall: another cluster of this user uses it; the message says which.
        StorageFailed: it is in use otherwise, or no root that this version can read, or nothing can
            be written there.
    """
    for record in _running():
        if record.facts.get("storage") == root:
            raise InvalidCall(
                f"{root} is in use by {_who(record)}: hand it new code with `rayobjects deploy "
                f"{target} --address {_address(record)}`, or stop it with `rayobjects down "
                f"--address {_address(record)}`, or choose another directory with --storage"
            )
    Manifest.check(root)
    _check_writable(Path(root))


def _check_writable(root: Path) -> None:
    """Tries it, and leaves nothing: permissions do not say all (`/proc`, read-only disks)."""
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if there == root:
            tempfile.TemporaryFile(dir=root).close()
        else:
            tempfile.TemporaryDirectory(dir=there, prefix=".rayobjects-").cleanup()
    except OSError as error:
        raise StorageFailed(
            f"{root} cannot be written ({error.strerror}): choose another directory with --storage"
        ) from None


def check_port(host: str, port: int) -> None:
    """Raises InvalidCall if the port is taken: better now than after Ray has been started."""
    for record in _running():
        url = record.facts.get("url", "")
        if url.endswith(f":{port}"):
            raise InvalidCall(
                f"port {port} cannot be used: {_who(record)} has it; stop that with `rayobjects "
                f"down --address {url}`, or choose another with --port"
            )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InvalidCall(
                f"port {port} cannot be used ({error.strerror}): stop the program that has it, "
                "or choose another with --port"
            ) from None


def _running() -> list[Record]:
    """The clusters of this user that have an owner. One whose owner was killed is about to end,
    and is helped."""
    from rayobjects.runtime import registry

    found = []
    for record in registry.running():
        if psutil.pid_exists(record.owner):
            found.append(record)
        else:
            registry.stop(record)
    return found


def _address(record: Record) -> str:
    return str(record.facts.get("url", record.address))


def _who(record: Record) -> str:
    url = record.facts.get("url", "")
    where = f"which serves {url}" if url else f"whose Ray is at {record.address}"
    return f"process {record.owner}, {where}"


def _serve_local(
    application: Application, settings: Settings, root: str, stop: _Stop, target: str
) -> None:
    from rayobjects.runtime import cluster
    from rayobjects.runtime.starting import starting
    from rayobjects.serve import haproxy

    shards = settings.shards or shards_default()
    with contextlib.ExitStack() as alone:
        alone.enter_context(starting(root))  # others wait, and find what has been started
        check_storage(root, target)
        imports = threading.Thread(target=_import_ahead, name="imports", daemon=True)
        imports.start()
        with progress("Starting Ray"):
            local = cluster.start_local(
                num_cpus=shards + RESERVED_CPUS, environment=haproxy.environment
            )
        try:
            with progress("Starting hosts"):
                imports.join()
                cluster.connect(local.address)
                stop.listen()
                log = _hosts_log()
                _start_objects(application, settings, root, shards)
                local.announce(storage=root)
            alone.close()
            with progress("Starting the gateway"):
                _start_gateway(application, settings)
            local.announce(url=_url(settings), application=application.name)
            _say_where(application, settings, root)
            while not stop.wait(WATCH_S):
                _show(log)
                if not local.is_alive:
                    raise Unavailable(
                        "the Ray cluster has ended, but not by this process: start again; what "
                        "was acknowledged is in the storage"
                    )
        finally:
            with progress("Stopping"):
                try:
                    if local.is_alive:
                        _stop_objects()
                finally:
                    local.stop()
    note("Stopped.")


def _serve_attached(
    application: Application, settings: Settings, root: str | None, stop: _Stop, target: str
) -> None:
    """Serves on a cluster that runs already, and leaves it running. One at a time: who ends would
    stop the hosts and the gateway of both."""
    from rayobjects.runtime import cluster, configuration
    from rayobjects.serve import run

    with progress(f"Connecting to {settings.address}"):
        cluster.connect(settings.address)
    stop.listen()
    log = _hosts_log()
    if run.is_serving():
        raise InvalidCall(
            f"the cluster at {settings.address} is served already: hand it new code with "
            f"`rayobjects deploy {target} --address {settings.address}`, or stop what serves with "
            f"`rayobjects down --address {settings.address}`"
        )
    run.check_port(settings.host, settings.port)
    ours = configuration.read_configuration() is None
    try:
        with progress("Starting hosts"):
            _start_objects(application, settings, root, settings.shards)
        with progress("Starting the gateway"):
            _start_gateway(application, settings)
        ours = True
        _say_where(application, settings, root)
        while not stop.wait(WATCH_S):
            _show(log)
            if configuration.read_configuration() is None:
                ours = False
                note("Stopped by another process: `rayobjects down`, or the last one that served.")
                return
    finally:
        # Else it has not come so far, or has failed beside what others run here.
        if ours and configuration.read_configuration() is not None:
            with progress("Stopping"):
                _stop_objects()
    note("Stopped; the Ray cluster goes on.")


def _hosts_log() -> Reader:
    from rayobjects.runtime import hosts_log

    return hosts_log.Reader(hosts_log.directory())


def _show(log: Reader) -> None:
    """Shows what hosts of this node have logged since the last time."""
    entries = log.read()
    for entry in entries[:SHOWN_MAX]:
        print_log_entry(entry.level, entry.message, entry.traceback)
    if len(entries) > SHOWN_MAX:
        note(f"… and {len(entries) - SHOWN_MAX:,} more, in {log.directory}/rayobjects-*.log")


def _import_ahead() -> None:
    """Imports what will be needed while Ray starts; a failure shows where it is needed."""
    with contextlib.suppress(Exception):
        import rayobjects.runtime.client
        import rayobjects.serve.run  # noqa: F401


def _start_objects(
    application: Application, settings: Settings, root: str | None, shards: int | None
) -> None:
    from rayobjects.runtime import client

    client.init(
        root,
        shards=shards,
        hosting=settings.hosting,
        idle_s=settings.idle_s,
        filters=application.filters,
        process_setup=application.process_setup,
    )
    client.deploy(*application.classes)


def _start_gateway(application: Application, settings: Settings) -> None:
    from rayobjects.serve.run import start_gateway

    start_gateway(
        host=settings.host,
        port=settings.port,
        pages=application.pages,
        app=application.app,
        allowed_hosts=settings.allowed_hosts.split(","),
        socket_ping_s=settings.socket_ping_s,
        socket_idle_s=settings.socket_idle_s,
    )


def _stop_objects() -> None:
    """Clients are sent away first, then the hosts close their storage. Failures are told and
    passed over: recovery needs no clean end."""
    import ray

    if not ray.is_initialized():
        return  # it had not come so far
    from rayobjects.runtime import admin, client
    from rayobjects.serve.run import stop_gateway

    for step in (stop_gateway, admin.stop_hosts, client.shutdown):
        try:
            step()
        except Exception as error:
            note(f"while stopping: {type(error).__name__}: {error}")


def _url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _say_where(application: Application, settings: Settings, root: str | None) -> None:
    url = _url(settings)
    names = ", ".join(each.__name__ for each in application.classes)
    lines = [("objects", names), *(("page", url + path) for path in application.pages)]
    lines += [("docs", f"{url}/docs"), ("storage", root or "the cluster's")]
    for name, value in lines:
        results.print(f"[dim]{name:>8}[/]  {value}")
    notes.print("[dim]Ctrl-C stops everything; the objects stay.[/]")


class _Stop:
    """Whether Ctrl-C or SIGTERM has come. It breaks in while things start, is noted while they run
    and breaks in again, the second time, while they stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._running = False

    def listen(self) -> None:
        """Takes the signals, also from Ray, which takes SIGTERM for itself when it connects."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def wait(self, timeout_s: float | None) -> bool:
        """Waits for it; True if it has come."""
        if not self._running:
            self._running = True
            self.listen()
        return self._event.wait(timeout_s)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set() or not self._running:
            raise KeyboardInterrupt
        self._event.set()
