"""`LocalHost.fire`: a test's way to let a schedule come due."""

from __future__ import annotations

import asyncio

import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost


class Alarm(ro.DurableObject):
    rung: int = ro.durable(0)

    def set(self, after: float) -> None:
        self.schedule(self.ring, after=after, key="alarm")

    def set_daily(self) -> None:
        self.schedule(self.ring, every="0 7 * * *", key="daily")

    def ring(self) -> None:
        self.rung += 1

    def count(self) -> int:
        return self.rung


def test_a_schedule_fires_when_a_test_says_so() -> None:
    async def main() -> None:
        async with LocalHost([Alarm]) as host:
            alarm = host.get(Alarm, "a")
            await alarm.set.remote(3_600)
            before = host.clock.now()
            await host.fire(alarm, "alarm")
            assert host.clock.now() == pytest.approx(before + 3_600)
            assert await alarm.count.remote() == 1
            with pytest.raises(KeyError, match="no schedule 'alarm'"):
                await host.fire(alarm, "alarm")
            await alarm.set_daily.remote()
            for day in range(1, 4):
                await host.fire(alarm, "daily")
                assert await alarm.count.remote() == 1 + day
            await host.crash()
            assert await alarm.count.remote() == 4

    asyncio.run(main())
