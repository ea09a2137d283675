"""What comes while an object wakes, waits to leave, is deleted or ends with its host."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from unittest import mock

import pytest

import rayobjects as ro
from rayobjects.limits import WAITING_CALLS_MAX
from rayobjects.objects.host_core import HostCore
from rayobjects.storage.records import Record
from rayobjects.testing import LocalHost


class Events(defaultdict[str, asyncio.Event]):
    """Where methods wait for their test."""

    def __reduce__(self) -> str:
        return "EVENTS"  # classes that use it are pickled when they are deployed


EVENTS = Events(asyncio.Event)

WITHIN_S = 20.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    EVENTS.clear()
    asyncio.run(asyncio.wait_for(main(), WITHIN_S))


def begun(response: Awaitable[Any]) -> asyncio.Future[Any]:
    async def result() -> Any:
        return await response

    return asyncio.ensure_future(result())


async def ticks() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def until_waiting(host: LocalHost, count: int) -> None:
    """Until so many calls wait for the turn of the counter."""
    assert host.core is not None
    while len(host.core.activations["Counter", "a"].queue or ()) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


class Counter(ro.DurableObject):
    count: int = ro.durable(0)
    stopped: list[str] = ro.durable(factory=list)

    def __init__(self) -> None:
        self.here = asyncio.Event()

    def on_stop(self) -> None:
        self.stopped.append("on_stop")

    def add(self) -> int:
        self.count += 1
        return self.count

    def stops(self) -> int:
        return len(self.stopped)

    async def hold(self) -> int:
        self.count += 1
        EVENTS["held"].set()
        await EVENTS["go"].wait()
        return self.count

    async def until_here(self) -> str:
        EVENTS["waits"].set()
        await self.here.wait()
        return "here"

    @ro.concurrent
    async def come(self) -> None:
        self.here.set()

    @ro.concurrent
    async def watch(self) -> int:
        EVENTS["watched"].set()
        await EVENTS["go"].wait()
        return self.count

    @ro.concurrent
    async def in_two_blocks(self) -> int:
        async with self.turn():
            self.count += 1
        EVENTS["first"].set()
        await EVENTS["go"].wait()
        async with self.turn():
            self.count += 1
        return self.count

    @ro.concurrent
    async def one_block(self) -> str:
        async with self.turn():
            self.count += 1
        EVENTS["first"].set()
        await EVENTS["ends"].wait()
        return "ended"

    @ro.concurrent
    async def refuse(self) -> None:
        EVENTS["watched"].set()
        await EVENTS["ends"].wait()
        raise ro.InvalidCall("mine", status=409)

    def end(self) -> None:
        self.abort("why")

    async def ask(self, other: ro.Stub) -> int:
        answer: int = await other.watch.remote()
        return answer


# -- the host stops ------------------------------------------------------------------------------


def test_a_host_that_stops_runs_what_waits_and_takes_nothing_new() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            held = begun(counter.hold.remote())
            await EVENTS["held"].wait()
            waiting = [begun(counter.add.remote()) for _ in range(3)]
            await until_waiting(host, 3)
            core = host.core
            assert core is not None
            stopping = asyncio.ensure_future(core.stop())
            await ticks()
            with pytest.raises(ro.Unavailable, match="is being stopped"):
                await counter.add.remote()
            EVENTS["go"].set()
            assert await asyncio.gather(held, *waiting) == [1, 2, 3, 4]
            await stopping
            assert not core.activations
            await host.kill()
            assert await counter.stops.remote() == 1, "it left once, in order"

    run(main)


def test_a_host_that_stops_ends_calls_that_others_of_its_objects_wait_for() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            asked = begun(host.get(Counter, "b").ask.remote(host.get(Counter, "a")))
            await EVENTS["watched"].wait()
            assert host.core is not None
            await host.core.stop()
            with pytest.raises(ro.Unavailable, match="was cut off"):
                await asked

    run(main)


# -- an object that is to leave ------------------------------------------------------------------


def test_what_needs_no_turn_does_not_wait_for_a_new_version() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            waits = begun(counter.until_here.remote())
            await EVENTS["waits"].wait()
            await host.deploy(Counter)
            await counter.come.remote()
            assert await waits == "here"

    run(main)


def test_calls_that_begin_again_elsewhere_are_not_too_many() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            held = begun(counter.hold.remote())
            await EVENTS["held"].wait()
            beside = [begun(counter.watch.remote()) for _ in range(100)]
            waiting = [begun(counter.add.remote()) for _ in range(WAITING_CALLS_MAX - 50)]
            await until_waiting(host, WAITING_CALLS_MAX - 50)
            leaving = asyncio.ensure_future(host.evict(counter))
            await ticks()
            EVENTS["go"].set()
            await asyncio.gather(held, leaving, *beside, *waiting)

    run(main)


def test_guarantee_5_the_same_id_while_a_part_of_the_call_is_committed() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a").options(idempotency_key="k")
            first = begun(counter.in_two_blocks.remote())
            await EVENTS["first"].wait()
            second = begun(counter.in_two_blocks.remote())
            await ticks()
            EVENTS["go"].set()
            assert [await first, await second, await counter.in_two_blocks.remote()] == [2, 2, 2]

    run(main)


def test_one_that_ends_by_itself_while_its_object_is_aborted_has_its_own_answer() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            refused = begun(counter.refuse.remote())
            await EVENTS["watched"].wait()
            with host.syncs_held():  # so that it does not leave at once
                added, ended = begun(counter.add.remote()), begun(counter.end.remote())
                await ticks()
                EVENTS["ends"].set()
                await ticks()
            assert await added == 1
            with pytest.raises(ro.MethodError, match="was ended by abort: why"):
                await ended
            with pytest.raises(ro.InvalidCall, match="mine"):
                await refused

    run(main)


# -- deleting ------------------------------------------------------------------------------------


def test_a_call_that_ends_after_its_object_was_deleted_does_not_bring_it_back() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            keyed = counter.options(idempotency_key="k")
            first = begun(keyed.one_block.remote())
            await EVENTS["first"].wait()
            while not await host.list(Counter):
                await ticks()
            with host.syncs_held():
                deleted = begun(counter.delete())
                while not host.core.activations["Counter", "a"].deleted:  # type: ignore[union-attr]  # noqa: ASYNC110
                    await asyncio.sleep(0)
                EVENTS["ends"].set()
                while host.core.activations["Counter", "a"].concurrent:  # type: ignore[union-attr]  # noqa: ASYNC110
                    await asyncio.sleep(0)
            assert await deleted
            assert await first == "ended"
            assert await host.list(Counter) == []
            await host.crash()
            assert await host.list(Counter) == []
            assert await keyed.one_block.remote() == "ended", "and its answer is kept"
            assert await host.list(Counter) == []

    run(main)


def test_a_delete_that_is_refused_changes_nothing() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            counter = host.get(Counter, "a")
            await counter.add.remote()
            assert host.shard is not None
            commit = host.shard.commit

            def full(record: Record, done: Any) -> None:
                if record.delete:
                    raise ro.Overloaded("too much waits for the disk: back off")
                commit(record, done)

            with (
                mock.patch.object(type(host.shard), "commit", lambda _, *given: full(*given)),
                pytest.raises(ro.Overloaded),
            ):
                await counter.delete()
            while host.is_live(counter):  # noqa: ASYNC110  the host's own steps
                await asyncio.sleep(0)
            assert await counter.add.remote() == 2
            assert await counter.stops.remote() == 1, "it left like any other"

    run(main)


class Ticker(ro.DurableObject):
    count: int = ro.durable(0)

    def on_start(self) -> None:
        self.schedule(self.tick, every="* * * * *", key="tick")

    def tick(self) -> None:
        self.count += 1

    async def hold(self) -> None:
        EVENTS["held"].set()
        await EVENTS["go"].wait()


def test_a_schedule_that_waits_behind_a_delete_does_not_bring_its_object_back() -> None:
    async def main() -> None:
        async with LocalHost([Ticker]) as host:
            ticker = host.get(Ticker, "a")
            held = begun(ticker.hold.remote())
            await EVENTS["held"].wait()
            deleted = begun(ticker.delete())
            await ticks()
            await host.move(61)  # it fires, and waits
            EVENTS["go"].set()
            await held
            assert await deleted
            await host.move(200)
            assert await host.list(Ticker) == []
            assert host.shard is not None
            assert not host.shard.promises()

    run(main)


# -- waking --------------------------------------------------------------------------------------


class Old(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self) -> int:
        self.count += 1
        return self.count


class New(Old):
    def on_upgrade(self, from_version: int) -> None:
        self.count = 42

    def on_start(self) -> None:
        raise ValueError(f"seen {self.count}")


New.__name__ = New.__qualname__ = "Old"


def test_guarantee_4_what_on_start_says_of_the_upgrade_waits_for_the_disk() -> None:
    async def main() -> None:
        async with LocalHost([Old]) as host:
            old = host.get("Old", "a")
            await old.add.remote()
            await host.deploy(New)
            await ticks()
            with host.syncs_held():
                refused = begun(old.add.remote())
                await ticks()
                assert not refused.done(), "it tells of what is not on disk yet"
            with pytest.raises(ro.MethodError, match="seen 42"):
                await refused

    run(main)


class Settings(ro.DurableObject):
    version: int = ro.durable(0)

    def read(self) -> int:
        return self.version

    async def publish(self, room: ro.Stub) -> None:
        self.version += 1
        EVENTS["publishes"].set()
        await EVENTS["go"].wait()
        await room.changed.remote(self.version)


class Room(ro.DurableObject):
    async def on_start(self) -> None:
        if EVENTS["publishes"].is_set():
            await ro.namespace("Settings").get("s").read.remote()

    async def on_stop(self) -> None:
        EVENTS["stops"].set()
        if EVENTS["publishes"].is_set():
            await ro.namespace("Settings").get("s").read.remote()

    def changed(self, version: int) -> None: ...


def is_starting(host: LocalHost) -> bool:
    room = host.core.activations.get(("Room", "r")) if host.core is not None else None
    return room is not None and room.hook is not None and bool(room.hook.awaits)


@pytest.mark.parametrize("hook", ["on_start", "on_stop"])
def test_a_circle_through_a_hook_is_found(hook: str) -> None:
    async def main() -> None:
        async with LocalHost([Settings, Room]) as host:
            room = host.get(Room, "r")
            if hook == "on_stop":
                await room.changed.remote(0)
            published = begun(host.get(Settings, "s").publish.remote(room))
            await EVENTS["publishes"].wait()
            if hook == "on_start":
                woken = begun(room.changed.remote(0))
                while not is_starting(host):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            else:
                woken = asyncio.ensure_future(host.evict(room))
                await EVENTS["stops"].wait()
            EVENTS["go"].set()
            outcomes = await asyncio.gather(published, woken, return_exceptions=True)
            assert any(isinstance(each, ro.Deadlock) for each in outcomes) or hook == "on_stop"
            await room.changed.remote(1)  # both live on
            assert await host.get(Settings, "s").read.remote() in (0, 1)

    run(main)


def test_guarantee_5_a_rerun_is_not_refused_by_a_host_that_stops() -> None:
    begin = HostCore.begin

    def begin_and_stop(core: HostCore) -> None:
        core.stopping = True
        begin(core)

    async def main() -> None:
        async with LocalHost([Payer, Counter]) as host:
            paying = begun(host.get(Payer, "p").pay.remote())
            await EVENTS["paid"].wait()
            with mock.patch.object(HostCore, "begin", begin_and_stop):
                await host.crash()
            await EVENTS["again"].wait()
            with pytest.raises(ro.Unavailable, match="is being stopped"):
                await host.get(Counter, "d").add.remote()
            EVENTS["go"].set()
            await paying
            assert (await host.list(Payer), await host.list(Counter)) == (["p"], ["c"])

    run(main)


class Payer(ro.DurableObject):
    paid: int = ro.durable(0)

    async def pay(self) -> None:
        await ro.namespace("Counter").get("c").add.remote()
        EVENTS["again" if EVENTS["paid"].is_set() else "paid"].set()
        await EVENTS["go"].wait()
        self.paid += 1
