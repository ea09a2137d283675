"""New versions of a class while its objects live, and `on_upgrade`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.limits import LOAD_WHOLE_KEYS_MAX
from rayobjects.testing import LocalHost


def first() -> type[ro.DurableObject]:
    class Account(ro.DurableObject):
        euros: int = ro.durable(0)

        def pay(self, euros: int) -> int:
            self.euros += euros
            return self.euros

        async def wait(self, gate: str) -> str:
            REACHED[gate].set()
            await OPEN[gate].wait()
            self.euros += 1
            return "first"

        def fill(self, keys: int) -> None:
            for number in range(keys):
                self.storage[f"{number:04}"] = number

        def on_connect(self, ws: Any) -> None:
            ws.send("welcome to the first")

        def on_message(self, ws: Any, data: str) -> None:
            ws.send(f"first {data}")

    return Account


def second(*, fails: bool = False, converts: bool = True) -> type[ro.DurableObject]:
    class Account(ro.DurableObject):
        euros: int = ro.durable(0)
        cents: int = ro.durable(0)
        upgrades: list[int] = ro.durable(factory=list)
        order: list[str] = ro.durable(factory=list)

        def on_upgrade(self, from_version: int) -> None:
            if not converts:
                UPGRADED.append(from_version)
                return
            self.cents = self.euros * 100
            self.upgrades.append(from_version)
            self.order.append("upgrade")
            if fails:
                raise ValueError("not today")

        def on_start(self) -> None:
            self.order.append("start")

        def pay(self, cents: int) -> int:
            self.cents += cents
            return self.cents

        def history(self) -> list[Any]:
            return [self.upgrades, self.order]

        async def wait(self, gate: str) -> str:
            return "second"

        def fill(self, keys: int) -> int:
            return len(self.storage)

        def on_message(self, ws: Any, data: str) -> None:
            ws.send(f"second {data}")

    return Account


UPGRADED: list[int] = []
REACHED: dict[str, asyncio.Event] = {}
OPEN: dict[str, asyncio.Event] = {}


def gate(name: str) -> None:
    REACHED[name], OPEN[name] = asyncio.Event(), asyncio.Event()


@pytest.mark.parametrize("rest", ["memory", "folded", "crash"])
def test_an_object_is_upgraded_once_with_its_first_activation(rest: str) -> None:
    async def run() -> None:
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            assert await home.pay.remote(3) == 3
            await host.deploy(second())
            if rest == "folded":
                await host.fold()
            elif rest == "crash":
                await host.crash()
            assert await home.pay.remote(5) == 305
            await host.evict(home)
            await host.crash()
            assert await home.history.remote() == [[1], ["upgrade", "start", "start"]]
            # One that the second version has made needs no conversion.
            other = host.get("Account", "other")
            assert await other.history.remote() == [[], ["start"]]
            await host.evict(other)
            assert await other.history.remote() == [[], ["start", "start"]]

    asyncio.run(run())


def test_an_upgrade_that_writes_nothing_is_remembered() -> None:
    async def run() -> None:
        UPGRADED.clear()
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            await home.pay.remote(3)
            await host.deploy(second(converts=False))
            for _ in range(3):
                await home.fill.remote(0)
                await host.crash()
            assert UPGRADED == [1]

    asyncio.run(run())


def test_an_upgrade_that_raises_leaves_the_state_and_fails_the_calls() -> None:
    async def run() -> None:
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            await home.pay.remote(3)
            await host.deploy(second(fails=True))
            for _ in range(2):
                with pytest.raises(ro.MethodError, match="on_upgrade raised ValueError"):
                    await home.pay.remote(1)
            await host.crash()
            with pytest.raises(ro.MethodError, match="not today"):
                await home.pay.remote(1)
            await host.deploy(second())
            assert await home.pay.remote(1) == 301
            assert await home.history.remote() == [[1], ["upgrade", "start"]]

    asyncio.run(run())


def test_an_upgrade_that_the_power_cuts_off_begins_again_or_has_been() -> None:
    """At each operation on the files: all of it or nothing, and never twice."""

    async def run(crash_at: int) -> bool:
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            await home.pay.remote(3)
            await host.deploy(second())
            await host.crash()
            host.files.crash_at = len(host.files.steps) + crash_at
            upgraded = home.pay.remote(5)
            died = asyncio.ensure_future(host.death())
            answered = asyncio.ensure_future(_await(upgraded))
            await asyncio.wait({died, answered}, return_when=asyncio.FIRST_COMPLETED)
            cut_off = died.done()
            host.files.crash_at = None
            if cut_off:
                await host.crash()
            assert await upgraded == 305
            upgrades, order = await home.history.remote()
            assert upgrades == [1]
            assert order.count("upgrade") == 1
            died.cancel()
            return cut_off

    step = 0
    while asyncio.run(run(step)):
        step += 1
    assert step > 1


async def _await(response: Any) -> Any:
    return await response


def test_guarantee_2_calls_that_wait_move_over_in_their_order() -> None:
    async def run() -> None:
        gate("busy")
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            running = home.wait.remote("busy")
            waiting = [home.pay.remote(1) for _ in range(3)]
            await REACHED["busy"].wait()
            await host.deploy(second())
            waiting += [home.pay.remote(1) for _ in range(3)]
            await asyncio.sleep(0)
            assert not any(response.done() for response in waiting)
            OPEN["busy"].set()
            assert await running == "first"
            assert [await response for response in waiting] == [101, 102, 103, 104, 105, 106]
        REACHED.clear()
        OPEN.clear()  # they cannot be pickled, and the classes of other tests refer to them

    asyncio.run(run())


def test_a_large_object_moves_too() -> None:
    async def run() -> None:
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            keys = LOAD_WHOLE_KEYS_MAX * 2
            await home.fill.remote(keys)
            await host.evict(home)
            assert await home.pay.remote(2) == 2
            await host.deploy(second())
            assert await home.fill.remote(0) == keys
            assert await home.history.remote() == [[1], ["upgrade", "start"]]

    asyncio.run(run())


def test_guarantee_6_sockets_stay_open_over_versions() -> None:
    async def run() -> None:
        async with LocalHost([first()]) as host:
            home = host.get("Account", "home")
            socket = await host.connect(home)
            assert await socket.receive() == "welcome to the first"
            await socket.send("a")
            assert await socket.receive() == "first a"
            await host.deploy(second())
            await socket.send("b")
            assert await socket.receive() == "second b"
            assert await home.history.remote() == [[1], ["upgrade", "start"]]
            await socket.close()

    asyncio.run(run())
