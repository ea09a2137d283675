"""Windows that a review found, each closed and kept closed."""

from __future__ import annotations

import asyncio

import pytest
from guarantee_objects import GATES, run

import rayobjects as ro
from rayobjects.messages import PICKLE, Call
from rayobjects.objects import deadlocks
from rayobjects.runtime.channel import Channel
from rayobjects.runtime.configuration import Configuration
from rayobjects.runtime.router import Router
from rayobjects.testing import LocalHost, ManualClock


class Partner(ro.DurableObject):
    touched: int = ro.durable(0)

    def touch(self) -> int:
        self.touched += 1
        return self.touched

    async def meet(self, other: str, gate: str) -> int:
        GATES.reached(gate)
        await GATES["together"].wait()
        result: int = await ro.namespace("Partner").get(other).touch.remote()
        return result


class Leaver(ro.DurableObject):
    left: int = ro.durable(0)

    def touch(self) -> None:
        self.left += 1

    def on_stop(self) -> None:
        self.left += 100


class Listener(ro.DurableObject):
    def on_connect(self, ws: ro.WebSocket) -> None:
        pass

    def touch(self) -> None:
        self.storage["touched"] = True


def test_two_objects_that_call_each_other_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is in the other's chain; waiting for ever is not an answer."""
    monkeypatch.setattr(deadlocks, "PROBE_EVERY_S", 0.05)

    async def main() -> None:
        async with LocalHost([Partner]) as host:
            a, b = host.get(Partner, "a"), host.get(Partner, "b")
            meetings = [a.meet.remote("b", "a"), b.meet.remote("a", "b")]
            await GATES.until_reached("a")
            await GATES.until_reached("b")
            GATES["together"].set()

            async def outcome(meeting: object) -> str:
                try:
                    await meeting  # type: ignore[misc]
                except ro.Deadlock:
                    return "deadlock"
                return "met"

            outcomes = await asyncio.gather(*map(outcome, meetings))
            assert sorted(outcomes) == ["deadlock", "met"]
            assert await a.touch.remote() >= 1, "both are free again"
            assert await b.touch.remote() >= 1

    run(main)


def test_a_deleted_object_does_not_come_back_in_on_stop() -> None:
    async def main() -> None:
        async with LocalHost([Leaver]) as host:
            leaver = host.get(Leaver, "x")
            await leaver.touch.remote()
            assert await leaver.delete()
            await host.evict(leaver)
            assert await host.list(Leaver) == []

    run(main)


def test_a_deleted_objects_sockets_are_forgotten() -> None:
    async def main() -> None:
        async with LocalHost([Listener]) as host:
            listener = host.get(Listener, "x")
            await host.connect(listener)
            await listener.touch.remote()
            assert host.core is not None
            assert any(host.core.gateways.sockets.values())
            assert await listener.delete()
            assert not any(host.core.gateways.sockets.values())

    run(main)


def test_numbers_of_calls_to_different_hosts_differ() -> None:
    """Ids of calls are made of them: two calls of one process must never share one."""

    async def main() -> None:
        configuration = Configuration("c", "/nowhere", 2, "shared", 60, 30, "")
        router = Router("r", asyncio.get_running_loop(), configuration, ManualClock())

        async def locate() -> object:
            return await asyncio.Event().wait()

        channels = [Channel(router, host, locate, ManualClock(), 30) for host in ("a", "b")]
        numbers = [
            channel.send(Call(0, "Counter", "x", "increment", PICKLE, b""), lambda outcome: None)
            for channel in channels
            for _ in range(3)
        ]
        assert len(set(numbers)) == 6
        for channel in channels:
            channel.close()

    run(main)
