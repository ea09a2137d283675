"""What a host answers at once is bounded: the replies that do not fit come one after the other over
the standing request."""

from __future__ import annotations

import asyncio

import pytest

import rayobjects as ro
from rayobjects.limits import BATCH_BYTES_MAX
from rayobjects.messages import decode_replies
from rayobjects.testing import LocalHost

LARGE = BATCH_BYTES_MAX // 2 - 1_000
COUNT = 9


class Archive(ro.DurableObject):
    reads: int = ro.durable(0)

    def read(self, size: int) -> bytes:
        self.reads += 1
        return b"x" * size

    def count(self) -> int:
        return self.reads


@pytest.mark.parametrize("lost", [False, True], ids=["once", "with a session that ends"])
def test_large_replies_of_one_batch(monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    sizes: list[list[int]] = []

    async def run() -> None:
        async with LocalHost([Archive]) as host:
            for name in ("deliver", "poll"):
                asked = getattr(host, name)

                async def measured(body: bytes, asked: object = asked) -> bytes:
                    answer: bytes = await asked(body)  # type: ignore[operator]
                    sizes.append([len(reply.body) for reply in decode_replies(answer).replies])
                    return answer

                monkeypatch.setattr(host, name, measured)
            if lost:
                host.client.lose_polls = 1
            archives = [host.get(Archive, f"{number}") for number in range(COUNT)]
            small = [archive.read.remote(10) for archive in archives]
            large = [archive.read.remote(LARGE) for archive in archives]
            huge = archives[0].read.remote(3 * BATCH_BYTES_MAX)
            for call in small:
                assert len(await asyncio.wait_for(call, 10)) == 10
            for call in large:
                assert len(await asyncio.wait_for(call, 10)) == LARGE
            assert len(await asyncio.wait_for(huge, 10)) == 3 * BATCH_BYTES_MAX
            assert await archives[0].count.remote() == 3
            assert await archives[1].count.remote() == 2

    asyncio.run(run())
    assert max(sum(each) for each in sizes if len(each) > 1) <= BATCH_BYTES_MAX
    assert sum(map(len, sizes)) >= 2 * COUNT + 3
