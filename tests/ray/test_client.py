"""What callers meet: stubs in every kind of process, order, errors, new versions of a class."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
from ray_cluster import RayCluster

import rayobjects as ro
from rayobjects.runtime import admin, placement

WITHIN_S = 30.0
KEYS = 100_000


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def get(self) -> int:
        return self.count

    def fail(self) -> None:
        self.count += 100
        raise ValueError("not today")

    async def increment_other(self, other: ro.Stub, by: int) -> int:
        self.count += by
        return await other.increment.remote(by)

    async def call_back(self, other: ro.Stub, me: ro.Stub) -> int:
        self.count += 1
        return await other.increment_other.remote(me, 1)

    async def wait_for(self, path: str) -> str:
        while not await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.01)
        return "it is there"


class Log(ro.DurableObject):
    entries: list[int] = ro.durable(factory=list)

    def append(self, entry: int) -> int:
        self.entries.append(entry)
        return len(self.entries)

    def all(self) -> list[int]:
        return list(self.entries)


class Large(ro.DurableObject):
    def fill(self, keys: int) -> None:
        for number in range(keys):
            self.storage[f"key/{number:06}"] = number

    def read_until(self, path: str) -> int:
        """Reads one key after the other, and lets nobody else run while it does."""
        reads = 0
        while not Path(path).exists():
            assert self.storage[f"key/{reads % KEYS:06}"] == reads % KEYS
            reads += 1
        return reads


@pytest.fixture(scope="module", autouse=True)
def deployed(hosting: str) -> str:
    ro.deploy(Counter, Log, Large)
    return hosting


_numbers = itertools.count()


def counter(name: str, shard: int | None = None) -> ro.Stub:
    """A counter that no other test has, in the shard."""
    while True:
        stub = ro.namespace("Counter").get(f"{name} {next(_numbers)}")
        if shard is None or placement.shard_of(stub.id, 2) == shard:
            return stub


# -- stubs in every kind of process ----------------------------------------------------------------


def test_another_process_finds_the_cluster_by_itself(ray_cluster: RayCluster) -> None:
    """Without an argument, and without the class at hand."""
    script = """
import rayobjects as ro
ro.init()
home = ro.namespace("Counter").get("of two processes")
print(home.increment.remote(2).result(timeout_s=30))
"""
    home = ro.namespace("Counter").get("of two processes")
    assert home.increment.remote(40).result(WITHIN_S) == 40
    assert ray_cluster.run_elsewhere(script) == "42\n"
    assert home.get.remote().result(WITHIN_S) == 42


def test_another_address_is_refused_while_the_process_is_attached(ray_cluster: RayCluster) -> None:
    assert ray_cluster.local is not None
    ro.init(address=ray_cluster.local.address)
    ro.init(address="auto")
    for other in ("127.0.0.1:1", "http://127.0.0.1:1"):
        with pytest.raises(ro.InvalidCall, match=r"ray.shutdown\(\) first"):
            ro.init(address=other)


def test_what_the_raylet_says_is_not_on_a_programs_output(ray_cluster: RayCluster) -> None:
    """It is in the log, for whoever wants to read it."""
    script = """
