"""What came due while nothing ran fires when the cluster is back, though nobody calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ray_cluster import RayCluster

import rayobjects as ro
from rayobjects.runtime import admin

WITHIN_S = 60.0


class Sleeper(ro.DurableObject):
    notes: list[str] = ro.durable(factory=list)

    def write(self, text: str) -> None:
        self.notes.append(text)

    def read(self) -> list[str]:
        return self.notes

    def plan(self, text: str, after_s: float) -> None:
        self.schedule(self.write, text, after=after_s, key="k")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_came_due_while_nothing_ran_fires_when_the_cluster_is_back(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    ro.init(storage=str(tmp_path), shards=2)
    sleepers = ro.deploy(Sleeper)
    for name in ("a", "b", "c", "d"):  # in both shards
        sleepers.get(name).plan.remote("overdue", 1.0).result(WITHIN_S)
    planned_at = time.time()
    admin.stop_hosts()
    ray_cluster.stop()
    until(lambda: time.time() > planned_at + 1.0)
    ray_cluster.start()
    ro.init(storage=str(tmp_path))
    try:
        until(lambda: admin.list_promises(["schedule"], None, False, 10) == [])
        assert {
            tuple(sleepers.get(name).read.remote().result(WITHIN_S))
            for name in ("a", "b", "c", "d")
        } == {("overdue",)}
    finally:
        admin.stop_hosts()
        ro.shutdown()
