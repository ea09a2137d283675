"""A caller's process that stood still (stopped by a signal, or with a laptop's lid closed) for
longer than replies are kept: what it had sent is not applied a second time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_double import until

import rayobjects as ro
from rayobjects.errors import Unavailable
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import OK, PICKLE, Call, Reply
from rayobjects.objects.contact import SENT_AGAIN_WITHIN_S, Contact
from rayobjects.storage import values
from rayobjects.testing import LocalHost, ManualClock

SLEEP_S = FINISHED_WINDOW_S + 60.0


GATES: dict[str, asyncio.Event] = {}
"""Empty while the class is being pickled, together with what it uses."""


@pytest.fixture(autouse=True)
def _closed() -> None:
    GATES.clear()


def gate() -> asyncio.Event:
    """What slow calls wait for."""
    return GATES.setdefault("end", asyncio.Event())


class Account(ro.DurableObject):
    total: int = ro.durable(0)

    async def slow(self) -> int:
        self.total += 1
        await gate().wait()
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
        self._holds = False
        self._ask = host.client._ask
        patch.setattr(host.client, "_ask", self._asked)
        patch.setattr(host, "_hear", lambda: None)  # which is true of those that run

    async def _asked(self, body: bytes) -> bytes:
        answer = await self._ask(body)
        if not self._running.is_set():
            self._holds = True
            await self._running.wait()
            if not self._answered:
                raise ConnectionError("the connection has been closed")
        return answer

    async def sleep(self, late: int = 0) -> None:
        """Until the host has forgotten it.

        Args:
            late: so many calls are under way, and end meanwhile.
        """
        client, core = self._host.client, self._host.core
        assert core is not None
        if late:  # it has asked for their replies
            await until(lambda: len(client._late) == late)
            await until(lambda: core.channels[client.id]._poll is not None)
        self._running.clear()
        if late and self._answered:  # of before they had ended, so that only the next one has them
            core.channels[client.id].wake()
            await until(lambda: self._holds)
        gate().set()
        await until(
            lambda: not any(each.busy or each.pending for each in core.activations.values())
        )
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
            await sleeper.sleep(late=1)
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
            await until(lambda: host.client._late)
            host.client.clock.move(SLEEP_S)  # type: ignore[attr-defined]
            gate().set()
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
            await sleeper.sleep(late=2)
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
