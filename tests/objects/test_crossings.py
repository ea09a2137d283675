"""Things that meet on their way: what is taken back, answered or lost in the moment in which
somebody else counts on it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.errors import Cancelled
from rayobjects.ids import ObjectId
from rayobjects.messages import JSON, OK, PICKLE, Batch, Call, Poll, decode_replies, encode
from rayobjects.runtime import placement
from rayobjects.runtime.death_notes import DeathNotes
from rayobjects.runtime.probation import Probation
from rayobjects.storage.records import INTENT
from rayobjects.testing import LocalHost, ManualClock

TRIES: list[int] = []
CUT_OFF: list[bool] = []


class Alarm(ro.DurableObject):
    rung: list[int] = ro.durable(factory=list)

    def set(self) -> None:
        for number in range(40):
            self.schedule(self.ring, number, after=10, key=f"{number:02}")

    def ring(self, number: int) -> None:
        self.rung.append(number)
        if number == 0:
            for taken_back in range(10, 20):
                self.unschedule(f"{taken_back}")

    def all_rung(self) -> list[int]:
        return sorted(self.rung)


class Room(ro.DurableObject):
    worked: int = ro.durable(0)

    async def work(self) -> int:
        TRIES.append(1)
        if len(TRIES) == 1:
            raise ValueError("the first time")
        await asyncio.sleep(0.1)
        self.worked += 1
        return self.worked


class Worker(ro.DurableObject):
    done: int = ro.durable(0)

    def work(self) -> int:
        self.done += 1
        return self.done


class Boss(ro.DurableObject):
    asked: int = ro.durable(0)

    def set(self) -> None:
        self.schedule(self.daily, every="0 7 * * *", key="daily", missed="last")

    async def daily(self) -> None:
        await self.ask("w")
        if CUT_OFF:
            await asyncio.Event().wait()

    async def ask(self, worker: str, gate: float = 0.0) -> int:
        self.asked = await ro.namespace("Worker").get(worker).work.remote()
        await asyncio.sleep(gate)
        return self.asked

    def failed(self) -> list[str]:
        return [each.failed for each in self.scheduled()]


@pytest.fixture(autouse=True)
def fresh() -> None:
    TRIES.clear()
    CUT_OFF.clear()


def test_guarantee_7_schedules_that_wait_while_those_before_them_are_taken_back() -> None:
    async def main() -> None:
        async with LocalHost([Alarm]) as host:
            alarm = host.get(Alarm, "a")
            await alarm.set.remote()
            await host.move(11)
            expected = [number for number in range(40) if not 10 <= number < 20]
            async with asyncio.timeout(30):
                while await alarm.all_rung.remote() != expected:
                    await host.move(0.1)

    asyncio.run(main())


def test_a_cancel_that_crosses_with_its_answer_does_not_end_anothers_call() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:

            async def deliver(gateway: str, index: int, *calls: Call, **more: Any) -> Any:
                batch = Batch(gateway, 1, index, list(calls), [], False, [], **more)
                return decode_replies(await host.deliver(encode(batch)))

            def call() -> Call:
                return Call(1, "Room", "r", "work", JSON, b"{}", "key:abc")

            first = await deliver("one", 0, call())
            assert [reply.status for reply in first.replies] != [OK]
            again = asyncio.ensure_future(deliver("two", 0, call()))
            await until(lambda: len(TRIES) == 2)
            await deliver("one", 1, cancels=[(1, "Room", "r")])
            replies = await again
            if not replies.replies:
                poll = Poll("two", 1, 0, replies.incarnation)
                replies = decode_replies(await host.poll(encode(poll)))
            assert [reply.status for reply in replies.replies] == [OK]

    asyncio.run(main())


def test_on_probation_a_cancel_does_not_answer_another_caller(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        path = tmp_path / "notes"
        ran: list[str] = []
        answered: list[int] = []

        def run(call: Call, respond: object) -> None:
            ran.append(call.id)  # and does not end

        def call() -> Call:
            return Call(0, "Room", "r", "work", PICKLE, b"", "key:x")

        DeathNotes.open(path)
        for life in (1, 2):  # the first ends without a word
            notes, running = DeathNotes.open(path)
            assert running is not None
            probation = Probation(notes, clock, running)
            probation.take(call(), lambda status, *_: None, run)
            await until(lambda life=life: len(ran) == life)  # type: ignore[misc]
        probation.take(call(), lambda status, *_: answered.append(status), run)
        probation.take_back(ObjectId("Room", "r"), "key:x", Cancelled("by the first caller"))
        assert not answered

    asyncio.run(main())


def test_held_replies_are_acknowledged_when_a_host_is_back_for_which_nobody_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            boss, worker = cluster.get(Boss, 0), cluster.get(Worker, 1)
            asked = boss.ask.remote(worker.id.name, 0.3)
            await until(lambda: cluster.hosts[1].held == 1)
            (channel,) = cluster.hosts[0].router._channels.values()
            channel._unavailable_after_s = 0.1
            locate = placement.locate

            async def locate_no_more(host: str, *args: Any, **options: Any) -> Any:
                if host == cluster.hosts[1].name:
                    raise ConnectionError("it is down")
                return await locate(host, *args, **options)

            with monkeypatch.context() as down:
                down.setattr(placement, "locate", locate_no_more)
                channel._lost(channel._session)
                await asked
                # It is to be told, and given up because nobody else wants anything of it.
                await until(lambda: channel.forget.due)
                await until(lambda: channel._connecting is not None and channel._connecting.done())
            await until(lambda: cluster.hosts[1].held == 0)

    asyncio.run(main())


def test_guarantee_7_a_recurring_schedule_that_was_cut_off_too_long_ago_is_listed() -> None:
    async def main() -> None:
        async with LocalHost([Boss, Worker]) as host:
            CUT_OFF.append(True)
            boss = host.get(Boss, "b")
            await boss.set.remote()
            await host.move(86_400)
            worker = host.get(Worker, "w")
            assert host.shard is not None
            shard = host.shard
            await until(lambda: any(promise.kind == INTENT for _, promise in shard.promises()))
            CUT_OFF.clear()
            host.clock.move(8 * 86_400)
            await host.kill()
            assert host.shard is not None
            await until(lambda: any(promise.failed for _, promise in host.shard.promises()))  # type: ignore[union-attr]
            ((_, failed),) = [each for each in host.shard.promises() if each[1].failed]
            assert failed.kind == INTENT, "its call is listed, which is not made again by itself"
            await host.move(60)
            assert await boss.failed.remote() == [""], "and the schedule goes on"
            assert await worker.work.remote() == 2, "it was called once"
            await host.move(86_400)
            assert await worker.work.remote() == 4, "and once on the next day"

    asyncio.run(main())


def test_a_call_made_while_others_are_refused_is_not_refused_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its class may have been deployed since the catalog was looked at."""

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker = cluster.get(Worker, 1)
            locate = placement.locate
            asked, deployed = asyncio.Event(), asyncio.Event()

            async def locate_late(host: str, *args: Any, **options: Any) -> Any:
                if deployed.is_set():
                    return await locate(host, *args, **options)
                asked.set()
                await deployed.wait()
                raise ro.InvalidCall("no class 'Worker' is deployed")

            monkeypatch.setattr(placement, "locate", locate_late)
            early = worker.work.remote()
            await asked.wait()
            late = [worker.work.remote() for _ in range(3)]
            await asyncio.sleep(0)
            deployed.set()
            with pytest.raises(ro.InvalidCall, match="no class"):
                await early
            again = worker.work.remote()
            assert [await each for each in late] == [1, 2, 3]
            assert await again == 4

    asyncio.run(main())
