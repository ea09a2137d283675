"""`LocalHost.fire`: a test's way to let a schedule come due."""

from __future__ import annotations

import asyncio
import time

import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost


class Match(ro.DurableObject):
    starts: int = ro.durable(0)
    ticks: list[float] = ro.durable(factory=list)

    def on_start(self) -> None:
        self.gate = asyncio.Event()

    def on_connect(self, ws: ro.WebSocket) -> None:
        pass

    def start(self, after: float) -> None:
        self.schedule(self.end, after=after, key="end")

    def end(self) -> None:
        self.sockets.broadcast("end")

    def tick_each_minute(self, missed: str = "each") -> None:
        self.schedule(self.tick, every="* * * * *", key="tick", missed=missed)

    def tick(self) -> None:
        self.ticks.append(self.now().timestamp())

    def ticked(self) -> list[float]:
        return self.ticks

    async def wait(self) -> None:
        await self.gate.wait()
        self.sockets.broadcast("opened")

    @ro.concurrent
    async def open(self) -> None:
        self.gate.set()

    def wait_soon(self) -> None:
        self.schedule(self.wait, after=1, key="wait")

    def again(self) -> None:
        self.starts += 1
        self.schedule(self.again, after=0, key="again")

    @ro.blocking
    def compute(self) -> None:
        time.sleep(0.05)
        self.sockets.broadcast("computed")

    def compute_soon(self) -> None:
        self.schedule(self.compute, after=1, key="compute")


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


def test_what_became_due_has_ended_when_the_time_has_moved() -> None:
    async def main() -> None:
        async with LocalHost([Match]) as host:
            match = host.get(Match, "a")
            socket = await host.connect(match)
            await match.start.remote(5)
            await host.move(4.9)
            assert socket.received == []
            await host.move(0.2)
            assert socket.received == ["end"]
            await match.compute_soon.remote()
            await host.move(1)
            assert socket.received == ["end", "computed"]

    asyncio.run(main())


@pytest.mark.parametrize("missed", ["each", "last"])
def test_what_recurs_fires_each_time_at_its_time(missed: str) -> None:
    async def main() -> None:
        async with LocalHost([Match]) as host:
            match = host.get(Match, "a")
            began = host.clock.now()
            await match.tick_each_minute.remote(missed)
            await host.move(600)
            assert await match.ticked.remote() == [began + 60 * n for n in range(1, 11)]
            await host.move(59)
            assert len(await match.ticked.remote()) == 10
            await host.move(1)
            assert len(await match.ticked.remote()) == 11
            assert host.clock.now() == began + 660

    asyncio.run(main())


class Board(ro.DurableObject):
    shown: list[str] = ro.durable(factory=list)

    def relay(self, text: str, to: list[str]) -> None:
        if to:
            ro.namespace("Board").get(to[0]).relay.tell(text, to[1:])
        self.shown.append(text)

    def relay_soon(self, to: list[str]) -> None:
        self.schedule(self.relay, "hello", to, after=60, key="relay")

    def failing(self) -> None:
        tried.append("again")
        raise ValueError("no")

    def tell_failing(self) -> None:
        ro.namespace("Board").get("x").failing.tell()

    @ro.retries(2, first_s=10.0)
    def fails(self) -> None:
        tried.append("again")
        raise ValueError("no")

    def fails_soon(self) -> None:
        self.schedule(self.fails, after=1, key="fails")


tried: list[str] = []


def test_what_is_told_has_arrived_when_the_time_has_moved() -> None:
    async def main() -> None:
        async with LocalHost([Board]) as host:
            await host.get(Board, "a").relay_soon.remote(["b", "c", "d"])
            await host.move(60)
            for name in "abcd":
                state = await host.state(host.get(Board, name))
                assert state["attributes"]["shown"] == ["hello"]

    asyncio.run(main())


@pytest.mark.parametrize(("method", "times"), [("tell_failing", 7), ("fails_soon", 3)])
def test_what_raises_is_called_again_at_its_times(method: str, times: int) -> None:
    async def main() -> None:
        async with LocalHost([Board]) as host:
            tried.clear()
            await getattr(host.get(Board, "a"), method).remote()
            await host.move(600)
            assert len(tried) == times
            await host.move(600)
            assert len(tried) == times

    asyncio.run(main())


def test_the_time_moves_on_where_a_schedules_call_waits_for_something_else() -> None:
    async def main() -> None:
        async with LocalHost([Match]) as host:
            waiting, ticking = host.get(Match, "a"), host.get(Match, "b")
            socket = await host.connect(waiting)
            await waiting.wait_soon.remote()
            await ticking.tick_each_minute.remote()
            before = time.monotonic()
            for _ in range(10):
                await host.move(60)
            assert time.monotonic() - before < 5.0  # it was waited for once
            assert len(await ticking.ticked.remote()) == 10
            assert socket.received == []
            await waiting.open.remote()
            assert await socket.receive() == "opened"

    asyncio.run(main())


def test_the_time_moves_on_where_the_disk_is_slow_or_a_schedule_has_no_end() -> None:
    async def main() -> None:
        async with LocalHost([Match]) as host:
            match, endless = host.get(Match, "a"), host.get(Match, "b")
            socket = await host.connect(match)
            await match.start.remote(5)
            with host.syncs_held():
                await host.move(6)
                assert socket.received == []
            assert await socket.receive() == "end"
            await endless.again.remote()
            before = time.monotonic()
            await host.move(60)
            assert time.monotonic() - before < 10.0
            await host.kill()
            await host.move(1)

    asyncio.run(main())
