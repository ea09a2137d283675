"""Methods beside the turn, on threads, with deadlines; circles of independent callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.objects import deadlocks
from rayobjects.objects.lane import Lane
from rayobjects.storage.records import INTENT
from rayobjects.testing import LocalHost

Main = Callable[[], Coroutine[Any, Any, None]]


def run(main: Main) -> None:
    EVENTS.clear()

    async def timed() -> None:
        await asyncio.wait_for(main(), 60)

    asyncio.run(timed())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the host's steps, on this very loop
        await asyncio.sleep(0)


EVENTS: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


class Counter(ro.DurableObject):
    count: int = ro.durable(0)
    log: list[str] = ro.durable(factory=list)

    def __init__(self) -> None:
        self.plain = 0

    def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def read(self) -> int:
        return self.count

    def plain_value(self) -> int:
        return self.plain

    async def hold(self, reached: str, until: str) -> int:
        self.count += 1_000
        EVENTS[reached].set()
        await EVENTS[until].wait()
        return self.count

    @ro.concurrent
    async def peek(self) -> int:
        self.plain += 1
        return self.count

    @ro.concurrent
    async def careless(self, what: str) -> None:
        if what == "assign":
            self.count = 5
        elif what == "storage":
            self.storage["key"] = 1
        elif what == "schedule":
            self.schedule(self.add, after=1)
        elif what == "tell":
            ro.namespace("Counter").get("other").add.tell(1)
        else:
            self.log.append("lost")  # a copy of its own

    @ro.concurrent
    async def in_blocks(self, blocks: int, reached: str = "", until: str = "") -> list[int]:
        seen = []
        for number in range(blocks):
            async with self.turn():
                self.count += 1
                self.log.append(f"block {number}")
                seen.append(self.count)
            if reached:
                EVENTS[reached].set()
                await EVENTS[until].wait()
        return seen

    @ro.concurrent
    async def block_that_raises(self) -> int:
        try:
            async with self.turn():
                self.count += 100
                raise ValueError("not today")
        except ValueError:
            pass
        async with self.turn():
            self.count += 1
        return self.count

    @ro.concurrent
    async def block_with_a_sleep(self, reached: str, until: str) -> None:
        async with self.turn():
            value = self.count
            EVENTS[reached].set()
            await EVENTS[until].wait()
            self.count = value + 1

    async def turn_in_the_turn(self) -> int:
        async with self.turn():
            self.count += 1
        return self.count

    @ro.concurrent
    async def turn_in_its_turn(self) -> int:
        async with self.turn():
            self.count += 1
            with pytest.raises(RuntimeError, match=r"inside the `async with self.turn.* is open"):
                async with self.turn():
                    self.count += 100
        async with self.turn():
            return self.count

    async def never(self) -> None:
        self.count += 1
        await asyncio.Event().wait()

    async def ask_never(self, other: str) -> None:
        self.count += 1
        await ro.namespace("Counter").get(other).never.remote()

    async def cross(self, mine: str, others: str, other: str) -> int:
        EVENTS[mine].set()
        await EVENTS[others].wait()
        return int(await ro.namespace("Counter").get(other).add.remote(1))


def test_a_concurrent_method_reads_what_is_committed_while_another_call_runs() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            await counter.add.remote(7)
            held = counter.hold.remote("reached", "go")
            await EVENTS["reached"].wait()
            assert await counter.peek.remote() == 7, (
                "neither held up nor shown what is not committed"
            )
            later = counter.add.remote()
            assert await counter.peek.remote() == 7
            EVENTS["go"].set()
            assert await held == 1_007
            assert await later == 1_008
            assert await counter.peek.remote() == 1_008
            assert await counter.plain_value.remote() == 3, "plain attributes are shared"

    run(main)


def test_a_concurrent_call_that_came_while_the_object_woke_waits_for_no_other_call() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            before, held = counter.add.remote(), counter.hold.remote("reached", "go")
            peeked, after = counter.peek.remote(), counter.add.remote()
            peeked_again = counter.peek.remote()
            assert await asyncio.wait_for(peeked, 5) == 1, "what came before it has run, if it can"
            assert await asyncio.wait_for(peeked_again, 5) == 1
            assert not held.done()
            EVENTS["go"].set()
            assert [await before, await held, await after] == [1, 1_001, 1_002]

    run(main)


@pytest.mark.parametrize("what", ["assign", "storage", "schedule", "tell"])
def test_without_the_turn_nothing_can_be_written(what: str) -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            held = counter.hold.remote("reached", "go")
            await EVENTS["reached"].wait()
            with pytest.raises(ro.MethodError, match=r"async with self\.turn\(\)"):
                await counter.careless.remote(what)
            EVENTS["go"].set()
            assert await held == 1_000
            assert (await host.state(counter))["attributes"]["count"] == 1_000
            assert host.shard is not None
            assert not host.shard.promises()

    run(main)


def test_what_is_changed_inside_without_the_turn_is_a_copy() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            await counter.in_blocks.remote(1)
            await counter.careless.remote("append")
            assert (await host.state(counter))["attributes"]["log"] == ["block 0"]

    run(main)


def test_blocks_are_commits_of_their_own_and_lose_no_update() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            calls = [counter.in_blocks.remote(5) for _ in range(10)]
            calls += [counter.add.remote() for _ in range(10)]
            results = await asyncio.gather(*calls)
            assert await counter.read.remote() == 60
            assert sorted(each for seen in results[:10] for each in seen)[-1] <= 60

    run(main)


def test_a_block_holds_the_turn_and_rolls_back_alone() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            block = counter.block_with_a_sleep.remote("reached", "go")
            await EVENTS["reached"].wait()
            added = counter.add.remote()
            await asyncio.sleep(0)
            EVENTS["go"].set()
            await block
            assert await added == 2
            assert await counter.block_that_raises.remote() == 3
            assert await counter.turn_in_the_turn.remote() == 4
            assert await counter.turn_in_its_turn.remote() == 5

    run(main)


def test_a_crash_between_blocks_keeps_those_that_were_committed_and_repeats_none() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            call = counter.in_blocks.remote(2, "reached", "never")
            await EVENTS["reached"].wait()
            assert await counter.read.remote() == 1, "its block is on disk"
            await host.crash()
            with pytest.raises(ro.Unavailable, match="cut off"):
                await call
            assert await counter.read.remote() == 1
            assert host.shard is not None
            assert not [p for _, p in host.shard.promises() if p.kind == INTENT]

    run(main)


def test_a_crash_after_the_end_answers_with_the_reply() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            host.client.lose_answers = 10
            call = counter.in_blocks.remote(2)
            await until(lambda: host.shard is not None and host.shard.finished_count > 0)
            assert (await host.state(counter))["attributes"]["count"] == 2
            host.client.lose_answers = 0
            await host.crash()
            assert await call == [1, 2]
            assert await counter.read.remote() == 2

    run(main)


def test_a_new_version_begins_concurrent_calls_again_or_cuts_them_off() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            fresh = counter.block_with_a_sleep.remote(
                "fresh", "go"
            )  # holds the turn: is waited for
            await EVENTS["fresh"].wait()
            cut = counter.in_blocks.remote(2, "cut", "never")
            EVENTS["go"].set()
            await fresh
            await EVENTS["cut"].wait()
            assert host.core is not None
            host.core.refresh({"Counter"})  # as a deployment does
            with pytest.raises(ro.Unavailable, match="cut off"):
                await cut
            assert await counter.read.remote() == 2

    run(main)


def test_an_object_with_a_concurrent_call_does_not_sleep() -> None:
    async def main() -> None:
        async with LocalHost([Counter], idle_s=10) as host:
            counter = host.get(Counter, "a")
            call = counter.in_blocks.remote(1, "reached", "go")
            await EVENTS["reached"].wait()
            await host.move(60)
            assert host.is_live(counter)
            EVENTS["go"].set()
            assert await call == [1]
            await host.move(60)
            assert not host.is_live(counter)

    run(main)


def test_a_blocking_method_holds_up_its_own_object_only() -> None:
    async def main() -> None:
        async with LocalHost([Counter, Blocker]) as host:
            b = host.get(Counter, "b")
            THREADS.update(entered=threading.Event(), leave=threading.Event())
            blocked = host.get(Blocker, "x").block.remote()
            assert await asyncio.to_thread(THREADS["entered"].wait, 30)
            waiting = host.get(Blocker, "x").read.remote()
            assert await b.add.remote() == 1, "others go on"
            assert not waiting.done()
            THREADS["leave"].set()
            assert await blocked == 1
            assert await waiting == 1

    run(main)


THREADS: dict[str, threading.Event] = {}


class Blocker(ro.DurableObject):
    count: int = ro.durable(0)

    @ro.blocking
    def block(self) -> int:
        self.count += 1
        THREADS["entered"].set()
        assert THREADS["leave"].wait(30)
        return self.count

    def read(self) -> int:
        return self.count


def test_a_deadline_ends_calls_that_run_and_calls_that_wait() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            brief = counter.options(timeout_s=0.05)
            with pytest.raises(ro.DeadlineExceeded, match="rolled back"):
                await brief.never.remote()
            assert await counter.read.remote() == 0
            held = counter.hold.remote("reached", "go")
            await EVENTS["reached"].wait()
            with pytest.raises(ro.DeadlineExceeded):
                await brief.add.remote()
            EVENTS["go"].set()
            assert await held == 1_000
            assert await counter.read.remote() == 1_000
            assert await brief.add.remote() == 1_001, "in time is in time"
            with pytest.raises(ro.InvalidCall, match="positive"):
                counter.options(timeout_s=0)

    run(main)


def test_a_deadline_travels_with_the_chain() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            a, b = host.get(Counter, "a"), host.get(Counter, "b")
            began = time.monotonic()
            with pytest.raises(ro.DeadlineExceeded):
                await a.options(timeout_s=0.1).ask_never.remote("b")
            assert await a.read.remote() == 0
            assert await b.read.remote() == 0, "b was not left waiting for ever"
            assert time.monotonic() - began < 10

    run(main)


def test_a_caller_takes_calls_back_that_wait_and_calls_that_run() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            never = counter.never.remote()
            waiting = counter.add.remote()
            later = counter.add.remote(10)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(ro.Cancelled):
                await waiting
            await until(lambda: host.is_live(counter))  # the call has left
            never.cancel()
            with pytest.raises(ro.Cancelled, match="rolled back"):
                await never
            assert await later == 10, "neither of the two has left anything"
            later.cancel()
            assert await later == 10, "too late is too late"

    run(main)


def test_a_call_that_an_object_takes_back() -> None:
    async def main() -> None:
        async with LocalHost([Counter, Impatient]) as host:
            assert await host.get(Impatient, "i").ask.remote("a") == "took it back"
            assert await host.get(Counter, "a").read.remote() == 0

    run(main)


class Impatient(ro.DurableObject):
    async def ask(self, other: str) -> str:
        response = ro.namespace("Counter").get(other).never.remote()
        await asyncio.sleep(0.05)
        response.cancel()
        try:
            await response
        except ro.Cancelled:
            return "took it back"
        return "got an answer"


def test_three_objects_in_a_circle_and_one_of_them_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlocks, "PROBE_EVERY_S", 0.05)

    async def main() -> None:
        async with LocalHost([Counter]) as host:
            names = ["a", "b", "c"]
            calls = []
            for index, name in enumerate(names):
                other = names[(index + 1) % 3]
                calls.append(host.get(Counter, name).cross.remote(name, "all", other))
                await EVENTS[name].wait()
            EVENTS["all"].set()
            results = await asyncio.gather(*calls, return_exceptions=True)
            failed = [each for each in results if isinstance(each, ro.Deadlock)]
            assert len(failed) == 1, results
            assert "circle" in str(failed[0])
            assert not [
                each for each in results if isinstance(each, Exception) and each not in failed
            ]
            total = sum([await host.get(Counter, name).read.remote() for name in names])
            assert total == 2, "what the others asked for was applied once"

    run(main)


def test_a_long_wait_without_a_circle_is_no_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlocks, "PROBE_EVERY_S", 0.01)

    async def main() -> None:
        async with LocalHost([Counter]) as host:
            held = host.get(Counter, "b").hold.remote("reached", "go")
            await EVENTS["reached"].wait()
            EVENTS["all"].set()
            waits = host.get(Counter, "a").cross.remote("x", "all", "b")
            await asyncio.sleep(0.2)  # many probes
            assert not waits.done()
            EVENTS["go"].set()
            assert await held == 1_000
            assert await waits == 1_001

    run(main)


def test_the_lane_knows_its_thread_and_waits_for_what_it_cancels() -> None:
    """A method there must not wait for an answer, and a cancelled one is not left behind."""

    async def main() -> None:
        lane = Lane()
        assert not lane.runs_here

        async def here() -> bool:
            return lane.runs_here

        assert await lane.run(here())
        ended: list[str] = []

        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                ended.append("cleaned up")

        task = asyncio.ensure_future(lane.run(slow()))
        await lane.run(here())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["cleaned up"], "its object's turn lasts until then"
        lane.close()

    run(main)


def test_marks_that_mean_nothing_are_refused() -> None:
    with pytest.raises(TypeError, match="must be `async def`"):

        @ro.concurrent
        def plain(self: object) -> None: ...

    with pytest.raises(TypeError, match="must not block"):

        @ro.blocking
        async def waits(self: object) -> None: ...

    with pytest.raises(TypeError, match="called by the runtime"):

        class Wrong(ro.DurableObject):
            @ro.concurrent
            async def on_message(self, ws: ro.WebSocket, data: object) -> None: ...
