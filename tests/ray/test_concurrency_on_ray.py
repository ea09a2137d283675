"""Concurrent and blocking methods, deadlines and circles, across processes and on both hostings."""

from __future__ import annotations

import asyncio
import time

import pytest

import rayobjects as ro

NAMES = ("a", "b", "c")


class Busy(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    async def hold(self, other: ro.Stub) -> int:
        """Holds the turn until the other object says so."""
        self.count += 1_000
        while await other.read.remote() == 0:  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.01)
        return self.count

    @ro.concurrent
    async def read(self) -> int:
        return self.count

    @ro.concurrent
    async def add_slowly(self, blocks: int) -> list[int]:
        seen = []
        for _ in range(blocks):
            await asyncio.sleep(0)
            async with self.turn():
                self.count += 1
                seen.append(self.count)
        return seen

    @ro.blocking
    def add_there(self, other: ro.Stub) -> int:
        self.count += 1
        result: int = other.add.remote().result(60)
        return result

    async def never(self) -> None:
        self.count += 1
        await asyncio.Event().wait()

    async def ask_never(self, other: ro.Stub) -> None:
        self.count += 1
        await other.never.remote()

    async def meet(self, gate: ro.Stub, other: ro.Stub) -> int:
        """Calls the other object when all who meet have their turns."""
        await gate.add.remote()
        while await gate.read.remote() < len(NAMES):  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.01)
        result: int = await other.add.remote()
        return result


def test_concurrent_methods(hosting: str) -> None:
    busy = ro.deploy(Busy)

    async def main() -> None:
        one, gate = busy.get("one"), busy.get("gate")
        await one.add.remote(7)
        held = one.hold.remote(gate)
        assert await one.read.remote() == 7
        slowly = one.add_slowly.remote(3)
        assert await one.read.remote() == 7, "it waits for the turn"
        await gate.add.remote()
        assert await held == 1_007
        assert await slowly == [1_008, 1_009, 1_010]
        calls = [one.add_slowly.remote(5) for _ in range(4)]
        calls += [one.add.remote() for _ in range(10)]
        await asyncio.gather(*calls)
        assert await one.read.remote() == 1_040

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_blocking_method_waits_for_another_object(hosting: str) -> None:
    busy = ro.deploy(Busy)
    assert busy.get("blocking").add_there.remote(busy.get("other")).result(60) == 1


def test_deadlines(hosting: str) -> None:
    busy = ro.deploy(Busy)
    one, other = busy.get("late"), busy.get("later")
    one.add.remote().result(60)
    other.add.remote().result(60)
    with pytest.raises(ro.DeadlineExceeded, match="rolled back"):
        one.options(timeout_s=0.3).ask_never.remote(other).result(60)
    assert one.read.remote().result(60) == 1
    assert other.add.remote().result(60) == 2, "what the call had asked of it has ended too"


def test_a_call_is_taken_back(hosting: str) -> None:
    busy = ro.deploy(Busy)
    one = busy.get("taken")
    one.add.remote().result(60)
    never, waiting = one.never.remote(), one.add.remote(10)
    assert one.read.remote().result(60) == 1
    waiting.cancel()
    with pytest.raises(ro.Cancelled):
        waiting.result(60)
    never.cancel()
    with pytest.raises(ro.Cancelled, match="rolled back"):
        never.result(60)
    assert one.add.remote().result(60) == 2


def test_a_circle_over_several_hosts(hosting: str) -> None:
    busy = ro.deploy(Busy)
    gate = busy.get("meeting")
    stubs = [busy.get(name) for name in NAMES]

    async def main() -> list[object]:
        for stub in (*stubs, gate):
            await stub.read.remote()
        meetings = [
            stub.meet.remote(gate, stubs[(number + 1) % len(stubs)])
            for number, stub in enumerate(stubs)
        ]
        began = time.monotonic()
        results = await asyncio.gather(*meetings, return_exceptions=True)
        print(f"the circle was broken after {time.monotonic() - began:.2f} s")
        return list(results)

    results = asyncio.run(asyncio.wait_for(main(), 60))
    assert sum(isinstance(each, ro.Deadlock) for each in results) == 1, results
    assert sum(isinstance(each, int) for each in results) == len(NAMES) - 1, results
