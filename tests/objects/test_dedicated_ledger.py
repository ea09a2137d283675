"""What the actors of dedicated objects ask of their shard's host: it concerns their own object
only, and what the shard has no room for comes back to its callers as under shared hosting."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import from_wire
from rayobjects.ids import ObjectId
from rayobjects.messages import ERROR, PICKLE, Call, Reply, decode_batch, decode_poll, encode
from rayobjects.objects.host_core import HostCore
from rayobjects.objects.ledger import Done
from rayobjects.runtime import placement, remote_ledger
from rayobjects.runtime.dedicated import DedicatedHost
from rayobjects.runtime.host import ShardHost
from rayobjects.runtime.remote_ledger import REFUSED_FOR_S, LedgerRequest, Refusals
from rayobjects.storage import room, values
from rayobjects.storage.records import Record
from rayobjects.testing import LocalHost
from rayobjects.testing.channel import LocalChannel

MODEL = ObjectId("Model", "m")

RUNS: Counts[str] = Counts()
"""How often a method of `Model` ran, by what it was given."""


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self) -> int:
        self.count += 1
        return self.count

    def read(self) -> int:
        return self.count


class Model(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self, what: str) -> int:
        RUNS[what] += 1
        self.count += 1
        return self.count

    def read(self) -> int:
        return self.count

    async def add_to_both(self, what: str) -> int:
        RUNS[what] += 1
        self.count += 1
        await ro.namespace("Counter").get("c").add.remote()
        return self.count

    @ro.concurrent
    async def add_beside(self, what: str) -> None:
        RUNS[what] += 1
        async with self.turn():
            self.count += 1


def test_guarantee_5_an_actor_does_not_forget_the_call_of_another_object() -> None:
    """Idempotency-Keys belong to their objects: two may have the same."""

    async def main() -> None:
        async with LocalHost([Counter]) as local:
            host: Any = ShardHost.__new__(ShardHost)
            host.core, host.shard = local.core, local.shard
            a, b = local.get(Counter, "a"), local.get(Counter, "b")
            for counter in (a, b):
                assert await local.post(counter, "add", idempotency_key="k") == 1
            request = LedgerRequest("commit", *ObjectId("Counter", "c"), forget=["key:k"])
            await host._ledger(request)
            request = LedgerRequest("commit", *b.id, forget=["key:k"])
            await host._ledger(request)
            assert await local.post(a, "add", idempotency_key="k") == 1
            assert await local.post(b, "add", idempotency_key="k") == 2

    asyncio.run(main())


class Actor:
    """The actor of `Model/m` without Ray, and a caller's channel to it. Opens its ledger as
    `BaseHost` does, and asks the shard of a local host.

    Attributes:
        lives: how often it has opened its ledger.
        lose_answers: so many answers to commits get lost, as if the shard's host had died.
        forgetful: each life is a new process.
    """

    def __init__(self, local: LocalHost) -> None:
        self.loop = asyncio.get_running_loop()
        self.core: HostCore | None = None
        self.lives = 0
        self.lose_answers = 0
        self.forgetful = False
        self._local = local
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._shard_host: Any = ShardHost.__new__(ShardHost)
        self._shard_host.core, self._shard_host.shard = None, local.shard
        self._shard_host._deleted, self._shard_host._link = set(), SimpleNamespace(path="")
        self._shard_host._warm_pool = SimpleNamespace(taken=lambda node: None)
        self._shard_host._opened = _nothing
        self._host: Any = DedicatedHost.__new__(DedicatedHost)
        self._host.id, self._host.clock, self._host.classes = MODEL, local.clock, local.classes
        self._host.configuration = SimpleNamespace(shards=1, unavailable_after_s=30.0)
        self._new_process()
        self.channel = LocalChannel(self, "caller")

    def _new_process(self) -> None:
        self._host._owner_epoch, self._host._refusals = 0, Refusals(self._local.clock)

    async def ask(self, link: Any, kind: int, body: bytes, within_s: float) -> bytes:
        """Takes the place of `RayLink.request`."""
        answer: bytes = await self._shard_host.ledger(body)
        if self.lose_answers and remote_ledger.decode_request(body).operation == "commit":
            self.lose_answers -= 1
            raise ConnectionError("the shard's host has died")
        return answer

    async def deliver(self, body: bytes) -> bytes:
        async with self._opening:
            if self.core is None or self.core.failed is not None:
                await self._open()
        assert self.core is not None
        return encode(await self.core.deliver(decode_batch(body)))

    async def _open(self) -> None:
        if self.core is not None:
            self.core.release()
        if self.forgetful:
            self._new_process()
        self.lives += 1
        self.core = HostCore(
            ledger=await self._host.open_ledger(),
            classes=self._local.classes,
            clock=self._local.clock,
            owns=lambda id, object_class: True,
            incarnation=f"actor-{self.lives}",
            idle_s=60.0,
            outgoing=self._local.router,
        )
        self.core.begin()

    async def poll(self, body: bytes) -> bytes:
        assert self.core is not None
        return encode(await self.core.poll(decode_poll(body)))

    async def alive(self) -> None:
        pass

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        return task

    def call(self, method: str, *arguments: str, key: str = "") -> asyncio.Future[Any]:
        """Calls the object; what comes is its value or its error."""
        future: asyncio.Future[Any] = self.loop.create_future()

        def replied(outcome: Any) -> None:
            assert isinstance(outcome, Reply), outcome
            if outcome.status == ERROR:
                future.set_exception(from_wire(outcome.body))  # raises if it comes twice
            else:
                future.set_result(values.load(outcome.body))

        args = values.dump_arguments(arguments, {})
        self.channel.send(Call(0, *MODEL, method, PICKLE, args, key), replied)
        return future

    async def outcomes(self, *calls: asyncio.Future[Any]) -> list[Any]:
        """The value of each call, or the type of its error; whatever comes, within seconds."""
        gathered = asyncio.gather(*calls, return_exceptions=True)
        found = await asyncio.wait_for(gathered, 20.0)
        return [type(each) if isinstance(each, Exception) else each for each in found]

    async def close(self) -> None:
        self.channel.close()
        if self.core is not None:
            self.core.release()
        for task in self._tasks:
            task.cancel()
        found = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert [each for each in found if isinstance(each, Exception)] == []


async def _nothing(*arguments: Any, **options: Any) -> None:
    pass


@asynccontextmanager
async def dedicated(patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LocalHost, Actor]]:
    """A shard's host, and an actor whose object's state lies there."""
    RUNS.clear()
    async with LocalHost([Counter, Model]) as local:
        actor = Actor(local)
        patch.setattr(placement, "locate", _nothing)
        patch.setattr(remote_ledger.RayLink, "request", lambda *request: actor.ask(*request))
        context = SimpleNamespace(get_node_id=lambda: "")
        patch.setattr(remote_ledger.ray, "get_runtime_context", lambda: context)
        try:
            yield local, actor
        finally:
            await actor.close()


def finished_calls_max(patch: pytest.MonkeyPatch, count: int) -> None:
    """So many finished calls the shard keeps, and refuses more."""
    patch.setattr(room, "FINISHED_CALLS_MAX", count)


def test_a_call_for_which_its_shard_has_no_room_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that lasts; nothing of it is applied, and it can be called again."""

    async def main() -> None:
        async with dedicated(monkeypatch) as (local, actor):
            assert await actor.call("add", "before") == 1
            finished_calls_max(monkeypatch, 0)
            for what in "ab":
                with pytest.raises(ro.Overloaded, match=r"^default-0000 keeps 0 finished calls"):
                    await asyncio.wait_for(actor.call("add", what, key=f"key:{what}"), 20.0)
                assert await actor.call("read") == 1
            assert RUNS == {"before": 1, "a": 2, "b": 2}
            assert actor.lives == 3
            finished_calls_max(monkeypatch, 1_000)
            assert await actor.outcomes(actor.call("add", "c")) == [2]
            await local.move(2 * REFUSED_FOR_S)
            assert await actor.outcomes(actor.call("add", "a", key="key:a")) == [3]
            assert actor.lives == 3

    asyncio.run(main())


