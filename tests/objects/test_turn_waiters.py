"""Concurrent calls that wait for the turn, and give up waiting or end before they come to it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost, LocalStub

EVENTS: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

WITHIN_S = 20.0


def run(main: Callable[[LocalHost, LocalStub], Coroutine[Any, Any, None]]) -> None:
    """With an object whose turn another call has."""
    EVENTS.clear()

    async def timed() -> None:
        async with asyncio.timeout(WITHIN_S), LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            held = asyncio.ensure_future(result(counter.hold.remote()))
            await EVENTS["held"].wait()
            await main(host, counter)
            EVENTS["go"].set()
            await held

    asyncio.run(timed())


async def result(response: Awaitable[Any]) -> Any:
    return await response


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    async def hold(self) -> None:
        EVENTS["held"].set()
        await EVENTS["go"].wait()

    def add(self) -> int:
        self.count += 1
        return self.count

    async def _block(self, by: int) -> None:
        async with self.turn():
            self.count += by

    @ro.concurrent
    async def two_parts(self) -> None:
        async def fails() -> None:
            await asyncio.sleep(0)
            raise ValueError("the other part has failed")

        await asyncio.gather(self._block(100), fails())

    @ro.concurrent
    async def leaves_a_task(self) -> str:
        self.task = asyncio.ensure_future(self._block(1_000))
        await asyncio.sleep(0)
        return "done"

    @ro.concurrent
    async def tries(self, times: int) -> None:
        for _ in range(times):
            try:
                async with asyncio.timeout(0.001), self.turn():
                    raise AssertionError("it has the turn")
            except TimeoutError:
                pass
        EVENTS["tried"].set()
        await asyncio.sleep(3_600)

    @ro.concurrent
    async def carries_on(self) -> None:
        try:
            await self._block(1)
        except Exception:
            EVENTS["caught"].set()
        await asyncio.sleep(3_600)

    @ro.concurrent
    async def items(self) -> AsyncIterator[int]:
        await asyncio.gather(self.tries_once())
        for number in range(1_000_000):
            EVENTS["given"].set()
            yield number
            await asyncio.sleep(0)

    async def tries_once(self) -> None:
        try:
            async with asyncio.timeout(0.001):
                await self._block(1)
        except TimeoutError:
            pass


@pytest.mark.parametrize("method", ["two_parts", "leaves_a_task"])
def test_guarantee_3_a_call_that_has_ended_comes_to_no_turn(method: str) -> None:
    async def main(host: LocalHost, counter: LocalStub) -> None:
        keyed = counter.options(idempotency_key="k")

        async def outcome() -> str:
            try:
                return str(await getattr(keyed, method).remote())
            except ro.MethodError as error:
                return error.message

        first = await outcome()
        EVENTS["go"].set()
        assert await counter.add.remote() == 1, "nothing of the block that came too late"
        assert await outcome() == first, "its answer is what it was"

    run(main)


def test_a_deadline_ends_a_call_that_has_waited_for_the_turn_in_vain() -> None:
    async def main(host: LocalHost, counter: LocalStub) -> None:
        with pytest.raises(ro.DeadlineExceeded):
            await counter.options(timeout_s=0.1).tries.remote(1)
        with pytest.raises(ro.DeadlineExceeded):
            await counter.options(timeout_s=0.1).carries_on.remote()
        assert not EVENTS["caught"].is_set(), "it ends the call, and is no error of the block"

    run(main)


def test_a_call_that_has_waited_for_the_turn_in_vain_can_be_taken_back() -> None:
    async def main(host: LocalHost, counter: LocalStub) -> None:
        response = counter.tries.remote(1)
        await EVENTS["tried"].wait()
        response.cancel()
        with pytest.raises(ro.Cancelled):
            await response

    run(main)


def test_a_stream_that_has_waited_for_the_turn_in_vain_is_closed_by_its_reader() -> None:
    async def main(host: LocalHost, counter: LocalStub) -> None:
        async for _ in counter.items.remote():
            break
        assert host.core is not None
        activation = host.core.activations["Counter", "a"]
        while activation.concurrent:  # noqa: ASYNC110  the host's own steps
            await asyncio.sleep(0)

    run(main)


def test_guarantee_8_who_has_given_up_takes_no_place_in_the_queue() -> None:
    async def main(host: LocalHost, counter: LocalStub) -> None:
        response = counter.tries.remote(50)
        await EVENTS["tried"].wait()
        assert host.core is not None
        assert not host.core.activations["Counter", "a"].queue
        response.cancel()

    run(main)
