"""A Ray cluster of this process, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rayobjects as ro
from rayobjects.runtime import admin
from rayobjects.runtime import cluster as clusters
from rayobjects.runtime.cluster import LocalCluster
from rayobjects.serve import haproxy

ATTACHED = ("RAYOBJECTS_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
"""What this process has in its environment because it is attached."""

WITHIN_S = 60.0

CPUS = 4
"""Also how many warm worker processes Ray has: a host on one of them starts in a tenth of a second.
Each takes a second of the CPU to start."""


class RayCluster:
    """A Ray cluster that this process is attached to."""

    def __init__(self) -> None:
        self.local: LocalCluster | None = None

    def start(self) -> None:
        self.local = clusters.start_local(num_cpus=CPUS, environment=haproxy.environment)
        clusters.connect(self.local.address)

    def stop(self) -> None:
        ro.shutdown()
        local, self.local = self.local, None
        if local is not None:
            local.stop()

    def run_elsewhere(self, script: str) -> str:
        """Runs a script in a process of its own, as from another shell; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={name: value for name, value in os.environ.items() if name not in ATTACHED},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def objects_on(cluster: RayCluster, **options: Any) -> Iterator[Path]:
    """A storage root of its own on the cluster, with these options of `ro.init`; gone with all its
    hosts at the end."""
    root = Path(tempfile.mkdtemp(prefix="ro-test-"))
    ro.init(storage=str(root), **options)
    try:
        yield root
    finally:
        admin.stop_hosts()
        ro.shutdown()
        shutil.rmtree(root)
