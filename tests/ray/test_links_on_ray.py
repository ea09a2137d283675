"""Channels over Unix sockets, and those that Ray's calls carry: both bring calls, streams and what
ends them, and lose nothing when a host dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from served import wait_until

import rayobjects as ro
from rayobjects.runtime import admin, link, process


class Tally(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self) -> int:
        self.count += 1
        return self.count

    @ro.concurrent
    async def counted(self, items: int) -> AsyncIterator[int]:
        try:
            for number in range(items):
                yield number
        finally:
            async with self.turn():
                self.count += 1

    def value(self) -> int:
        return self.count


@pytest.fixture(params=["unix socket", "ray"])
def carried_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What carries this process's channels, as on the host's machine or on another one."""
    carrier: str = request.param
    if carrier == "ray":

        async def elsewhere(path: str) -> None:
            return None

        monkeypatch.setattr(link.LocalLink, "connect", elsewhere)
    return carrier


def test_calls_and_kills(hosting: str, carried_by: str) -> None:
    process.detach()  # this test's own router
    tallies = ro.deploy(Tally)
    stub = tallies.get(carried_by)
    assert stub.add.remote().result(60) == 1
    router = process.router()
    [channel] = [each for each in router._channels.values() if each._link is not None]
    local = isinstance(channel._link, link.LocalLink)
    assert local == (carried_by == "unix socket")

    [pid] = [each.figures["pid"] for each in admin.status().hosts if each.name == channel.host]

    async def run() -> list[int]:
        first = [stub.add.remote() for _ in range(100)]
        await first[0]
        os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*first, *(stub.add.remote() for _ in range(100)))

    assert asyncio.run(run()) == list(range(2, 202))


def test_streams(hosting: str, carried_by: str) -> None:
    process.detach()
    tallies = ro.deploy(Tally)
    stub = tallies.get(f"streams by {carried_by}")

    async def run() -> None:
        items = [item async for item in stub.counted.remote(1_000)]
        assert items == list(range(1_000))

        stopped = stub.counted.remote(1_000_000)
        reader = aiter(stopped)
        while await anext(reader) < 100:
            pass
        await reader.aclose()

        async def total(number: int) -> int:
            return sum([item async for item in stub.counted.remote(number)])

        assert await asyncio.gather(*map(total, range(20))) == [sum(range(n)) for n in range(20)]

    asyncio.run(run())
    wait_until(lambda: stub.value.remote().result(60) == 22, "every stream is closed")
