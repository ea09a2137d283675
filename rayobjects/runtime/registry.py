"""Which clusters run on this machine: a file for each, of this user's, with its address and token.

The cluster's keeper holds a lock on the file while it lives: a file without a lock belongs to a
cluster that is gone, and is removed by whoever meets it, after what the cluster may have left
running has been ended. So a cluster is found from another shell, and two do not disturb each other.
The file is for its user only (mode 0600): who has the token may run code in the cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rayobjects.clock import SystemClock
from rayobjects.errors import InvalidCall, Unavailable
from rayobjects.runtime.keeper import sweep
from rayobjects.settings import settings

STOP_S = 20.0
"""How long the keeper may take to end Ray before it is killed; usually 1 s."""

LOOK_AGAIN_S = 0.2
"""How often it is looked whether a process that is to end has ended unnoticed by its parent."""

LOOPBACK_ENVIRONMENT = {
    # On Linux Ray replaces 127.0.0.1 by the machine's address and listens on every interface,
    # unless it believes that it cannot have further nodes, as on a Mac.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@dataclass(frozen=True)
class Record:
    """What a cluster's file says.

    Attributes:
        address: of Ray, `127.0.0.1:port`.
        token: what Ray asks its clients for.
        mark: in the environment of each of the cluster's processes.
        owner: the process id of whoever started it.
        keeper: the keeper's process id; 0 until it has started.
        started_at: when, in seconds since the epoch.
        directory: where Ray's files are, logs among them.
        temporary: the directory was made for this cluster, and goes with it.
        ready: the keeper has started Ray, and so holds its lock while the cluster runs.
        facts: what the owner lets others know: `url`, `storage`.
        path: of the file.
    """

    address: str
    token: str
    mark: str
    owner: int
    started_at: float
    directory: str
    keeper: int = 0
    temporary: bool = False
    ready: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    path: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have to attach to the cluster, and to find it at all."""
        return LOOPBACK_ENVIRONMENT | {
            "RAYOBJECTS_ADDRESS": self.address,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }


def running() -> list[Record]:
    """This user's running clusters, oldest first. Removes the files of those that are gone."""
    found: list[Record] = []
    for path in records_directory().glob("*.json"):
        record = _read(path)
        if record is None:
            continue
        if record.ready and _is_locked(path):
            found.append(record)
        elif record.ready or not psutil.pid_exists(record.owner):
            forget(record)
    return sorted(found, key=lambda record: record.started_at)


def find(address: str | None = None) -> Record | None:
    """The running cluster of this machine that `connect` would take.

    Args:
        address: of Ray (`host:port`) or of the gateway (`http://127.0.0.1:8000`, or the port);
            None for RAYOBJECTS_ADDRESS, RAY_ADDRESS, or the only one that runs.

    Returns:
        None if the address is not of a cluster that `start_local` started.

    Raises:
        Unavailable: no cluster runs here.
        InvalidCall: several run and none was named.
    """
    wanted = wanted_address(address)
    clusters = running()
    if wanted:
        port = wanted.rstrip("/").rpartition(":")[2]
        for record in clusters:
            url = str(record.facts.get("url", ""))
            if record.address.endswith(f":{port}") or (url and url.endswith(f":{port}")):
                return record
        return None
    if not clusters:
        raise Unavailable(
            "no cluster runs here: start one with `rayobjects serve FILE`, or name one with "
            "--address or RAYOBJECTS_ADDRESS"
        )
    if len(clusters) > 1:
        names = ", ".join(str(record.facts.get("url", record.address)) for record in clusters)
        raise InvalidCall(
            f"several clusters run here ({names}): name one with --address or RAYOBJECTS_ADDRESS"
        )
    return clusters[0]


def stop(record: Record) -> None:
    """Stops a cluster of this machine, from another process than its owner: asks the owner, which
    stops it as on Ctrl-C; whatever is left after 20 s is killed.

    Raises:
        Unavailable: it belongs to another user.
    """
    try:
        owner = psutil.Process(record.owner)
        os.kill(record.owner, signal.SIGTERM)
        _wait_for_end(owner)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass
    except PermissionError:
        raise Unavailable(
            f"the cluster at {record.address} belongs to another user: ask that user"
        ) from None
    forget(record)


def _wait_for_end(process: psutil.Process) -> None:
    """Waits STOP_S at most. A process that has ended and whose parent takes no notice is still
    listed, and `psutil` would go on waiting for it."""
    clock = SystemClock()
    until = clock.monotonic() + STOP_S
    while clock.monotonic() < until and process.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(LOOK_AGAIN_S)
            return


def wanted_address(address: str | None) -> str:
    """The address that is meant: the given one, else the environment's; "" if there is none."""
    return address or settings().address or os.environ.get("RAY_ADDRESS", "")


def records_directory() -> Path:
    """Where the files are; made if it is missing."""
    directory = settings().clusters_directory.expanduser()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def write(record: Record) -> None:
    """Writes in place: the keeper's lock is on the file itself."""
    descriptor = os.open(record.path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        text = json.dumps(asdict(record), indent=2)
        file.write(text)
        file.truncate(len(text))


def _read(path: Path) -> Record | None:
    """None while the file is being written, or where it is not ours."""
    try:
        return Record(**(json.loads(path.read_text()) | {"path": str(path)}))
    except (OSError, ValueError, TypeError):
        return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def forget(record: Record) -> None:
    """Ends what a cluster has left behind, and removes its file."""
    sweep(record.mark, record.keeper)
    if record.temporary:
        shutil.rmtree(record.directory, ignore_errors=True)
    Path(record.path).unlink(missing_ok=True)
