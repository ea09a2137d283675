"""A caller's process that stood still (stopped by a signal, or with a laptop's lid closed) for
longer than replies are kept: what it had sent is not applied a second time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import Unavailable
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import OK, PICKLE, Call, Reply
from rayobjects.objects.contact import SENT_AGAIN_WITHIN_S, Contact
from rayobjects.storage import values
from rayobjects.testing import LocalHost, ManualClock

SLEEP_S = FINISHED_WINDOW_S + 60.0


class Account(ro.DurableObject):
    total: int = ro.durable(0)

    async def slow(self) -> int:
        self.total += 1
        await asyncio.sleep(0.2)
        return self.total

    def add(self) -> int:
        self.total += 1
        return self.total


class Sleeper:
    """Makes the client of a host stand still.

    Args:
        answered: what the host answers meanwhile is found when it goes on; else it is lost.
    """

    def __init__(self, host: LocalHost, patch: pytest.MonkeyPatch, *, answered: bool) -> None:
        self._host = host
        self._running = asyncio.Event()
        self._running.set()
        self._answered = answered
        self._ask = host.client._ask
        patch.setattr(host.client, "_ask", self._asked)
        patch.setattr(host, "_hear", lambda: None)  # which is true of those that run

    async def _asked(self, body: bytes) -> bytes:
        answer = await self._ask(body)
        if not self._running.is_set():
            await self._running.wait()
            if not self._answered:
                raise ConnectionError("the connection has been closed")
        return answer

    async def sleep(self) -> None:
        """Until the host has forgotten it."""
        self._running.clear()
        await asyncio.sleep(0.5)  # the call ends meanwhile
        for _ in range(int(SLEEP_S // 10)):
            await self._host.move(10)
        self._host.client.clock.move(SLEEP_S)  # type: ignore[attr-defined]
        self._running.set()


@pytest.mark.parametrize("answered", [True, False], ids=["old answers", "no answers"])
def test_guarantee_5_what_it_had_sent(monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    async def run() -> None:
        async with LocalHost([Account]) as host:
            account = host.get(Account, "a")
            sleeper = Sleeper(host, monkeypatch, answered=answered)
            call = account.slow.remote()
            await asyncio.sleep(0.03)  # it is late
            if answered:  # of before the call had ended, so that only the next one brings it
                asyncio.get_running_loop().call_later(0.05, _answer_empty, host)
            await sleeper.sleep()
            later = account.add.remote()
            with pytest.raises(Unavailable, match="may have taken effect"):
                await asyncio.wait_for(call, 10)
            assert await asyncio.wait_for(later, 10) == 2

    asyncio.run(run())


def test_one_that_had_nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with LocalHost([Account]) as host:
            account = host.get(Account, "a")
            assert await account.add.remote() == 1
            await Sleeper(host, monkeypatch, answered=False).sleep()
            assert await asyncio.wait_for(account.add.remote(), 10) == 2

    asyncio.run(run())


def test_one_whose_host_knows_it_still(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with LocalHost([Account]) as host:
            account = host.get(Account, "a")
            call = account.slow.remote()
            await asyncio.sleep(0.03)
            host.client.clock.move(SLEEP_S)  # type: ignore[attr-defined]
            assert await asyncio.wait_for(account.add.remote(), 10) == 2
            host.client._lost(host.client._session)
            assert await asyncio.wait_for(call, 10) == 1

    asyncio.run(run())


def test_calls_of_objects_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their replies are kept for days."""

    async def run() -> None:
        async with LocalHost([Account]) as host:
            outcomes: dict[str, Any] = {}
            body = values.dump(((), {}))
            await host.get(Account, "a").add.remote()
            sleeper = Sleeper(host, monkeypatch, answered=False)
            for name in ("held", "other"):
                call = Call(0, "Account", name, "slow", PICKLE, body, f"{name}/1")
                call.held = name == "held"
                host.client.send(
                    call, lambda outcome, name=name: outcomes.update({name: outcome}), keep=True
                )
            await asyncio.sleep(0.03)
            await sleeper.sleep()
            await host.get(Account, "a").add.remote()
            while len(outcomes) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert isinstance(outcomes["other"], Unavailable)
            reply = outcomes["held"]
            assert isinstance(reply, Reply)
            assert reply.status == OK
            assert await host.get(Account, "held").add.remote() == 2
            assert await host.get(Account, "other").add.remote() == 2

    asyncio.run(run())


def test_contact() -> None:
    clock = ManualClock()
    contact = Contact(clock)
    asked_at = contact.now()
    clock.move(SENT_AGAIN_WITHIN_S - 1)
    contact.look(3)
    assert contact.forgotten_until == 0
    clock.jump(2)  # a suspension, which the monotonic clock does not count
    contact.look(5)
    assert contact.forgotten_until == 5
    contact.answered(asked_at)  # an old answer
    assert contact.forgotten_until == 5
    contact.look(6)
    assert contact.forgotten_until == 5
    contact.answered(contact.now())
    assert contact.forgotten_until == 0


def _answer_empty(host: LocalHost) -> None:
    """The host answers a standing request though it has nothing for it."""
    assert host.core is not None
    host.core.channels[host.client.id].wake()
