"""`self.abort`: the call is undone, its caller told, and the activation gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost


class Cache(ro.DurableObject):
    saved: int = ro.durable(0)
    memory = 0  # plain

    def put(self, value: int) -> int:
        self.memory += value
        self.saved += value
        return self.memory

    def both(self) -> tuple[int, int]:
        return self.memory, self.saved

    def give_up(self) -> None:
        self.put(100)
        for socket in self.sockets:
            socket.send("never")
        self.abort("the cache is broken")

    async def give_up_slowly(self, *, stubborn: bool = False) -> str:
        self.put(100)
        await asyncio.sleep(0)
        try:
            self.abort("the cache is broken")
        except BaseException:
            if not stubborn:
                raise
        return "never"

    def give_up_carefully(self) -> str:
        try:
            self.abort("the cache is broken")
        except Exception:
            return "never"

    def on_stop(self) -> None:
        self.saved += 1_000  # a broken object has no say any more

    def on_message(self, ws: Any, data: str) -> None:
        if data == "abort":
            self.abort("by socket")
        ws.send(str(self.both()))


CALLS = [("give_up", {}), ("give_up_slowly", {}), ("give_up_carefully", {})]
CALLS += [("give_up_slowly", {"stubborn": True})]


@pytest.mark.parametrize(("method", "arguments"), CALLS)
def test_guarantee_3_the_call_is_undone_and_memory_gone(
    method: str, arguments: dict[str, Any]
) -> None:
    async def run() -> None:
        async with LocalHost([Cache]) as host:
            cache = host.get(Cache, "one")
            socket = await host.connect(cache)
            assert await cache.put.remote(1) == 1
            before = cache.put.remote(1)
            aborted = getattr(cache, method).remote(**arguments)
            after = cache.put.remote(5)
            assert await before == 2
            with pytest.raises(ro.MethodError, match="abort: the cache is broken") as raised:
                await aborted
            assert raised.value.cause_type == "Aborted"
            assert await after == 5  # a new activation
            assert await cache.both.remote() == (5, 7)
            await socket.send("hello")
            assert await socket.receive() == "(5, 7)"
            await host.crash()
            assert await cache.both.remote() == (0, 7)
            await socket.close()

    asyncio.run(run())


def test_abort_in_a_socket_s_message_and_outside_of_calls() -> None:
    async def run() -> None:
        async with LocalHost([Cache]) as host:
            cache = host.get(Cache, "one")
            socket = await host.connect(cache)
            await cache.put.remote(3)
            with pytest.raises(ro.MethodError, match="abort: by socket"):
                await socket.send("abort")
            await socket.send("hello")
            assert await socket.receive() == "(0, 3)"
            await socket.close()

    asyncio.run(run())
