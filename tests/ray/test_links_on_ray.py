"""Channels over Unix sockets, and those that Ray's calls carry, lose nothing when a host dies."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import rayobjects as ro
from rayobjects.runtime import admin, link, process


class Tally(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self) -> int:
        self.count += 1
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