import logging, queue
from logging.handlers import QueueHandler
import rayobjects as ro
ro.init()
said = queue.Queue()
log = logging.getLogger("rayobjects")
log.addHandler(QueueHandler(said))
log.setLevel(logging.INFO)
from ray._private import utils, worker
utils.push_error_to_driver(worker.global_worker, "worker_pool_large", "many workers")
print(said.get(timeout=30).getMessage())
"""
    assert ray_cluster.run_elsewhere(script) == "Ray: many workers\n"


def test_a_stub_in_a_ray_task_and_in_an_actor() -> None:
    home = counter("in tasks")
    assert pickle.loads(pickle.dumps(home)) == home

    @ray.remote(num_cpus=0)
    def task(stub: ro.Stub) -> int:
        return stub.increment.remote().result(WITHIN_S)

    @ray.remote(num_cpus=0)
    class Actor:
        async def run(self, stub: ro.Stub) -> int:
            return await stub.increment.remote()

    assert ray.get(task.remote(home)) == 1
    actor = Actor.remote()
    assert sorted(ray.get([actor.run.remote(home) for _ in range(3)])) == [2, 3, 4]
    ray.kill(actor)
    assert home.get.remote().result(WITHIN_S) == 4


@pytest.mark.parametrize("shard", [0, 1])
def test_a_stub_in_another_object(shard: int) -> None:
    first, second = counter("outer", 0), counter("inner", shard)
    assert first.increment_other.remote(second, 3).result(WITHIN_S) == 3
    assert first.increment_other.remote(second, 4).result(WITHIN_S) == 7
    assert first.get.remote().result(WITHIN_S) == 7


# -- responses -------------------------------------------------------------------------------------


def test_guarantee_2_calls_of_one_caller_keep_their_order() -> None:
    log = ro.namespace("Log").get("order")
    responses = [log.append.remote(number) for number in range(500)]
    assert [response.result(WITHIN_S) for response in responses] == list(range(1, 501))
    assert log.all.remote().result(WITHIN_S) == list(range(500))


def test_a_deadline_leaves_the_call_under_way(tmp_path: Path) -> None:
    response = counter("slow").wait_for.remote(str(tmp_path / "now"))
    with pytest.raises(ro.DeadlineExceeded, match="ask this response again"):
        response.result(timeout_s=0.05)
    (tmp_path / "now").touch()
    assert response.result(WITHIN_S) == "it is there"


def test_a_response_is_awaited_on_several_loops(tmp_path: Path) -> None:
    response = counter("loops").wait_for.remote(str(tmp_path / "now"))
    begun = threading.Barrier(4)

    async def wait() -> str:
        waiting = asyncio.ensure_future(_await(response))
        await asyncio.to_thread(begun.wait, WITHIN_S)
        return await waiting

    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(asyncio.run, wait()) for _ in range(3)]
        begun.wait(WITHIN_S)
        (tmp_path / "now").touch()
        assert [answer.result(WITHIN_S) for answer in answers] == ["it is there"] * 3
    assert asyncio.run(_await(response)) == "it is there"


async def _await(response: Any) -> Any:
    return await response


@pytest.mark.parametrize("shard", [0, 1])
def test_a_slow_call_does_not_hold_back_others(shard: int, tmp_path: Path) -> None:
    slow, quick = counter("slow one", 0), counter("quick one", shard)
    begun = slow.wait_for.remote(str(tmp_path / "now"))
    for number in range(1, 21):
        assert quick.increment.remote().result(WITHIN_S) == number
    assert not begun.done()
    (tmp_path / "now").touch()
    assert begun.result(WITHIN_S) == "it is there"


def test_a_large_object_does_not_block_its_neighbour(tmp_path: Path) -> None:
    large = ro.namespace("Large").get("large")
    large.fill.remote(KEYS).result(WITHIN_S)
    shard = placement.shard_of(large.id, 2)
    reading = large.read_until.remote(str(tmp_path / "now"))
    neighbour = counter("neighbour", shard)
    for number in range(1, 21):
        assert neighbour.increment.remote().result(WITHIN_S) == number
    assert not reading.done()
    (tmp_path / "now").touch()
    assert reading.result(WITHIN_S) > 0


# -- errors ----------------------------------------------------------------------------------------


def test_guarantee_3_a_method_that_raises_leaves_nothing() -> None:
    home = counter("raises")
    with pytest.raises(ro.MethodError, match="fail raised ValueError: not today") as raised:
        home.fail.remote().result(WITHIN_S)
    assert isinstance(raised.value.cause, ValueError)
    assert raised.value.__cause__ is raised.value.cause
    assert 'raise ValueError("not today")' in raised.value.traceback
    assert home.get.remote().result(WITHIN_S) == 0


def test_calls_that_cannot_be() -> None:
    home = counter("invalid")
    with pytest.raises(ro.InvalidCall, match="lock"):
        home.increment.remote(threading.Lock())
    with pytest.raises(ro.InvalidCall, match="nothing") as unknown_method:
        home.nothing.remote().result(WITHIN_S)
    assert unknown_method.value.status == 404
    with pytest.raises(ro.InvalidCall, match="increment") as arguments:
        home.increment.remote(1, 2, 3).result(WITHIN_S)
    assert arguments.value.status == 422
    with pytest.raises(ro.InvalidCall, match="'Nobody'") as unknown_class:
        ro.namespace("Nobody").get("home").get.remote().result(WITHIN_S)
    assert unknown_class.value.status == 404
    with pytest.raises(ro.InvalidCall, match="name"):
        ro.namespace("Counter").get("")
    with pytest.raises(ro.InvalidCall, match="remote"):
        home.increment()
    assert home.get.remote().result(WITHIN_S) == 0


def test_a_class_that_its_host_cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "only_here", ModuleType("only_here"))
    import only_here

    class Lost(ro.DurableObject):
        def get(self) -> Any:
            return only_here

    with pytest.raises(ro.InvalidCall, match="'only_here' is missing"):
        ro.deploy(Lost)
    with pytest.raises(ro.InvalidCall, match="no class 'Lost' is deployed"):
        ro.namespace("Lost").get("home").get.remote().result(WITHIN_S)
    assert counter("unhurt").increment.remote().result(WITHIN_S) == 1


@pytest.mark.parametrize("shard", [0, 1])
def test_objects_that_call_each_other_in_a_circle(shard: int) -> None:
    first, second = counter("circle", 0), counter("circle's other", shard)
    begun = time.monotonic()
    with pytest.raises(ro.Deadlock, match="in a circle"):
        first.call_back.remote(second, first).result(WITHIN_S)
    assert time.monotonic() - begun < WITHIN_S / 2
    assert first.get.remote().result(WITHIN_S) == 0
    assert second.get.remote().result(WITHIN_S) == 0


# -- the life of objects and classes ---------------------------------------------------------------


def greeter(word: str) -> type[ro.DurableObject]:
    class Greeter(ro.DurableObject):
        greeted: int = ro.durable(0)

        def greet(self) -> str:
            self.greeted += 1
            return f"{word} {self.greeted}"

    return Greeter


def test_a_new_version_takes_over_live_objects() -> None:
    home = ro.deploy(greeter("hello")).get("home")
    assert home.greet.remote().result(WITHIN_S) == "hello 1"
    ro.deploy(greeter("good day"))
    assert home.greet.remote().result(WITHIN_S) == "good day 2"
    ro.deploy(greeter("hello"))
    assert home.greet.remote().result(WITHIN_S) == "hello 3"


def test_a_deleted_object_is_listed_no_more() -> None:
    counters = ro.namespace("Counter")
    for name in ("list/a", "list/b", "list/c"):
        counters.get(name).increment.remote().result(WITHIN_S)
    counters.get("list/never written").get.remote().result(WITHIN_S)
    assert counters.list(prefix="list/") == ["list/a", "list/b", "list/c"]
    assert counters.list(prefix="list/", after="list/a", limit=1) == ["list/b"]
    assert counters.get("list/b").delete().result(WITHIN_S)
    assert not counters.get("list/b").delete().result(WITHIN_S)
    assert counters.list(prefix="list/") == ["list/a", "list/c"]
    assert counters.get("list/b").get.remote().result(WITHIN_S) == 0


def test_a_listing_waits_for_hosts_that_come_back() -> None:
    counters = ro.namespace("Counter")
    for name in ("killed/a", "killed/b", "killed/c"):
        counters.get(name).increment.remote().result(WITHIN_S)
    for host in admin.status().hosts:
        if placement.shard_of_host(host.name) is not None:
            os.kill(host.figures["pid"], signal.SIGKILL)
    assert counters.list(prefix="killed/") == ["killed/a", "killed/b", "killed/c"]
