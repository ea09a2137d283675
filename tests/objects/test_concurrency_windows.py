"""Moments at which a call that is cancelled, aborted or outlived must not take anything along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.messages import JSON, Call
from rayobjects.objects.context import CallContext, current_call
from rayobjects.testing import LocalHost
from rayobjects.testing.stubs import send

Main = Callable[[], Coroutine[Any, Any, None]]
TASKS: list[asyncio.Task[Any]] = []
LEAKED: list[Any] = []


def run(main: Main) -> None:
    TASKS.clear()
    LEAKED.clear()

    async def timed() -> None:
        await asyncio.wait_for(main(), 60)

    asyncio.run(timed())


class Thing(ro.DurableObject):
    count: int = ro.durable(0)
    items: list[int] = ro.durable(factory=list)

    async def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def plain(self) -> int:
        return self.count

    async def never(self) -> None:
        await asyncio.Event().wait()

    @ro.concurrent
    async def beside(self) -> int:
        async with self.turn():
            self.count += 1
        return self.count

    @ro.concurrent
    async def gives_up(self) -> None:
        async with self.turn():
            self.count += 1
            self.abort("not like this")

    @ro.concurrent
    async def leaks(self) -> None:
        async with self.turn():
            LEAKED.append(self.storage)
            LEAKED.append(self.items)

    async def use_leaked(self) -> None:
        await asyncio.sleep(0.05)
        self.count += 10

    def leave_a_task(self, other: str) -> None:
        self.count += 1

        async def later() -> None:
            await asyncio.sleep(0.02)
            await ro.namespace("Thing").get(other).add.remote(5)

        TASKS.append(asyncio.ensure_future(later()))

    async def ask_beside(self, other: str) -> int:
        return int(await ro.namespace("Thing").get(other).back.remote(self.id.name))

    @ro.concurrent
    async def ask(self, other: str) -> int:
        return int(await ro.namespace("Thing").get(other).back.remote(self.id.name))

    async def back(self, name: str) -> int:
        return int(await ro.namespace("Thing").get(name).add.remote(1))

    def seen(self) -> list[int]:
        return self.items

    @ro.concurrent
    async def two_blocks(self) -> None:
        async with self.turn():
            self.count += 1
        async with self.turn():
            self.count += 1

    def tell(self, other: str) -> None:
        ro.namespace("Thing").get(other).two_blocks.tell()


@pytest.mark.parametrize("method", ["add", "never", "beside"])
def test_a_call_that_is_taken_back_in_the_same_moment(method: str) -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            await thing.plain.remote()
            for _ in range(3):
                response = getattr(thing, method).remote()
                response.cancel()
                with pytest.raises(ro.Cancelled):
                    await response
            assert await thing.add.remote() == 1, "the turn is free"
            assert host.core is not None
            assert not host.core.activations["Thing", "t"].occupied

    run(main)


def test_abort_in_a_block_ends_the_call_once() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            with pytest.raises(ro.MethodError, match="not like this"):
                await thing.gives_up.remote()
            assert await thing.add.remote() == 1

    run(main)


def test_what_a_block_has_handed_out_writes_nothing_afterwards() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            await thing.leaks.remote()
            storage, items = LEAKED
            running = thing.use_leaked.remote()
            await asyncio.sleep(0.01)
            items.append(1)
            with pytest.raises(RuntimeError, match="while one of its calls runs"):
                await in_the_leftover_of(host, lambda: storage.__setitem__("key", 1))
            await running
            assert await thing.seen.remote() == []
            state = await host.state(thing)
            assert state["storage"] == {}
            assert state["attributes"]["count"] == 10

    async def in_the_leftover_of(host: LocalHost, act: Callable[[], None]) -> None:
        """Does something in the name of another call of the object."""
        assert host.core is not None
        activation = host.core.activations["Thing", "t"]
        token = current_call.set(CallContext(Call(0, "Thing", "t", "x", 0, b""), activation))
        try:
            act()
        finally:
            current_call.reset(token)

    run(main)


def test_a_task_that_outlives_its_call_is_nobodys() -> None:
    """What it calls is called; but it makes no intent that would run the finished call again."""

    async def main() -> None:
        async with LocalHost([Thing]) as host:
            await host.get(Thing, "t").leave_a_task.remote("other")
            await TASKS[0]
            assert host.shard is not None
            assert not host.shard.promises()
            await host.crash()
            assert await host.get(Thing, "t").plain.remote() == 1
            assert await host.get(Thing, "other").plain.remote() == 5

    run(main)


def test_a_concurrent_method_may_be_called_back_into() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            assert await thing.ask.remote("other") == 1
            with pytest.raises(ro.Deadlock):
                await thing.ask_beside.remote("other")

    run(main)


def test_a_told_message_to_a_concurrent_method_is_one_commit() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            await host.get(Thing, "sender").tell.remote("t")
            while await host.get(Thing, "t").plain.remote() == 0:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert await host.get(Thing, "t").plain.remote() == 2
            assert host.core is not None
            await host.crash()
            assert await host.get(Thing, "t").plain.remote() == 2

    run(main)


def test_a_deadline_of_a_repetition_ends_only_the_repetition() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            first = send(thing, "never", JSON, b"{}", "key:k")
            await asyncio.sleep(0.01)
            with pytest.raises(ro.DeadlineExceeded):
                await send(thing.options(timeout_s=0.05), "never", JSON, b"{}", "key:k")
            await asyncio.sleep(0.05)
            assert not first.done()
            first.cancel()
            with pytest.raises(ro.Cancelled):
                await first

    run(main)
