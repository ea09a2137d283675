"""Calls to objects of the same host by tasks and threads that belong to no running call, while the
host's storage fails: each is answered, and applied once."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.errors import StorageFailed, Unavailable
from rayobjects.messages import PICKLE, Call, Reply
from rayobjects.runtime.router import Router
from rayobjects.runtime.stubs import Stub
from rayobjects.storage import values

NO_ARGUMENTS = values.dump(((), {}))
TASKS: dict[str, asyncio.Task[Any]] = {}
GO: list[asyncio.Event] = []
RUNS: list[str] = []


class Account(ro.DurableObject):
    total: int = ro.durable(0)

    def add(self) -> int:
        self.total += 1
        return self.total

    async def slow(self) -> int:
        RUNS.append(self.id.name)
        self.total += 1
        await GO[0].wait()
        return self.total

    async def items(self) -> AsyncIterator[int]:
        yield 1
        await GO[0].wait()
        yield 2


class Starter(ro.DurableObject):
    async def begin(self, others: list[str]) -> None:
        async def call(name: str) -> int:
            return int(await ro.namespace("Account").get(name).slow.remote())

        async def read(name: str) -> list[int]:
            return [item async for item in ro.namespace("Account").get(name).items.remote()]

        for name in others:
            TASKS[name] = asyncio.create_task(call(name))
        TASKS["stream"] = asyncio.create_task(read("read"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """What these classes name is looked at when they are deployed."""
    yield
    for each in (TASKS, GO, RUNS):
        each.clear()


async def begin(cluster: LocalCluster) -> list[str]:
    """Two calls and a stream of nobody run."""
    GO.append(asyncio.Event())
    names = ["one", "two"]
    await cluster.get(Starter).begin.remote(names)
    await until(lambda: len(RUNS) == 2)
    await until(lambda: "stream" in TASKS)
    await asyncio.sleep(0.05)
    return names


async def break_storage(cluster: LocalCluster) -> None:
    cluster.host.files.fail("sync", errno.EIO)
    with pytest.raises(StorageFailed):
        await asyncio.wait_for(Stub("Account", "other").add.remote(), 10)


def test_guarantee_5_the_next_core_of_the_process_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with LocalCluster(monkeypatch, [Account, Starter], shards=1) as cluster:
            router = cluster.host.router
            names = await begin(cluster)
            with monkeypatch.context() as patch:  # the process lives on
                patch.setattr(cluster, "new_router", lambda: router)
                patch.setattr(cluster, "end", lambda router: None)
                await break_storage(cluster)
                assert await asyncio.wait_for(Stub("Account", "other").add.remote(), 10) == 1
                await until(lambda: len(RUNS) == 4)
                assert RUNS[2:] == RUNS[:2]  # in their order
            GO[0].set()
            for name in names:
                assert await asyncio.wait_for(asyncio.shield(TASKS[name]), 10) == 1
                assert await Stub("Account", name).add.remote() == 2
            with pytest.raises(Unavailable, match="cut off"):
                await asyncio.wait_for(asyncio.shield(TASKS["stream"]), 10)
            assert not router._local.under_way

    asyncio.run(run())


def test_guarantee_5_what_was_committed_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with LocalCluster(monkeypatch, [Account], shards=1) as cluster:
            router: Router = cluster.host.router
            outcomes: list[Any] = []
            await router.refresh()
            for _ in range(2):  # the second one as if the reply of the first had been lost
                call = Call(0, "Account", "one", "add", PICKLE, NO_ARGUMENTS, id="nobody:1")
                router.submit(call, outcomes.append, None)
                core = cluster.host.core
                assert core is not None
                router.serve_locally(cluster.host.name, core)
                await until(lambda: outcomes and not router._local.under_way)
            assert len(outcomes) == 2
            assert all(isinstance(each, Reply) and each.status == 0 for each in outcomes)
            assert await Stub("Account", "one").add.remote() == 2

    asyncio.run(run())


@pytest.mark.parametrize("how", ["it does not open", "the process ends"])
def test_where_no_core_follows(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async def run() -> None:
        async with LocalCluster(monkeypatch, [Account, Starter], shards=1) as cluster:
            router: Router = cluster.host.router
            names = await begin(cluster)
            core = cluster.host.core
            assert core is not None
            if how == "the process ends":
                await cluster.host.kill()
            else:
                await break_storage(cluster)
                router.fail_locally(StorageFailed("the disk is full"))
            error = Unavailable if how == "the process ends" else StorageFailed
            for each in (*names, "stream"):
                with pytest.raises((error, Unavailable)):
                    await asyncio.wait_for(asyncio.shield(TASKS[each]), 10)
            late: list[Any] = []
            call = Call(0, "Account", "one", "add", PICKLE, NO_ARGUMENTS)
            if how == "it does not open":
                router.submit(call, late.append, None)
                assert isinstance(late[0], StorageFailed)
                assert not router._local.under_way

    asyncio.run(run())


def test_where_the_host_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with LocalCluster(monkeypatch, [Account, Starter], shards=1) as cluster:
            names = await begin(cluster)
            await cluster.host.router.close()
            for each in (*names, "stream"):
                with pytest.raises(Unavailable):
                    await asyncio.wait_for(asyncio.shield(TASKS[each]), 10)

    asyncio.run(run())
