"""A call that ends the process of its host, however often it is sent again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from ray_cluster import RayCluster, objects_on

import rayobjects as ro

pytestmark = pytest.mark.timeout(300)

WITHIN_S = 200.0

UNAVAILABLE_AFTER_S = 180.0
"""The host dies four times, and a busy machine starts a process in ten seconds."""


@pytest.fixture(scope="module", params=["shared", "dedicated"])
def hosting(request: pytest.FixtureRequest, ray_cluster: RayCluster) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYOBJECTS_UNAVAILABLE_AFTER_S", str(UNAVAILABLE_AFTER_S))
        with objects_on(ray_cluster, shards=1, hosting=request.param):
            yield request.param


class Mine(ro.DurableObject):
    count: int = ro.durable(0)

    def increment(self) -> int:
        self.count += 1
        return self.count

    def explode(self) -> None:
        self.count += 1_000
        os.kill(os.getpid(), signal.SIGKILL)


def test_it_is_stopped_and_no_other_call_is_lost(hosting: str) -> None:
    mines = ro.deploy(Mine)
    mine, neighbours = mines.get("mine"), [mines.get(f"neighbour {n}") for n in range(3)]
    assert mine.increment.remote().result(WITHIN_S) == 1
    before = [each.increment.remote() for each in neighbours]
    exploding = mine.explode.remote()
    after = [each.increment.remote() for each in neighbours]
    waiting = mine.increment.remote()
    with pytest.raises(ro.MethodError, match="ended its host's process 3 times") as raised:
        exploding.result(WITHIN_S)
    assert raised.value.cause_type == "ProcessDied"
    assert [each.result(WITHIN_S) for each in before] == [1, 1, 1]
    assert [each.result(WITHIN_S) for each in after] == [2, 2, 2]
    assert waiting.result(WITHIN_S) == 2
    assert mine.increment.remote().result(WITHIN_S) == 3