def test_what_ran_on_top_of_a_refused_call_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran before it and was written has its reply: of the calls of one batch, some have
    room."""

    async def main() -> None:
        async with dedicated(monkeypatch) as (local, actor):
            assert await actor.call("add", "before") == 1
            commit, left = local.shard.commit, 3

            def refusing(record: Record, done: Done) -> None:
                nonlocal left
                if record.call_id and not left:
                    raise ro.Overloaded("the shard is full")
                left -= bool(record.call_id)
                commit(record, done)

            monkeypatch.setattr(local.shard, "commit", refusing)
            calls = [actor.call("add", what) for what in "abcdefgh"]
            assert await actor.outcomes(*calls) == [2, 3, 4] + 5 * [ro.Overloaded]
            assert await actor.call("read") == 4
            assert [RUNS[what] for what in "abcdefgh"] == 3 * [1] + 5 * [2]
            assert actor.lives == 2

    asyncio.run(main())


def test_a_block_for_which_its_shard_has_no_room_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has ended when that turns out, and its call goes on."""

    async def main() -> None:
        async with dedicated(monkeypatch) as (_, actor):
            assert await actor.call("add", "before") == 1
            finished_calls_max(monkeypatch, 0)
            assert await actor.outcomes(actor.call("add_beside", "a")) == [ro.Overloaded]
            assert await actor.call("read") == 1
            assert RUNS["a"] == 2

    asyncio.run(main())


