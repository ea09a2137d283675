"""A call that is taken back before it has left is not sent, wherever it waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.runtime import router as router_module
from rayobjects.testing import LocalHost

RAN: list[str] = []


class Worker(ro.DurableObject):
    done: int = ro.durable(0)

    def work(self, what: str) -> str:
        RAN.append(what)
        self.done += 1
        return what

    async def hand_over(self, to: str) -> str:
        """Asks another, and takes that back before it can have left."""
        self.done += 1
        response = ro.namespace("Worker").get(to).work.remote("handed over")
        await asyncio.sleep(0)  # the router has it by now
        response.cancel()
        try:
            return await response
        except ro.Cancelled:
            return "cancelled"


@pytest.fixture(autouse=True)
def fresh() -> None:
    RAN.clear()


async def cancelled(response: Any) -> None:
    with pytest.raises(ro.Cancelled, match="never sent"):
        await asyncio.wait_for(_result(response), 10)


async def _result(response: Any) -> Any:
    return await response


def test_while_its_class_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker = cluster.get(Worker)
            first, second = worker.work.remote("1"), worker.work.remote("2")
            await asyncio.sleep(0)
            assert cluster.router._unresolved
            first.cancel()
            await cancelled(first)
            assert await second == "2"
            assert RAN == ["2"]

    asyncio.run(main())


def test_while_its_caller_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker, other = cluster.get(Worker), cluster.get(Worker, 1)
            await other.work.remote("warm")
            with cluster.host.syncs_held():
                response = worker.hand_over.remote(other.id.name)
                await asyncio.sleep(0.05)
                assert not response.done()
            assert await response == "cancelled"
            assert await other.work.remote("last") == "last"
            assert RAN == ["warm", "last"]

    asyncio.run(main())


def test_while_its_caller_waits_for_the_disk_of_a_local_host() -> None:
    async def main() -> None:
        async with LocalHost([Worker]) as host:
            with host.syncs_held():
                response = host.get(Worker, "a").hand_over.remote("b")
                await asyncio.sleep(0.05)
            assert await response == "cancelled"
            assert RAN == []

    asyncio.run(main())


def test_while_its_host_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker = cluster.get(Worker)
            assert await worker.work.remote("1") == "1"
            cluster.host.answering.clear()
            sent = worker.work.remote("2")
            await asyncio.sleep(0.01)
            again = cluster.router._channels[cluster.host.name]
            again._lost(again._session)  # and a new session does not come to be
            await asyncio.sleep(0.01)
            waits, last = worker.work.remote("3"), worker.work.remote("4")
            await asyncio.sleep(0.01)
            waits.cancel()
            await cancelled(waits)
            cluster.host.answering.set()
            assert await sent == "2"
            assert await last == "4"
            assert RAN == ["1", "2", "4"]

    asyncio.run(main())


def test_a_call_that_has_left_is_followed_by_its_cancel_into_the_next_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker = cluster.get(Worker)
            assert await worker.work.remote("1") == "1"
            cluster.host.answering.clear()
            sent = worker.work.remote("2")
            await asyncio.sleep(0.01)
            sent.cancel()
            channel = cluster.router._channels[cluster.host.name]
            channel._lost(channel._session)
            await asyncio.sleep(0.01)
            assert not sent.done()  # whether it has run is not known
            cluster.host.answering.set()
            await until(sent.done)

    asyncio.run(main())


@pytest.mark.parametrize("when", ["on its way", "between two hosts"])
def test_while_its_object_moves(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker = cluster.get(Worker)
            assert await worker.work.remote("1") == "1"
            assert cluster.host.core is not None
            await cluster.host.evict(worker.id)
            cluster.host.core._owns = lambda id, object_class: False
            monkeypatch.setattr(router_module, "REDIRECT_AGAIN_S", 0.05)
            channel = cluster.router._channels[cluster.host.name]
            if when == "on its way":
                cluster.host.returning.clear()
            moved = worker.work.remote("2")
            if when == "on its way":
                await until(lambda: channel._under_way)
                await asyncio.sleep(0.05)  # it is refused, which is on its way back
            else:
                await until(lambda: not channel._waiting)
            moved.cancel()
            await asyncio.sleep(0.01)
            cluster.host.returning.set()
            await cancelled(moved)
            assert RAN == ["1"]

    asyncio.run(main())
