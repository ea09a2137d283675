"""Replies that are held for other objects are held until those have ended, and no longer, whoever
is restarted meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.messages import OK, PICKLE, Call, Reply
from rayobjects.objects import courier, host_core
from rayobjects.randomness import seeded
from rayobjects.runtime import acknowledging, placement
from rayobjects.runtime.stubs import Stub
from rayobjects.storage import values
from rayobjects.testing import LocalHost


class Gate:
    """Where a method waits for its test."""

    event: asyncio.Event
    crowded: list[str]

    def __reduce__(self) -> str:
        return "GATE"  # classes that use it are pickled when they are deployed


GATE = Gate()


class Boss(ro.DurableObject):
    asked: int = ro.durable(0)

    async def ask(self, *names: str, wait: bool = False) -> int:
        for name in names:
            self.asked = await ro.namespace("Worker").get(name).work.remote()
        if wait:
            await GATE.event.wait()
        return self.asked

    @ro.concurrent
    async def ask_beside(self, name: str) -> int:
        done: int = await ro.namespace("Worker").get(name).work.remote()
        return done

    def say(self, name: str, method: str = "work") -> None:
        getattr(ro.namespace("Worker").get(name), method).tell()


class Worker(ro.DurableObject):
    done: int = ro.durable(0)

    def work(self) -> int:
        self.done += 1
        return self.done

    async def work_later(self) -> int:
        if not GATE.crowded:
            GATE.crowded.append(self.id.name)
            raise ro.Overloaded("there is a crowd")
        await GATE.event.wait()
        return self.work()


class Restless(ro.DurableObject):
    async def on_start(self) -> None:
        await ro.namespace("Worker").get(NAMES[0]).work.remote()
        raise ValueError("I cannot start")

    def be(self) -> None:
        pass


NAMES: list[str] = []


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledging, "SAY_WITHIN_S", 0.05)
    for module in (courier, host_core):
        monkeypatch.setattr(module, "LATE_BATCH_S", 0.2)
    GATE.event, GATE.crowded = asyncio.Event(), []
    NAMES.clear()


def held(host: LocalHost) -> int:
    assert host.shard is not None
    return len(host.shard._indexes.calls._held)


async def noted(host: LocalHost) -> None:
    await host.move(1)
    await until(lambda: host.shard is not None and not host.shard.busy)


@pytest.mark.parametrize("how", ["ask", "say"])
@pytest.mark.parametrize("end", ["kill", "crash"])
def test_what_is_forgotten_does_not_come_back(how: str, end: str) -> None:
    """Also if it lies only in the journal."""

    async def main() -> None:
        async with LocalHost([Boss, Worker]) as host:
            await getattr(host.get(Boss, "b"), how).remote("w")
            await until(lambda: not host.shard.promises() and not held(host))
            await noted(host)
            await getattr(host, end)()
            assert held(host) == 0

    asyncio.run(main())


def test_nothing_is_forgotten_before_the_caller_has_ended() -> None:
    async def main() -> None:
        async with LocalHost([Boss, Worker]) as host:
            asked = host.get(Boss, "b").ask.remote("v", "w", wait=True)
            await until(lambda: held(host) == 2)
            await host.move(5)
            await host.kill()
            assert held(host) == 2
            GATE.event.set()
            assert await asked == 1
            assert held(host) == 0

    asyncio.run(main())


@pytest.mark.parametrize("how", ["ask", "say"])
def test_a_host_that_nobody_calls_again_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            boss, worker = cluster.get(Boss), cluster.get(Worker, 1)
            await getattr(boss, how).remote(worker.id.name)
            receiver = cluster.hosts[1]
            await until(lambda: receiver.shard.finished_count)
            await until(lambda: not receiver.held)
            await noted(receiver)
            await receiver.kill()
            assert receiver.held == 0

    asyncio.run(main())


def test_a_host_that_was_restarted_knows_what_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            boss, worker = cluster.get(Boss), cluster.get(Worker, 1)
            asked = boss.ask.remote(worker.id.name, wait=True)
            receiver = cluster.hosts[1]
            await until(lambda: receiver.held)
            await receiver.kill()
            assert receiver.held == 1
            GATE.event.set()
            assert await asked == 1
            await until(lambda: not receiver.held)
            await noted(receiver)
            await receiver.kill()
            assert receiver.held == 0

    asyncio.run(main())


def test_a_host_that_is_down_is_told_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            boss, worker = cluster.get(Boss), cluster.get(Worker, 1)
            asked = boss.ask.remote(worker.id.name, wait=True)
            receiver = cluster.hosts[1]
            await until(lambda: receiver.held)
            receiver._die()
            GATE.event.set()
            assert await asked == 1
            await asyncio.sleep(0.3)
            await receiver.kill()
            await until(lambda: not receiver.held)

    asyncio.run(main())


def test_guarantee_5_an_attempt_that_left_no_trace_does_not_forget_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message that could not be taken comes again under the same id."""

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            boss, worker = cluster.get(Boss), cluster.get(Worker, 1)
            sender, receiver = cluster.hosts
            await boss.say.remote(worker.id.name, "work_later")
            await until(lambda: GATE.crowded)
            GATE.event.set()
            await asyncio.sleep(0.01)
            with sender.syncs_held():  # so it does not note that its message has arrived
                await sender.move(1)
                await until(lambda: receiver.held)
                await noted(receiver)
                await asyncio.sleep(0.2)
                assert receiver.held == 1
            await sender.kill()
            await until(lambda: not sender.shard.promises())
            assert await worker.work.remote() == 2

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_guarantee_5_between_two_hosts_that_die_again_and_again(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Nothing is forgotten too early, or it would be applied twice."""
    monkeypatch.setattr(acknowledging, "SAY_WITHIN_S", 0.005)
    random = seeded(str(seed))

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            bosses = [Stub("Boss", f"{number}") for number in range(8)]
            worker = cluster.get(Worker, 1)
            calls: list[Any] = []
            for _ in range(25):
                for boss in bosses:
                    method = boss.ask if random.random() < 0.5 else boss.say
                    calls.append(method.remote(worker.id.name))
                await asyncio.sleep(random.random() * 0.02)
                host = cluster.hosts[random.randrange(2)]
                if random.random() < 0.5:
                    await (host.kill() if random.random() < 0.5 else host.crash())
                for each in cluster.hosts:
                    await each.move(0.2)
            for call in calls:
                await until(call.done)
                await call
            while any(host.shard.promises() for host in cluster.hosts):
                for host in cluster.hosts:
                    await host.move(1)
                await asyncio.sleep(0.005)
            assert await worker.work.remote() == len(calls) + 1

    asyncio.run(main())


def test_no_actor_is_started_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an object's own has ended, the host of its shard has its storage."""

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Worker]) as cluster:
            worker = cluster.get(Worker, 1)
            call = Call(0, *worker.id, "work", PICKLE, values.dump_arguments((), {}), "boss/1")
            call.held = True
            replies: list[Any] = []
            cluster.router.submit(call, replies.append, None)
            await until(lambda: replies)
            assert isinstance(replies[0], Reply)
            assert replies[0].status == OK
            receiver = cluster.hosts[1]
            assert receiver.held == 1
            ended = cluster.router._channel(str(worker.id), cluster.catalog.classes["Worker"])
            ended.forget.add((call.id, call.class_name, call.name))
            await until(lambda: not receiver.held)
            assert ended._connecting is None

    asyncio.run(main())


