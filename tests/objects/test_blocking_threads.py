"""Threads for blocking methods: few, and yet nobody waits for one for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import Cancelled, DeadlineExceeded, MethodError, Overloaded
from rayobjects.limits import LOAD_WHOLE_KEYS_MAX
from rayobjects.objects import threads
from rayobjects.testing import LocalHost

FEW = 2
RAN: list[str] = []
GATES: dict[str, threading.Event] = {}
"""Empty while a class is being pickled, together with what it uses."""
GATE: dict[str, asyncio.Event] = {}
AT_ONCE: list[int] = [0, 0]


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "BLOCKING_THREADS_MAX", FEW)
    RAN.clear()
    GATES.clear()
    GATE.clear()
    AT_ONCE[:] = [0, 0]
    yield
    leave().set()


def leave() -> threading.Event:
    """What those who hold their threads wait for."""
    return GATES.setdefault("leave", threading.Event())


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (what happens on threads)
        await asyncio.sleep(0.001)


def result_of(response: Any) -> Any:
    """What `.result()` is on Ray: waits on this thread, and the caller is known to wait."""

    async def answer() -> Any:
        return await response

    return asyncio.run(answer())


def poll(response: Any) -> Any:
    """Waits in a way that nobody can see."""
    while not response.done():
        if leave().wait(0.001):
            raise TimeoutError
    return response.result()


class Thing(ro.DurableObject):
    count: int = ro.durable(0)

    @ro.blocking
    def add(self, name: str = "") -> int:
        RAN.append(name)
        self.count += 1
        return self.count

    @ro.blocking
    def ask(self, other: str, how: str = "result") -> int:
        self.count += 1
        response = ro.namespace("Thing").get(other).add.remote()
        return int(poll(response) if how == "poll" else result_of(response))

    @ro.blocking
    def descend(self, name: str, depth: int) -> int:
        if not depth:
            return 0
        below = ro.namespace("Thing").get(f"{name}.")
        return 1 + int(poll(below.descend.remote(f"{name}.", depth - 1)))

    @ro.blocking
    def hold(self, name: str = "") -> int:
        """Computes, until it is told to leave."""
        self.count += 1
        RAN.append(name)
        assert leave().wait(20)
        return self.count

    @ro.blocking
    def compute(self) -> None:
        AT_ONCE[0] += 1
        AT_ONCE[1] = max(AT_ONCE)
        time.sleep(0.01)
        AT_ONCE[0] -= 1

    @ro.blocking
    def ask_read(self, other: str) -> int:
        RAN.append(f"ask {other}")
        return int(result_of(ro.namespace("Thing").get(other).read.remote()))

    @ro.concurrent
    async def ask_beside(self, other: str) -> int:
        return int(await ro.namespace("Thing").get(other).ask.remote(f"{other}.", "poll"))

    async def hold_the_turn(self) -> None:
        await GATE["gate"].wait()

    def read(self) -> int:
        return self.count

    @ro.blocking
    def stop(self) -> None:
        next(iter([]))

    @ro.blocking
    def items(self, count: int) -> Iterator[int]:
        RAN.append("begun")
        try:
            for item in range(count):
                yield item
                self.count += 1
        finally:
            RAN.append("closed")

    @ro.blocking
    def sum_of(self, other: str, count: int) -> int:
        response = ro.namespace("Thing").get(other).items.remote(count)

        async def read() -> int:
            return sum([item async for item in response])

        return asyncio.run(read())

    def fill(self, count: int) -> None:
        for number in range(count):
            self.storage[f"{number:06}"] = number

    @ro.blocking
    def look_up(self, key: str) -> Any:
        RAN.append(key)
        return self.storage[key]


@asynccontextmanager
async def full(host: LocalHost, count: int = FEW) -> AsyncIterator[None]:
    """All threads compute."""
    held = [host.get(Thing, f"holder-{number}").hold.remote("holder") for number in range(count)]
    tasks = [asyncio.ensure_future(wait(each)) for each in held]
    await until(lambda: RAN.count("holder") == count)
    yield
    leave().set()
    await asyncio.gather(*tasks)


async def wait(response: Any) -> Any:
    return await response


async def drain(items: AsyncIterator[int]) -> None:
    async for _ in items:
        pass


async def pass_on(call: ro.MethodCall, proceed: Any) -> Any:
    return await proceed()


WAYS = ["plain", "lane", "filter", "filter on the lane"]


@asynccontextmanager
async def opened(how: str) -> AsyncIterator[LocalHost]:
    """A host whose methods run in one of the ways that there are. The lane is where those of
    dedicated objects run."""
    filters = [pass_on] if "filter" in how else []
    async with LocalHost([Thing], filters=filters) as host:
        assert host.core is not None
        host.core.on_lane = "lane" in how
        yield host


@pytest.mark.parametrize("way", ["result", "poll"])
@pytest.mark.parametrize("how", WAYS)
def test_methods_that_wait_for_blocking_methods_are_answered(how: str, way: str) -> None:
    async def main() -> None:
        async with opened(how) as host:
            calls = [
                host.get(Thing, f"o{number}").ask.remote(f"i{number}", way)
                for number in range(10 * FEW)
            ]
            assert [await each for each in calls] == [1] * len(calls)

    run(main)


def test_a_chain_is_answered_however_long_it_is() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            calls = [host.get(Thing, f"{n}").descend.remote(f"{n}", 20) for n in range(3 * FEW)]
            assert [await each for each in calls] == [20] * len(calls)

    run(main)


def test_what_a_concurrent_method_calls_is_answered() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "a")
            calls = [thing.ask_beside.remote(f"b{number}") for number in range(4 * FEW)]
            assert [await each for each in calls] == [1] * len(calls)

    run(main)


def test_the_call_that_has_the_turn_gets_a_thread_from_those_who_wait_for_the_turn() -> None:
    """It is as deep as they are, so depth alone would not help."""

    async def main() -> None:
        async with LocalHost([Thing]) as host:
            wanted, asking = await crowd(host, 2 * FEW)
            assert await wanted == 1
            assert await asyncio.gather(*asking) == [1] * len(asking)

    run(main)


async def crowd(
    host: LocalHost, count: int
) -> tuple[asyncio.Future[int], list[asyncio.Future[int]]]:
    """An object whose turn comes to a call that needs a thread when methods which wait behind it
    for the turn have all threads. Returns that call, and those that wait."""
    hub = host.get(Thing, "hub")
    gate = GATE["gate"] = asyncio.Event()
    before = asyncio.ensure_future(wait(hub.hold_the_turn.remote()))
    wanted = asyncio.ensure_future(wait(hub.add.remote("hub")))
    await asyncio.sleep(0.01)
    asking = [
        asyncio.ensure_future(wait(host.get(Thing, f"a{n}").ask_read.remote("hub")))
        for n in range(count)
    ]
    await until(lambda: RAN.count("ask hub") >= FEW)
    await asyncio.sleep(0.2)  # more have begun by then, where more may
    gate.set()
    await before
    return wanted, asking


def test_threads_that_wait_are_not_counted() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            hub = host.get(Thing, "hub")
            held = asyncio.ensure_future(wait(hub.hold.remote("hub")))
            await until(lambda: "hub" in RAN)
            asking = [
                asyncio.ensure_future(wait(host.get(Thing, f"a{n}").ask_read.remote("hub")))
                for n in range(3 * FEW)
            ]
            await until(lambda: RAN.count("ask hub") == len(asking))
            assert await host.get(Thing, "free").add.remote() == 1
            leave().set()
            assert await held == 1
            assert await asyncio.gather(*asking) == [1] * len(asking)

    run(main)


def test_no_more_compute_at_once_than_there_are_threads() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            calls = [host.get(Thing, f"{number}").compute.remote() for number in range(20)]
            for each in calls:
                await each
            assert AT_ONCE == [0, FEW]

    run(main)


@pytest.mark.parametrize("how", WAYS)
def test_a_deadline_that_passes_before_there_is_a_thread(how: str) -> None:
    async def main() -> None:
        async with opened(how) as host:
            thing = host.get(Thing, "late")
            async with full(host):
                with pytest.raises(DeadlineExceeded, match="rolled back"):
                    await thing.options(timeout_s=0.05).add.remote("late")
                assert await thing.read.remote() == 0, "the object is free"
            assert await thing.add.remote("again") == 1
            assert "late" not in RAN

    run(main)


@pytest.mark.parametrize("how", WAYS)
def test_a_call_that_is_cancelled_before_there_is_a_thread(how: str) -> None:
    async def main() -> None:
        async with opened(how) as host:
            thing = host.get(Thing, "late")
            async with full(host):
                call = thing.add.remote("late")
                await asyncio.sleep(0.02)
                call.cancel()
                with pytest.raises(Cancelled):
                    await call
                assert await thing.read.remote() == 0
            assert await thing.add.remote("again") == 1
            assert "late" not in RAN

    run(main)


def test_a_call_that_is_cancelled_on_its_thread_ends_with_its_method() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "a")
            call = thing.hold.remote("on its thread")
            await until(lambda: RAN)
            call.cancel()
            later = asyncio.ensure_future(wait(thing.read.remote()))
            await asyncio.sleep(0.02)
            assert not call.done()
            assert not later.done()
            leave().set()
            with pytest.raises(Cancelled):
                await call
            assert await later == 0

    run(main)


def test_a_large_object_waits_for_a_thread_like_others() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            large = host.get(Thing, "large")
            await large.fill.remote(LOAD_WHOLE_KEYS_MAX + 1)
            await host.evict(large)
            assert await large.look_up.remote("000007") == 7
            async with full(host):
                with pytest.raises(DeadlineExceeded):
                    await large.options(timeout_s=0.05).look_up.remote("000008")
                assert await large.read.remote() == 0
            assert await large.look_up.remote("000009") == 9
            assert "000008" not in RAN

    run(main)


@pytest.mark.parametrize("how", WAYS)
def test_a_generator_that_is_closed_waits_for_no_thread(how: str) -> None:
    async def main() -> None:
        async with opened(how) as host:
            thing = host.get(Thing, "stream")
            items = aiter(thing.options(timeout_s=0.5).items.remote(1_000))
            assert await anext(items) == 0
            await asyncio.sleep(0.05)  # it has run ahead, and waits for its reader
            async with full(host):
                with pytest.raises(DeadlineExceeded):
                    await drain(items)
                assert "closed" in RAN
                assert await thing.read.remote() == 0

    run(main)


def test_a_generator_that_has_not_begun_does_not_begin() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "stream")
            async with full(host):
                with pytest.raises(DeadlineExceeded):
                    async for _ in thing.options(timeout_s=0.05).items.remote(3):
                        pass
                assert await thing.read.remote() == 0
            assert [item async for item in thing.items.remote(3)] == [0, 1, 2]
            assert RAN.count("begun") == 1

    run(main)


def test_methods_that_read_the_items_of_generators_on_threads() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            calls = [
                host.get(Thing, f"o{number}").sum_of.remote(f"i{number}", 10)
                for number in range(4 * FEW)
            ]
            assert [await each for each in calls] == [45] * len(calls)

    run(main)


def test_where_all_threads_are_held_for_long_a_call_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "BLOCKING_THREADS_HELD_MAX", FEW + 1)
    monkeypatch.setattr(threads, "BLOCKING_THREAD_WAIT_S", 0.3)

    async def main() -> None:
        async with LocalHost([Thing]) as host:
            wanted, asking = await crowd(host, FEW + 1)
            with pytest.raises(Overloaded, match="blocking methods of this host"):
                await wanted
            assert await asyncio.gather(*asking) == [0] * len(asking), "they go on"
            assert await host.get(Thing, "hub").add.remote() == 1
            assert "hub" not in RAN

    run(main)


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            assert await host.get(Thing, "a").ask.remote("b", "poll") == 1  # the pool has started
            hub = host.get(Thing, "hub")
            held = asyncio.ensure_future(wait(hub.hold.remote("hub")))
            await until(lambda: "hub" in RAN)
            asking = asyncio.ensure_future(wait(host.get(Thing, "c").ask_read.remote("hub")))
            await until(lambda: "ask hub" in RAN)
            with monkeypatch.context() as patch:

                def refuse(thread: threading.Thread) -> None:
                    raise RuntimeError("can't start new thread")

                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(Overloaded, match="cannot start a thread"):
                    await host.get(Thing, "d").add.remote()
            leave().set()
            assert [await held, await asking] == [1, 1]
            assert await host.get(Thing, "d").add.remote() == 1

    run(main)


def test_what_a_method_raises_is_what_its_caller_gets() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "a")
            with pytest.raises(MethodError, match="StopIteration"):
                await thing.stop.remote()
            with pytest.raises(ro.InvalidCall, match="positional argument"):
                await thing.add.remote(1, 2, 3)
            assert await thing.add.remote() == 1

    run(main)


def test_a_host_that_is_released_starts_nothing_that_waits() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            async with full(host):
                waiting = asyncio.ensure_future(wait(host.get(Thing, "late").add.remote("late")))
                await asyncio.sleep(0.02)
                assert host.core is not None
                host.core.threads.close()
                with pytest.raises(MethodError, match="Cancelled"):
                    await waiting
            assert "late" not in RAN

    run(main)


class Asker(ro.DurableObject):
    @ro.blocking
    def ask(self, other: ro.Stub) -> str:
        answer: str = other.answer.remote().result(30)
        return f"asked: {answer}"

    @ro.blocking
    def answer(self) -> str:
        return "yes"

    def ask_at_once(self, other: ro.Stub) -> str:
        answer: str = other.answer.remote().result(30)
        return answer


def test_a_stub_of_a_test_can_be_waited_for_on_a_thread() -> None:
    async def main() -> None:
        async with LocalHost([Asker]) as host:
            one, other = host.get(Asker, "one"), host.get(Asker, "other")
            assert await one.ask.remote(other) == "asked: yes"
            with pytest.raises(ro.MethodError, match="would wait for ever here"):
                await one.ask_at_once.remote(other)

    asyncio.run(asyncio.wait_for(main(), 30))
