"""Guarantee 5 on Ray: exactly once, whoever is killed and whichever way the calls come."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from ray_cluster import RayCluster

import rayobjects as ro
from rayobjects.runtime import admin, placement
from rayobjects.serve.run import start_gateway, stop_gateway

ROUNDS = int(os.environ.get("RAYOBJECTS_ROUNDS", "1"))
"""`make soak` kills all hosts more often."""

# Ray starts twice, and a busy machine takes its time.
pytestmark = pytest.mark.timeout(400 * ROUNDS)

TASKS = 50
CALLS_OF_A_TASK = 40 * ROUNDS
HTTP_TASKS = 10
CALLS_OF_A_HTTP_TASK = 30 * ROUNDS
WITHIN_S = 60.0


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def increment(self) -> int:
        self.count += 1
        return self.count

    def get(self) -> int:
        return self.count


class OwnCounter(Counter, hosting="dedicated"):
    """Each has an actor of its own, and commits through its shard's host."""


Name = tuple[str, str]
NAMES: list[Name] = [("Counter", f"number {number}") for number in range(17)]
NAMES += [("OwnCounter", f"own {number}") for number in range(3)]
SHARDS = {"default/0000", "default/0001"}
OWN = {f"OwnCounter/own {number}" for number in range(3)}


class Load:
    """Increments from many tasks; remembers every answer by counter."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[Name, list[int]] = {name: [] for name in NAMES}
        self.kills = 0

    @property
    def done(self) -> int:
        return sum(map(len, self.answers.values()))

    @property
    def wanted(self) -> int:
        return TASKS * CALLS_OF_A_TASK + HTTP_TASKS * CALLS_OF_A_HTTP_TASK

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self.address, timeout=WITHIN_S) as client:
            await asyncio.gather(
                *(self._through_stubs(task) for task in range(TASKS)),
                *(self._through_http(task, client) for task in range(HTTP_TASKS)),
                self._kill_hosts(),
            )

    async def _through_stubs(self, task: int) -> None:
        for call in range(CALLS_OF_A_TASK):
            class_name, name = NAMES[(task + call) % len(NAMES)]
            value = await ro.namespace(class_name).get(name).increment.remote()
            self.answers[class_name, name].append(value)

    async def _through_http(self, task: int, client: httpx.AsyncClient) -> None:
        for call in range(CALLS_OF_A_HTTP_TASK):
            class_name, name = NAMES[(task + call) % len(NAMES)]
            value = await self._post(client, f"/objects/{class_name}/{quote(name)}/increment")
            self.answers[class_name, name].append(value)

    async def _post(self, client: httpx.AsyncClient, path: str) -> int:
        """As a careful client does it: asks again under the same key."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                answer = await client.post(path, headers=headers)
            except httpx.TransportError:
                assert time.monotonic() < deadline
            else:
                if answer.status_code == 200:
                    return int(answer.json())
                assert answer.status_code == 503, answer.text
                assert time.monotonic() < deadline

    async def _kill_hosts(self) -> None:
        """The shards' hosts, the dedicated objects' actors, and both; each time in the middle."""
        victims_of = (SHARDS, OWN, SHARDS | OWN) * ROUNDS
        for kill, victims in enumerate(victims_of, start=1):
            share = kill / (len(victims_of) + 1)
            await until(lambda part=share: self.done >= self.wanted * part)
            await asyncio.to_thread(kill_hosts, victims)
            self.kills += 1


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def kill_hosts(victims: set[str]) -> None:
    """Kills processes of hosts that answer, all at once."""
    deadline = time.monotonic() + WITHIN_S
    pids: dict[str, int] = {}
    while pids.keys() != victims:
        assert time.monotonic() < deadline
        pids = {
            host.name: host.figures["pid"]
            for host in admin.status().hosts
            if host.name in victims and "pid" in host.figures
        }
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)


def test_guarantee_5_every_increment_is_applied_once(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    ro.init(storage=str(tmp_path), shards=2)
    ro.deploy(Counter, OwnCounter)
    port = free_port()
    start_gateway(port=port)
    load = Load(f"http://127.0.0.1:{port}")
    asyncio.run(load.run())

    assert load.done == load.wanted
    assert load.kills == 3 * ROUNDS
    for (class_name, name), answers in load.answers.items():
        # Each increment has been applied, and each value has been seen by one caller.
        assert sorted(answers) == list(range(1, len(answers) + 1))
        assert ro.namespace(class_name).get(name).get.remote().result() == len(answers)
    stop_gateway()
    admin.stop_hosts()
    assert placement.live_hosts() == []

    ray_cluster.stop()
    ray_cluster.start()
    ro.init(storage=str(tmp_path))  # from nothing but the storage
    try:
        for (class_name, name), answers in load.answers.items():
            assert ro.namespace(class_name).get(name).get.remote().result() == len(answers)
        assert ro.namespace("OwnCounter").list() == ["own 0", "own 1", "own 2"]
    finally:
        admin.stop_hosts()
        ro.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