@pytest.mark.parametrize("promises_max", [0, 1_000])
def test_a_begun_call_that_is_refused_has_called_nobody(
    monkeypatch: pytest.MonkeyPatch, promises_max: int
) -> None:
    """Whether its own record is refused, or one that it ran on top of."""

    async def main() -> None:
        async with dedicated(monkeypatch) as (local, actor):
            counter = local.get(Counter, "c")
            monkeypatch.setattr(room, "PROMISES_MAX", promises_max)
            finished_calls_max(monkeypatch, 0 if promises_max else 1_000)
            calls = [] if not promises_max else [actor.call("add", "a")]
            *_, outcome = await actor.outcomes(*calls, actor.call("add_to_both", "b"))
            assert outcome is ro.Overloaded
            assert await actor.call("read") == await counter.read.remote() == 0
            finished_calls_max(monkeypatch, 1_000)
            monkeypatch.setattr(room, "PROMISES_MAX", 1_000)
            assert await actor.outcomes(actor.call("add_to_both", "c")) == [1]
            assert await counter.read.remote() == 1

    asyncio.run(main())


@pytest.mark.parametrize("whose", ["actor", "shard"])
def test_a_call_is_refused_once_though_a_process_dies(
    monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """The actor's, which has forgotten that it was refused; or that of the shard's host, before its
    refusal arrives."""

    async def main() -> None:
        async with dedicated(monkeypatch) as (_, actor):
            assert await actor.call("add", "before") == 1
            finished_calls_max(monkeypatch, 0)
            if whose == "shard":
                actor.lose_answers = 3
            actor.forgetful = whose == "actor"
            call = actor.call("add", "a")
            while actor.lives < 5:  # noqa: ASYNC110  (there is no event to wait for)
                await asyncio.sleep(0)
            actor.forgetful = False
            assert await actor.outcomes(call) == [ro.Overloaded]
            assert await actor.call("read") == 1

    asyncio.run(main())


def test_a_call_that_was_written_is_not_refused_though_the_shard_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its reply got lost, and no claim has room for a while: it waits for its reply."""

    async def main() -> None:
        async with dedicated(monkeypatch) as (_, actor):
            assert await actor.call("add", "before") == 1
            actor.lose_answers = 1
            call = actor.call("add", "a")
            while actor.lose_answers:  # noqa: ASYNC110  (there is no event to wait for)
                await asyncio.sleep(0)
            monkeypatch.setattr(room, "MEMTABLE_BYTES_MAX", -1)
            while actor.lives < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(2 * remote_ledger.RETRY_EVERY_S)
            assert not call.done()
            monkeypatch.setattr(room, "MEMTABLE_BYTES_MAX", 1_000_000)
            assert await actor.outcomes(call) == [2]
            assert RUNS["a"] == 1

    asyncio.run(main())
