"""Objects with an actor of their own: what they ask of the cluster, how they die, how soon they
come."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray_cluster import RayCluster, objects_on

import rayobjects as ro
from rayobjects.runtime import placement
from rayobjects.runtime.warm_pool import WORKERS_A_NODE

pytestmark = pytest.mark.timeout(300)

WITHIN_S = 60.0

UNAVAILABLE_AFTER_S = 17.0
"""A little more than a channel waits for one answer."""


@pytest.fixture(scope="module", autouse=True)
def objects(ray_cluster: RayCluster) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYOBJECTS_UNAVAILABLE_AFTER_S", str(UNAVAILABLE_AFTER_S))
        with objects_on(ray_cluster, shards=1, idle_s=2.5):
            yield


def counter(**options: Any) -> type[ro.DurableObject]:
    class Counter(ro.DurableObject, hosting="dedicated", ray_options=options):
        count: int = ro.durable(0)

        def increment(self) -> int:
            self.count += 1
            return self.count

        async def wait(self, path: str) -> None:
            while not await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.01)

        def pid(self) -> int:
            return os.getpid()

        def variable(self, name: str) -> str | None:
            return os.environ.get(name)

    return Counter


def deployed(name: str, **options: Any) -> Any:
    return ro.deploy(type(name, (counter(),), {}, ray_options=options))


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- what they ask for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"num_gpus": 1}, "num_gpus=1;"),
        ({"num_cpus": 10_000}, "num_cpus=10,000;"),
        ({"memory": 10**15}, "memory=1,000,000,000,000,000;"),
        ({"num_gpus": 2, "resources": {"disk": 1}}, "num_gpus=2, disk=1;"),
        ({"label_selector": {"region": "eu"}}, "a node with region=eu;"),
        (
            {
                "label_selector": {"region": "eu"},
                "fallback_strategy": [{"label_selector": {"region": "in(us,asia)"}}],
            },
            "a node with region=eu or region=in(us,asia);",
        ),
    ],
)
def test_what_the_cluster_lacks_is_said_at_once(options: dict[str, Any], asked: str) -> None:
    greedy = deployed("Greedy", **options).get("one")
    begun = time.monotonic()
    with pytest.raises(ro.Unavailable, match="no node of this cluster can run Greedy") as raised:
        greedy.increment.remote().result(WITHIN_S)
    assert time.monotonic() - begun < UNAVAILABLE_AFTER_S / 2
    assert f"it asks for {asked} its nodes have: num_cpus=" in raised.value.message


def test_a_label_that_no_node_must_have() -> None:
    choosy = deployed("Choosy", label_selector={"region": "!eu"})
    assert choosy.get("one").increment.remote().result(WITHIN_S) == 1


def test_what_is_all_in_use_is_said_within_the_deadline_and_given_when_it_is_free(
    tmp_path: Path,
) -> None:
    cpus = ray.cluster_resources()["CPU"]
    greedy = deployed("Hungry", num_cpus=cpus)
    first, second = greedy.get("first"), greedy.get("second")
    assert first.increment.remote().result(WITHIN_S) == 1
    busy = first.wait.remote(str(tmp_path / "now"))
    begun = time.monotonic()
    with pytest.raises(ro.Unavailable, match="which is all in use") as raised:
        second.increment.remote().result(WITHIN_S)
    assert time.monotonic() - begun < UNAVAILABLE_AFTER_S + 10
    assert f"it waits for num_cpus={cpus:g}" in raised.value.message
    (tmp_path / "now").touch()
    busy.result(WITHIN_S)
    # The first is idle, and goes; the second comes. What was unavailable may have reached it.
    assert second.increment.remote().result(WITHIN_S) in (1, 2)
    assert first.increment.remote().result(WITHIN_S) == 2


def test_options_reach_the_actor() -> None:
    tuned = deployed("Tuned", num_cpus=0.5, runtime_env={"env_vars": {"TUNED": "yes"}}).get("one")
    assert tuned.variable.remote("TUNED").result(WITHIN_S) == "yes"
    actor = ray.get_actor("Tuned/one", namespace=placement.NAMESPACE)
    state = ray._private.state.actors(actor._actor_id.hex())
    assert state["State"] == "ALIVE"
    cpus = ray.cluster_resources()["CPU"]
    until(lambda: ray.available_resources().get("CPU", 0) <= cpus - 0.5)


def test_options_of_objects_that_share_a_host() -> None:
    with pytest.raises(ro.InvalidCall, match='hosting="dedicated", ray_options'):
        ro.deploy(type("Shared", (ro.DurableObject,), {}, ray_options={"num_cpus": 1}))


def test_options_that_ray_does_not_take() -> None:
    with pytest.raises(ro.InvalidCall, match="Ray does not take the ray_options of Odd"):
        deployed("Odd", label_selector={"region": "in(eu"})


def test_a_runtime_env_that_cannot_be_made() -> None:
    with pytest.raises(ro.InvalidCall, match="the runtime_env of Lost cannot be made"):
        deployed("Lost", runtime_env={"working_dir": "file:///no/such/place.zip"})


# -- how they die ----------------------------------------------------------------------------------


def test_guarantee_5_who_is_killed_for_its_memory_takes_nobody_along() -> None:
    """SIGKILL is what the kernel's and Ray's memory monitors send."""
    counters = deployed("Counter")
    heavy, light = counters.get("heavy"), counters.get("light")
    heavy_pid, light_pid = (each.pid.remote().result(WITHIN_S) for each in (heavy, light))
    assert heavy.increment.remote().result(WITHIN_S) == 1
    under_way = [light.increment.remote() for _ in range(100)]
    os.kill(heavy_pid, signal.SIGKILL)
    calls = [heavy.increment.remote() for _ in range(10)]
    assert [each.result(WITHIN_S) for each in under_way] == list(range(1, 101))
    assert [each.result(WITHIN_S) for each in calls] == list(range(2, 12))
    assert light.pid.remote().result(WITHIN_S) == light_pid
    assert heavy.pid.remote().result(WITHIN_S) != heavy_pid


# -- how soon they come ----------------------------------------------------------------------------


def test_warm_processes_are_replaced() -> None:
    counters = deployed("Quick")

    @ray.remote(num_cpus=0)
    def raylet() -> int:
        return os.getppid()

    node = psutil.Process(ray.get(raylet.remote()))

    def idle() -> int:
        names = []
        for process in node.children():
            try:
                names.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return sum("ray::IDLE" in name for name in names)

    until(lambda: idle() >= WORKERS_A_NODE)
    before = idle()
    for number in range(WORKERS_A_NODE + 1):
        assert counters.get(str(number)).increment.remote().result(WITHIN_S) == 1
    until(lambda: idle() >= before)


def test_an_idle_actor_ends_called_or_not() -> None:
    counters = deployed("Fleeting")
    counters.get("called").increment.remote().result(WITHIN_S)
    placement.locate_blocking("Fleeting/created", _catalog()["Fleeting"])
    assert {"Fleeting/called", "Fleeting/created"} <= set(placement.live_hosts())
    until(lambda: not any(host.startswith("Fleeting/") for host in placement.live_hosts()))
    assert counters.get("called").increment.remote().result(WITHIN_S) == 2


def _catalog() -> Any:
    from rayobjects.runtime.configuration import read_catalog

    return read_catalog().classes
