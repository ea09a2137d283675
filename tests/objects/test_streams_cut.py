"""Streams whose methods run beside the host's loop, cut off while they hand out items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost

CUTS = 10
"""How often it is tried: what is cut must be giving just then."""


class Busy(ro.DurableObject):
    @ro.concurrent
    async def items(self) -> AsyncIterator[int]:
        for number in range(1_000_000):
            yield number
            for _ in range(20_000):
                pass

    async def slow(self) -> str:
        await asyncio.sleep(0.01)
        return "done"


@pytest.mark.parametrize("cut", ["deploy", "evict"])
def test_replies_come_after_streams_were_cut_off_on_the_lane(cut: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), LocalHost([Busy]) as host:
            assert host.core is not None
            host.core.on_lane = True  # as in the host of a dedicated object
            busy = host.get(Busy, "b")

            async def read() -> None:
                async for item in busy.items.remote():
                    if item == 10:
                        await (host.deploy(Busy) if cut == "deploy" else host.evict(busy))

            for _ in range(CUTS):
                with pytest.raises(ro.Unavailable):
                    await read()
                (channel,) = host.core.channels.values()
                assert channel._late >= 0
                assert await busy.slow.remote() == "done"

    asyncio.run(main())