def test_what_a_hook_has_called_before_it_raised_is_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with LocalCluster(monkeypatch, [Restless, Worker]) as cluster:
            worker = cluster.get(Worker, 1)
            NAMES.append(worker.id.name)
            with pytest.raises(ro.MethodError, match="cannot start"):
                await cluster.get(Restless).be.remote()
            (end,) = cluster.hosts[1].core.channels.values()
            assert len(end._unacknowledged) == 1
            assert await worker.work.remote() == 2  # of this process
            router = cluster.host.router
            router.submit(Call(0, *worker.id, "work", PICKLE, b""), lambda outcome: None, None)
            await until(lambda: len(end._unacknowledged) == 1 and 1 not in end._unacknowledged)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["ask", "ask_beside", "say"])
def test_what_a_dead_process_had_sent_comes_late(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """When its successor has sent it again, has its reply, and needs it no more."""
    for module in (courier, host_core):
        monkeypatch.setattr(module, "LATE_BATCH_S", 1.0)

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Boss, Worker]) as cluster:
            boss = cluster.get(Boss)
            workers = [Stub("Worker", name) for name in map(str, range(20))]
            worker, another = [each for each in workers if placement.shard_of(each.id, 2) == 1][:2]
            sender, receiver = cluster.hosts
            late: list[bytes] = []
            deliver = receiver.deliver

            async def lose(body: bytes) -> bytes:
                late.append(body)
                raise ConnectionError("on its way")

            monkeypatch.setattr(receiver, "deliver", lose)
            asked = getattr(boss, how).remote(worker.id.name)
            await until(lambda: late)
            await sender.kill()
            monkeypatch.setattr(receiver, "deliver", deliver)
            await asked
            await until(lambda: receiver.held == 1 and not sender.shard.promises())
            await boss.ask.remote(another.id.name)  # what there is to acknowledge goes with it
            assert receiver.held == 2
            for body in late:
                await receiver.in_its_context(deliver(body))
            assert await worker.work.remote() == 2
            await until(lambda: not receiver.held)

    asyncio.run(main())
