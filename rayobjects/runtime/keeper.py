"""The process that keeps a local Ray cluster alive, and ends it.

Started by `cluster.start_local` as a child in a session of its own, so that Ctrl-C reaches the
owner only. It reads one line of JSON (`Plan`) from its standard input, starts Ray's processes,
answers `ready` or an error in one line, and then waits:

    standard input ends     the owner has stopped or died     → end Ray, exit
    SIGTERM                 somebody else wants it to stop    → the same
    a Ray process dies      the cluster is broken             → the same
    SIGKILL                 the kernel kills Ray's processes with it; the owner, or the next
                            `start_local`, ends what they leave behind (see `sweep`)

It holds a lock on the cluster's file while it lives: a file whose lock is free belongs to a cluster
that is gone. Every process of the cluster carries the cluster's mark in its environment or is in
the keeper's session, which is how those are found that Ray itself loses track of: HAProxy, or
workers of a raylet that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import psutil

from rayobjects.clock import SystemClock

MARK = "RAYOBJECTS_CLUSTER_MARK"
"""The environment variable that marks a cluster's processes."""

WATCH_S = 1.0
"""How often the keeper looks whether Ray's processes live."""

START_S = 120.0
"""What Ray's processes get to start: 3 s on an idle machine, much more on one under load."""

EXIT_S = 5.0
"""What Ray's processes get to end by themselves, before they are killed."""


@dataclass(frozen=True)
class Plan:
    """What the keeper is to start.

    Attributes:
        record: the path of the cluster's file.
        directory: Ray's temporary directory; short, since sockets' paths are.
        port: of Ray's control service, on 127.0.0.1.
        num_cpus: what Ray counts; also how many idle workers wait for actors.
        object_store_bytes: of Ray's shared memory.
    """

    record: str
    directory: str
    port: int
    num_cpus: int
    object_store_bytes: int

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Plan:
        return cls(**json.loads(line))


def sweep(mark: str, keeper: int) -> None:
    """Kills every process of the cluster but this one.

    Args:
        mark: the cluster's.
        keeper: the keeper's process id, 0 if it is not known. Ray's processes are in its session,
            and some of them overwrite their environment with a title.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and _belongs(process, mark, keeper):
                process.kill()
                found.append(process)
        except (psutil.Error, OSError):
            pass  # gone, or somebody else's
    psutil.wait_procs(found, timeout=EXIT_S)


def _belongs(process: psutil.Process, mark: str, keeper: int) -> bool:
    if process.environ().get(MARK) == mark:
        return True
    # A session's id is a process id, and those come again: so the title must be one of Ray's, too.
    return os.getsid(process.pid) == keeper and process.cmdline()[:1][0].startswith("ray::")


def start_ray(plan: Plan) -> Any:
    """Starts Ray's processes. `ray start` would start three more that nothing here needs (the
    autoscaler's monitor, the client server and the dashboard) and take twice as long."""
    from ray._private import services
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class LeanNode(Node):  # type: ignore[misc]
        def start_api_server(self, **_: Any) -> None:
            """No dashboard."""
            self._webui_url = ""

    get_node = services.get_node
    deadline = SystemClock().monotonic() + START_S

    def get_node_patiently(*arguments: Any) -> Any:
        """Ray itself gives up after 30 s."""
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it has not registered yet
                if SystemClock().monotonic() > deadline:
                    raise

    services.get_node = get_node_patiently

    parameters = RayParams(
        node_ip_address="127.0.0.1",
        gcs_server_port=plan.port,
        num_cpus=plan.num_cpus,
        object_store_memory=plan.object_store_bytes,
        temp_dir=plan.directory,
        include_dashboard=False,
        no_monitor=True,
        include_log_monitor=False,
    )
    return LeanNode(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)


class _Terminated(Exception):
    pass


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def main() -> None:
    """Runs the keeper."""
    signal.signal(signal.SIGTERM, _terminate)
    node = None
    try:
        plan = Plan.from_line(sys.stdin.readline())
        record = os.open(plan.record, os.O_RDWR)
        fcntl.flock(record, fcntl.LOCK_EX)
        try:
            node = start_ray(plan)
            signal.signal(signal.SIGTERM, _terminate)  # Ray sets a handler that waits
        except Exception as error:
            _answer(f"{type(error).__name__}: {error}")
            raise
        _answer("ready")
        while not _input_ended() and not node.dead_processes():
            pass
    except _Terminated:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        sweep(os.environ[MARK], os.getpid())


def _answer(line: str) -> None:
    print(line.replace("\n", " "), flush=True)
    # The owner reads no further; what else is printed goes to the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _input_ended() -> bool:
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], WATCH_S)
    return bool(ready) and os.read(sys.stdin.fileno(), 4096) == b""


if __name__ == "__main__":
    main()
