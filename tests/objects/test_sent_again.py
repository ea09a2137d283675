"""A channel sends again in a new session what has no reply, in more than one batch; and replies
come meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import Cancelled, RayObjectsError
from rayobjects.messages import (
    OK,
    PICKLE,
    REDIRECT,
    Batch,
    Call,
    Replies,
    Reply,
    decode_batch,
    decode_replies,
    encode,
)
from rayobjects.objects.caller_channel import CallerChannel
from rayobjects.testing import LocalHost, ManualClock

LARGE = b"x" * (3 << 20)
"""Two of them do not fit into one batch."""

GO: dict[str, asyncio.Event] = {}


class Account(ro.DurableObject):
    total: int = ro.durable(0)

    async def add(self, blob: bytes) -> int:
        await GO[self.id.name].wait()
        self.total += 1
        return self.total

    def balance(self) -> int:
        return self.total


def test_guarantee_5_a_reply_to_a_call_that_waits_to_be_sent_again() -> None:
    async def run() -> None:
        names = [f"{number}" for number in range(8)]
        GO.update((name, asyncio.Event()) for name in names)
        async with LocalHost([Account]) as host:
            calls = [host.get(Account, name).add.remote(LARGE) for name in names]
            while len(host.client.sent) < len(names):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            host.client._lost(host.client._session)  # the link breaks; the host lives
            GO[names[-1]].set()
            assert await asyncio.wait_for(calls[-1], 10) == 1
            for name in names:
                GO[name].set()
            await asyncio.wait_for(asyncio.gather(*calls), 10)
            for name in names:
                assert await host.get(Account, name).balance.remote() == 1

    asyncio.run(run())


class Scripted(CallerChannel):
    """A channel whose host answers what the test says.

    Attributes:
        sent: (session, numbers of its calls, numbers of those that it cancels) of each batch.
    """

    def __init__(self) -> None:
        super().__init__("caller", "of this test", asyncio.get_running_loop(), ManualClock())
        self.sent: list[tuple[int, list[int], list[int]]] = []
        self.answers: asyncio.Queue[Replies] = asyncio.Queue()
        self.polls: asyncio.Queue[Replies] = asyncio.Queue()
        self.outcomes: dict[str, Reply | RayObjectsError] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def _deliver(self, body: bytes) -> bytes:
        batch: Batch = decode_batch(body)
        numbers = [call.number for call in batch.calls]
        self.sent.append((batch.session, numbers, [each[0] for each in batch.cancels]))
        return encode(await self.answers.get())

    async def _ask(self, body: bytes) -> bytes:
        return encode(await self.polls.get())

    async def _connect_until_answered(self) -> None:
        self.polls = asyncio.Queue()  # nobody answers what was asked before
        self._begin_session()
        batch = self._next_batch()
        self._answered(decode_replies(await self._deliver(encode(batch))), batch)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        return task

    def make(self, name: str) -> Call:
        call = Call(0, "Account", name, "add", PICKLE, LARGE)
        self.send(call, lambda outcome: self.outcomes.update({name: outcome}))
        return call

    async def late(self, *replies: Reply) -> None:
        """The next batch is answered."""
        self.answers.put_nowait(Replies(list(replies), late=1))
        await asyncio.sleep(0.01)

    async def begin(self, count: int) -> list[Call]:
        """So many calls have been sent; the session has ended, and of the next one the first three
        calls have left."""
        calls = [self.make(f"{number}") for number in range(1, count + 1)]
        await asyncio.sleep(0.01)
        for _ in calls:
            await self.late()
        assert [numbers for _, numbers, _ in self.sent] == [[each.number] for each in calls]
        self.sent.clear()
        self._lost(self._session)
        await asyncio.sleep(0.01)
        await self.late()
        assert self.numbers == [1, 2, 3]
        return calls

    @property
    def numbers(self) -> list[int]:
        return [number for _, numbers, _ in self.sent for number in numbers]

    async def end(self) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_guarantee_5_one_that_is_hosted_elsewhere_by_now(where: str) -> None:
    async def run() -> None:
        channel, other = Scripted(), Scripted()
        calls = await channel.begin(6)
        to = channel if where == "here" else other
        moved = calls[4]

        def redirected(outcome: Reply | RayObjectsError) -> None:
            moved.id = "caller:5"
            to._number = max(to._number, 6)
            to.send(moved, lambda outcome: channel.outcomes.update({"5": outcome}))

        channel._waiting[5].replied = redirected
        channel.polls.put_nowait(Replies([Reply(5, REDIRECT, b"")], late=1))
        await asyncio.sleep(0.01)
        assert moved.number == 7
        for _ in range(6):
            await channel.late()
        assert channel.numbers == ([1, 2, 3, 4, 6, 7] if where == "here" else [1, 2, 3, 4, 6])
        assert other.numbers == ([] if where == "here" else [7])
        await channel.end()
        await other.end()

    asyncio.run(run())


def test_one_that_is_taken_back_before_it_is_sent_again() -> None:
    async def run() -> None:
        channel = Scripted()
        calls = await channel.begin(6)
        assert channel.cancel(calls[4])
        assert channel.cancel(calls[5])
        channel.polls.put_nowait(Replies([Reply(6, OK, b"")], late=1))
        await asyncio.sleep(0.01)
        for _ in range(4):
            await channel.late()
        assert channel.numbers == [1, 2, 3, 4, 5]
        cancelled = [(numbers, cancels) for _, numbers, cancels in channel.sent if cancels]
        assert cancelled == [([5], [5])]  # with its call, and nothing of the one that has its reply
        assert isinstance(channel.outcomes["6"], Reply)
        await channel.end()

    asyncio.run(run())


def test_one_that_never_left_is_taken_back_in_the_next_session() -> None:
    async def run() -> None:
        channel = Scripted()
        calls = [channel.make(f"{number}") for number in range(1, 6)]
        await asyncio.sleep(0.01)
        await channel.late()
        assert channel.numbers == [1, 2, 3]
        channel._lost(channel._session)
        await asyncio.sleep(0.01)
        assert channel.cancel(calls[4])
        assert isinstance(channel.outcomes["5"], Cancelled)
        for _ in range(5):
            await channel.late()
        assert channel.numbers == [1, 2, 3, 1, 2, 3, 4]
        await channel.end()

    asyncio.run(run())


def test_what_takes_one_reply_raises_and_the_others_are_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        channel = Scripted()
        for number in range(1, 7):
            channel.make(f"{number}")
        await asyncio.sleep(0.01)

        def raising(outcome: Reply | RayObjectsError) -> None:
            raise ValueError("a fault of its own")

        for number in (1, 3, 5):
            channel._waiting[number].replied = raising
        await channel.late(Reply(1, OK, b""), Reply(2, OK, b""))
        await channel.late()
        await channel.late()
        channel.polls.put_nowait(Replies([Reply(3, OK, b""), Reply(4, OK, b"")], late=1))
        await asyncio.sleep(0.01)
        assert channel.outcomes.keys() == {"2", "4"}
        for _ in range(5):
            await channel.late()
        assert channel.numbers == [1, 3, 4, 5, 6]  # the session goes on
        await channel.end()
        assert channel.outcomes.keys() == {"2", "4", "6"}

    asyncio.run(run())
    assert caplog.text.count("ValueError: a fault of its own") == 3
