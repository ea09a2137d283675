"""Guarantee 2: calls on an object run one after another, in the order of each caller."""

from __future__ import annotations

import asyncio

import pytest
from guarantee_objects import GATES, Counter, run, ticks

import rayobjects as ro
from rayobjects.messages import PICKLE, Batch, Call
from rayobjects.storage import values
from rayobjects.testing import LocalHost


class Overlap(ro.DurableObject):
    """Notices when two of its calls run at the same time."""

    order: list[int] = ro.durable(factory=list)
    inside = 0

    async def step(self, number: int) -> int:
        self.inside += 1
        for _ in range(number % 3):
            await asyncio.sleep(0)
        seen = self.inside
        self.order.append(number)
        self.inside -= 1
        return seen

    def quick(self, number: int) -> int:
        self.order.append(number)
        return self.inside

    def seen(self) -> list[int]:
        return self.order


def test_guarantee_2_one_call_at_a_time_in_order() -> None:
    async def main() -> None:
        async with LocalHost([Overlap]) as host:
            stub = host.get(Overlap, "a")
            calls = [
                (stub.step if number % 4 else stub.quick).remote(number) for number in range(100)
            ]
            results = await asyncio.gather(*calls)
            assert {result for n, result in enumerate(results) if n % 4} == {1}
            assert {result for n, result in enumerate(results) if not n % 4} == {0}
            assert await stub.seen.remote() == list(range(100))

    run(main)


@pytest.mark.parametrize("how", ["crash", "kill", "evict"])
def test_guarantee_2_order_survives(how: str) -> None:
    async def main() -> None:
        async with LocalHost([Overlap]) as host:
            stub = host.get(Overlap, "a")
            calls = [stub.step.remote(number) for number in range(40)]
            await calls[5]
            if how == "evict":
                await host.evict(stub)
            else:
                await getattr(host, how)()
            calls += [stub.step.remote(number) for number in range(40, 60)]
            await asyncio.gather(*calls)
            assert await stub.seen.remote() == list(range(60))

    run(main)


def test_guarantee_2_two_callers_keep_their_own_order() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            one = [stub.append.remote(f"one {n}") for n in range(20)]
            await ticks(1)
            # The other caller is an HTTP client.
            two = [
                asyncio.ensure_future(host.post(stub, "append", {"text": f"two {n}"}))
                for n in range(20)
            ]
            await asyncio.gather(*one, *two)
            entries = await stub.entries.remote()
            for caller in ("one", "two"):
                mine = [entry for entry in entries if entry.startswith(caller)]
                assert mine == [f"{caller} {n}" for n in range(20)]

    run(main)


def test_guarantee_2_batches_are_taken_in_order_whatever_order_they_come_in() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            core = host.core
            assert core is not None

            def batch(index: int) -> Batch:
                args = values.dump(((f"{index}",), {}))
                call = Call(index + 1, "Counter", "a", "append", PICKLE, args)
                return Batch("other", 1, index, [call])

            # The first makes the channel known; later ones overtake each other.
            arrivals = [
                asyncio.ensure_future(core.deliver(batch(index))) for index in (0, 4, 2, 3, 1)
            ]
            answers = await asyncio.gather(*arrivals)
            assert not any(answer.stale for answer in answers)
            assert sorted(r.number for answer in answers for r in answer.replies) == [1, 2, 3, 4, 5]
            assert await host.get(Counter, "a").entries.remote() == ["0", "1", "2", "3", "4"]

    run(main)


def test_guarantee_2_a_batch_of_an_old_session_is_refused() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            core = host.core
            assert core is not None
            call = Call(1, "Counter", "a", "increment", PICKLE, values.dump(((), {})))
            assert not (await core.deliver(Batch("other", 2, 0, [call]))).stale
            again = Call(2, "Counter", "a", "increment", PICKLE, values.dump(((), {})))
            assert (await core.deliver(Batch("other", 1, 1, [again]))).stale
            # Neither is one that begins in the middle at a host that does not know the channel.
            assert (await core.deliver(Batch("third", 1, 3, [again]))).stale
            assert await host.get(Counter, "a").read.remote() == 1

    run(main)


def test_guarantee_2_a_slow_call_holds_back_nobody_else_of_its_batch() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            slow = host.get(Counter, "slow").wait.remote("gate")
            quick = [host.get(Counter, f"quick {n}").increment.remote() for n in range(50)]
            behind = host.get(Counter, "slow").increment.remote()
            assert await asyncio.gather(*quick) == [1] * 50
            assert len(host.client.sent) == 1, "they travelled together"
            assert not slow.done()
            assert not behind.done()
            GATES["gate"].set()
            assert await slow == 1  # over the standing request
            assert await behind == 2

    run(main)
