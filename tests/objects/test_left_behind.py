"""What outlives a call, or its object's time in memory: tasks, threads, deliveries, arguments."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
import tracemalloc
from typing import Any

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.ids import ObjectId
from rayobjects.runtime import placement
from rayobjects.runtime.stubs import Stub
from rayobjects.storage.records import TELL
from rayobjects.testing import LocalHost

SAID: list[Any] = []


class Here:
    """What tests and methods share."""

    tasks: list[asyncio.Task[None]]
    held_up: threading.Event
    go_on: threading.Event

    def __reduce__(self) -> str:
        return "HERE"  # classes that use it are pickled when they are deployed


HERE = Here()


class Friend(ro.DurableObject):
    heard: list[int] = ro.durable(factory=list)

    async def call_back(self, name: str) -> int:
        count: int = await ro.namespace("Parent").get(name).add.remote()
        return count

    def take(self, data: bytes) -> int:
        return len(data)

    def keep(self, number: int) -> None:
        self.heard.append(number)

    def kept(self) -> list[int]:
        return self.heard


class Parent(ro.DurableObject):
    count: int = ro.durable(0)

    async def on_start(self) -> None:
        if self.id.name.isdigit():
            HERE.tasks.append(asyncio.ensure_future(self.later(self.id.name)))

    async def later(self, name: str) -> None:
        await asyncio.sleep(0.02)
        SAID.append(await ro.namespace("Parent").get(name).add.remote())
        SAID.append(await ro.namespace("Friend").get("f").call_back.remote(name))

    def add(self) -> int:
        self.count += 1
        return self.count

    def begin(self, gate: str) -> None:
        async def late() -> None:
            while gate not in SAID:  # noqa: ASYNC110  the test says so
                await asyncio.sleep(0.001)
            SAID.append(await ro.namespace("Friend").get("f").take.remote(b"late"))

        HERE.tasks.append(asyncio.ensure_future(late()))

    @ro.blocking
    def hold_up(self, friend: str) -> None:
        self.count += 1
        if HERE.held_up.is_set():
            return  # it has been begun again
        HERE.held_up.set()
        HERE.go_on.wait(20)
        try:
            ro.namespace("Friend").get(friend).take.remote(b"x").result()
        except ro.Unavailable as error:
            SAID.append(error.message)
            raise

    async def carry(self, friend: str, calls: int, size: int) -> int:
        for _ in range(calls):
            await ro.namespace("Friend").get(friend).take.remote(b"x" * size)
        gc.collect()
        self.count += 1
        return tracemalloc.get_traced_memory()[0]

    def say(self, numbers: int) -> None:
        for number in range(numbers):
            ro.namespace("Friend").get("f").keep.tell(number)


@pytest.fixture(autouse=True)
def fresh() -> None:
    SAID.clear()
    HERE.tasks, HERE.held_up, HERE.go_on = [], threading.Event(), threading.Event()


def test_a_task_begun_in_on_start_is_in_no_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Parent, Friend]) as cluster:
            assert await cluster.get(Parent).add.remote() == 1
            await asyncio.wait_for(asyncio.gather(*HERE.tasks), 20)
            assert SAID == [2, 3]

    asyncio.run(main())


def test_a_task_of_an_object_that_has_left_is_answered() -> None:
    async def main() -> None:
        async with LocalHost([Parent, Friend]) as host:
            await host.get(Parent, "p").begin.remote("now")
            await host.evict(host.get(Parent, "p"))
            SAID.append("now")
            await asyncio.wait_for(asyncio.gather(*HERE.tasks), 20)
            assert SAID == ["now", 4]

    asyncio.run(main())


def test_a_thread_whose_storage_has_failed_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call cannot leave any more. It must not keep the thread for ever."""

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Parent, Friend]) as cluster:
            host = cluster.host
            names = [name for name in map(str, range(100)) if not _shard("Parent", name)]
            parent, neighbour = (Stub("Parent", f"{name}") for name in names[:2])
            (friend, *_) = [name for name in map(str, range(100)) if _shard("Friend", name)]
            parent.hold_up.remote(friend)
            await asyncio.to_thread(HERE.held_up.wait, 20)
            host.files.fail("sync", errno.EIO, name="journal")
            with pytest.raises(ro.StorageFailed):
                await neighbour.add.remote()
            HERE.go_on.set()
            await until(lambda: SAID)
            assert "lost its storage before its call could be sent" in SAID[0]

    asyncio.run(main())


def _shard(class_name: str, name: str) -> int:
    return placement.shard_of(ObjectId(class_name, name), 2)


@pytest.mark.parametrize("shard", [0, 1], ids=["same host", "another host"])
def test_arguments_of_awaited_calls_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Parent, Friend]) as cluster:
            parent, friend = Stub("Parent", "p"), cluster.get(Friend, shard)
            tracemalloc.start()
            try:
                assert await parent.carry.remote(friend.id.name, 40, 1_000_000) < 20_000_000
            finally:
                tracemalloc.stop()

    asyncio.run(main())


def test_what_was_handed_over_and_taken_up_again_is_delivered_once_each() -> None:
    """The first delivery of a message is still under way when it is delivered again."""

    async def main() -> None:
        async with LocalHost([Parent, Friend]) as host:
            core = host.core
            assert core is not None
            outgoing, sent = core.courier._outgoing, list[tuple[Any, ...]]()

            class Slow:
                key_of, refresh = outgoing.key_of, outgoing.refresh

                def submit(self, *call: Any) -> None:
                    sent.append(call)

            core.courier._outgoing = Slow()
            await host.get(Parent, "p").say.remote(3)
            core.others.hand_over(ObjectId("Parent", "p"))
            for id, promise in core.ledger.promises():
                core.promised(id, promise)
            assert len(sent) == 2
            core.courier._outgoing = outgoing
            for call in sent:
                outgoing.submit(*call)
            await until(
                lambda: not [each for _, each in host.shard.promises() if each.kind == TELL]
            )
            assert await host.get(Friend, "f").kept.remote() == [0, 1, 2]

    asyncio.run(main())
