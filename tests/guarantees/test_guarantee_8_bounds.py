"""Guarantee 8: everything is bounded, and meeting a bound gives a clear error. The bounds of
finished calls and of socket messages are proved with guarantees 5 and 6."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest
from guarantee_objects import GATES, Counter, run, ticks

import rayobjects as ro
from rayobjects.errors import InvalidCall, Overloaded
from rayobjects.limits import (
    CALL_BYTES_MAX,
    CHANGES_BYTES_MAX,
    CHANNEL_BATCHES_HELD_MAX,
    GROUP_BYTES_MAX,
    MIB,
    VALUE_BYTES_MAX,
    WAITING_CALLS_MAX,
)
from rayobjects.messages import PICKLE, Batch, Call
from rayobjects.objects import caller_channel
from rayobjects.storage import commits, values
from rayobjects.testing import LocalHost


class Large(ro.DurableObject):
    total: int = ro.durable(0)

    def put(self, count: int, size: int) -> int:
        self.total += count
        for number in range(count):
            self.storage[str(number)] = bytes(size)
        return self.total

    def give(self, size: int) -> bytes:
        self.total += 1
        return bytes(size)

    def read(self) -> int:
        return self.total


def test_guarantee_8_waiting_calls() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            slow = stub.wait.remote("gate")
            await GATES.until_reached("gate")
            waiting = [stub.increment.remote() for _ in range(WAITING_CALLS_MAX)]
            refused = [stub.increment.remote() for _ in range(3)]
            for response in refused:
                with pytest.raises(Overloaded, match="1,000 waiting calls"):
                    await response
            assert await host.get(Counter, "b").increment.remote() == 1, "neighbours are served"
            GATES["gate"].set()
            assert await slow == 1
            assert await asyncio.gather(*waiting) == list(range(2, WAITING_CALLS_MAX + 2))
            assert await stub.increment.remote() == WAITING_CALLS_MAX + 2

    run(main)


def test_guarantee_8_unanswered_calls_of_a_channel() -> None:
    async def main() -> None:
        with mock.patch.object(caller_channel, "CHANNEL_CALLS_MAX", 10):
            async with LocalHost([Counter]) as host:
                stub = host.get(Counter, "a")
                responses = [stub.increment.remote() for _ in range(12)]
                results = await asyncio.gather(*responses, return_exceptions=True)
                assert results[:10] == list(range(1, 11))
                assert all(isinstance(result, Overloaded) for result in results[10:])

    run(main)


def test_guarantee_8_batches_that_wait_for_an_earlier_one() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            core = host.core
            assert core is not None

            def batch(index: int) -> Batch:
                call = Call(index + 1, "Counter", "a", "increment", PICKLE, values.dump(((), {})))
                return Batch("other", 1, index, [call])

            await core.deliver(batch(0))
            early = [
                asyncio.ensure_future(core.deliver(batch(index)))
                for index in range(2, 2 + CHANNEL_BATCHES_HELD_MAX)
            ]
            await ticks()
            assert (await core.deliver(batch(2 + CHANNEL_BATCHES_HELD_MAX))).stale
            await core.deliver(batch(1))
            assert not any(answer.stale for answer in await asyncio.gather(*early))
            assert await host.get(Counter, "a").read.remote() == 2 + CHANNEL_BATCHES_HELD_MAX

    run(main)


def test_guarantee_8_a_new_session_ends_what_waits() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            core = host.core
            assert core is not None
            call = Call(1, "Counter", "a", "increment", PICKLE, values.dump(((), {})))
            await core.deliver(Batch("other", 1, 0, [call]))
            early = asyncio.ensure_future(core.deliver(Batch("other", 1, 2, [])))
            await ticks()
            assert not early.done()
            assert not (await core.deliver(Batch("other", 2, 0, []))).stale
            assert (await early).stale

    run(main)


def test_guarantee_8_bytes_that_wait_for_the_disk() -> None:
    async def main() -> None:
        with mock.patch.object(commits, "UNSYNCED_BYTES_MAX", 100_000):
            async with LocalHost([Large]) as host:
                stubs = [host.get(Large, str(number)) for number in range(10)]
                await asyncio.gather(*(stub.read.remote() for stub in stubs))
                with host.syncs_held():
                    responses = [stub.put.remote(1, 30_000) for stub in stubs]
                    await ticks(50)
                results = await asyncio.gather(*responses, return_exceptions=True)
                done = [result for result in results if result == 1]
                assert 3 <= len(done) < 10
                assert all(isinstance(r, Overloaded) for r in results if r != 1)
                totals = await asyncio.gather(*(stub.read.remote() for stub in stubs))
                assert totals == [1 if result == 1 else 0 for result in results]

    run(main)


def test_guarantee_8_what_one_call_takes_writes_and_returns() -> None:
    async def main() -> None:
        async with LocalHost([Large]) as host:
            stub = host.get(Large, "a")
            with pytest.raises(InvalidCall, match="storage key '0'"):
                await stub.put.remote(1, VALUE_BYTES_MAX + 1)
            with pytest.raises(InvalidCall, match="spread it over several calls") as wrote:
                await stub.put.remote(CHANGES_BYTES_MAX // MIB + 1, MIB)
            with pytest.raises(InvalidCall, match="a reply has at most") as returned:
                await stub.give.remote(CALL_BYTES_MAX + 1)
            # The fault is the method's, not the call's.
            assert [wrote.value.status, returned.value.status] == [500, 500]
            with pytest.raises(InvalidCall, match="at most"):
                stub.put.remote(bytes(CALL_BYTES_MAX + 1))
            assert await stub.read.remote() == 0

    run(main)


def test_guarantee_8_a_record_larger_than_a_group() -> None:
    """It goes by itself; what comes with it is answered too."""

    async def main() -> None:
        async with LocalHost([Large]) as host:
            stub = host.get(Large, "a")
            assert await stub.put.remote(1, 10) == 1
            count = GROUP_BYTES_MAX // MIB + 1
            large = stub.put.remote(count, MIB - 64)
            read = stub.read.remote()
            assert await asyncio.wait_for(large, 5) == 1 + count
            assert await asyncio.wait_for(read, 5) == 1 + count
            assert await asyncio.wait_for(stub.put.remote(1, 10), 5) == 2 + count
            await asyncio.wait_for(host.evict(stub), 5)

    run(main)


def test_guarantee_8_live_objects() -> None:
    stopped: list[str] = []

    class Sleeper(Counter):
        def on_stop(self) -> None:
            stopped.append(self.id.name)

    async def main() -> None:
        async with LocalHost([Sleeper], activations_max=20) as host:
            busy = host.get(Sleeper, "busy").wait.remote("gate")
            await GATES.until_reached("gate")
            for number in range(50):
                assert await host.get(Sleeper, f"{number:02d}").increment.remote() == 1
                await host.move(0.1)
                assert host.core is not None
                # The one that runs cannot leave, and leaving takes a moment.
                assert len(host.core.activations) <= 21
            assert stopped[:10] == [f"{number:02d}" for number in range(10)], "longest idle first"
            assert host.is_live(host.get(Sleeper, "busy"))
            for number in range(50):
                assert await host.get(Sleeper, f"{number:02d}").increment.remote() == 2
            GATES["gate"].set()
            assert await busy == 1

    run(main)
