"""One process at a time starts a cluster for a storage root; the others of this user and machine
wait, find what it has started and attach to that.

Without this two programs that begin at the same moment would both see that nothing runs, both start
a Ray, which takes seconds, and the second one's host would be refused the root.

A process that starts one holds a lock on a file beside those of the clusters (see `registry`), from
before it looks until its cluster answers. The kernel lets go of the lock when the process dies,
however that happens. The file has the process's id, for whoever waits too long, and is removed by
its holder; so who gets the lock looks whether that is still the file's, and begins anew if not.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rayobjects.clock import SystemClock
from rayobjects.errors import Unavailable
from rayobjects.runtime import registry
from rayobjects.runtime.registry import Record

logger = logging.getLogger("rayobjects")

WAIT_S = 200.0
"""How long others may take to start a cluster: what Ray and the first host get together."""

LOOK_AGAIN_S = 0.05


@contextmanager
def starting(storage: str) -> Iterator[None]:
    """While it is open no other process of this user and machine starts a cluster for this root.

    Args:
        storage: the storage root's absolute path.

    Raises:
        Unavailable: another process has been starting one for WAIT_S.
    """
    name = hashlib.sha256(os.fsencode(storage)).hexdigest()[:32]
    path = registry.records_directory() / f"{name}.starting"
    clock = SystemClock()
    until = clock.monotonic() + WAIT_S
    told = False
    while (descriptor := _locked(path)) is None:
        if not told:
            told = True
            logger.info("waits for %s, which starts a cluster for %s", _holder(path), storage)
        if clock.monotonic() > until:
            raise Unavailable(
                f"{_holder(path)} has been starting a cluster for {storage} for {WAIT_S:.0f} s: "
                "look what holds it up, or stop it; or use another storage root"
            )
        threading.Event().wait(LOOK_AGAIN_S)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: it is ours
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have it open, too
        os.close(descriptor)


def with_storage(storage: str) -> Record | None:
    """The running cluster of this user and machine that has the root. One whose owner was killed is
    about to end, and is helped."""
    for record in registry.running():
        if record.facts.get("storage") == storage:
            if psutil.pid_exists(record.owner):
                return record
            registry.stop(record)
    return None


def _locked(path: Path) -> int | None:
    """The file, open and locked; None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):  # it has just let go of it, or just begun
        return "another process"
