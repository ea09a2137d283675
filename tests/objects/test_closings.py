"""Objects are told that their sockets have closed, whatever their `on_start` raises, and nobody is
told for ever of what there is nobody to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import InvalidCall, RayObjectsError, Unavailable, to_wire
from rayobjects.messages import ERROR, OK, Call, Reply
from rayobjects.serve import farewells
from rayobjects.serve.farewells import Farewells
from rayobjects.testing import LocalHost

FAULTS: dict[str, Any] = {}
"""on_start: what it raises, status or "class"; times: how often, else always."""


class Room(ro.DurableObject):
    left: list[str] = ro.durable(factory=list)

    async def on_start(self) -> None:
        status = FAULTS.get("on_start")
        if status is None:
            return
        FAULTS["raised"] = FAULTS.get("raised", 0) + 1
        if FAULTS["raised"] >= FAULTS.get("times", 1_000):
            del FAULTS["on_start"]
        if status == "class":
            await ro.namespace("Settings").get("room").read.remote()
            return
        raise InvalidCall("its settings are missing", status=status)

    def on_connect(self, ws: ro.WebSocket) -> None: ...

    def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None: ...

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        self.left.append(f"{code} {reason}".strip())

    def gone(self) -> list[str]:
        return self.left

    def open(self) -> int:
        return len(self.sockets)


class Settings(ro.DurableObject):
    def read(self) -> str:
        return "there"


def run(main: Callable[[LocalHost], Awaitable[None]]) -> None:
    FAULTS.clear()

    async def timed() -> None:
        async with LocalHost([Room]) as host:
            await asyncio.wait_for(main(host), 20)

    asyncio.run(timed())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(0)


def count_closings(host: LocalHost) -> list[Call]:
    """Collects the calls of `on_close` of this host's life."""
    core = host.core
    assert core is not None
    submit, calls = core.submit, []

    def counted(call: Call, *rest: Any) -> None:
        if call.method == "on_close":
            calls.append(call)
        submit(call, *rest)

    core.submit = counted  # type: ignore[method-assign]
    return calls


def held(host: LocalHost) -> set[tuple[str, str, str]]:
    """The sockets that the host believes its gateways to hold."""
    assert host.core is not None
    return {entry for each in host.core.gateways.sockets.values() for entry in each}


async def pass_s(host: LocalHost, seconds: int) -> None:
    for _ in range(seconds):
        await host.move(1)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("status", [404, 409, 422, "class"])
def test_a_socket_that_is_found_gone_is_told_when_the_object_can_start(status: Any) -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        await host.connect(room)
        await host.evict(room)
        calls = count_closings(host)
        FAULTS["on_start"] = status
        host.gateway().die()
        await pass_s(host, 60)
        assert 3 <= len(calls) <= 8, "again and again, and later and later"
        assert len(held(host)) == 1
        if status == "class":
            await host.deploy(Settings)
        else:
            del FAULTS["on_start"]
        await pass_s(host, 31)
        assert await room.gone.remote() == ["1006 connection lost"]
        assert await room.open.remote() == 0
        assert not held(host)
        told = len(calls)
        await pass_s(host, 61)
        assert len(calls) == told

    run(main)


@pytest.mark.parametrize("how", ["no class", "takes no sockets"])
def test_where_no_class_takes_sockets_nobody_is_told_again(how: str) -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        await host.connect(room)
        await host.evict(room)
        if how == "no class":
            del host.classes._classes["Room"]
        else:
            await host.deploy(type("Room", (ro.DurableObject,), {}))
        calls = count_closings(host)
        host.gateway().die()
        await pass_s(host, 60)
        assert len(calls) == 1
        assert not held(host)

    run(main)


@pytest.mark.parametrize("status", [404, 409])
def test_a_client_that_closes_waits_until_the_object_knows(status: int) -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        socket = await host.connect(room)
        await host.evict(room)
        FAULTS.update(on_start=status, times=3)
        await socket.close(4000, "bye")
        assert await room.gone.remote() == ["4000 bye"]
        assert FAULTS["raised"] == 3

    run(main)


def test_a_client_that_closes_does_not_wait_for_a_class_that_is_gone() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        socket = await host.connect(room)
        await host.evict(room)
        del host.classes._classes["Room"]
        calls = count_closings(host)
        await socket.close()
        assert len(calls) == 1

    run(main)


# -- the gateway's ------------------------------------------------------------------------------


class Router:
    """Answers each `on_close` with an error until it is told not to."""

    id = "gateway-1"

    def __init__(self, error: RayObjectsError) -> None:
        self.error: RayObjectsError | None = error
        self.classes: dict[str, Any] = {"Room": info("Room")}
        self.calls = 0
        self.read = 0
        self.unreadable = 0
        self.closed: list[tuple[str, str, str]] = []

    def call(self, *call: Any) -> asyncio.Future[Reply]:
        self.calls += 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self.error is None:
            future.set_result(Reply(0, OK, b""))
        else:
            future.set_result(Reply(0, ERROR, to_wire(self.error, with_cause=False)))
        return future

    async def catalog(self) -> dict[str, Any]:
        self.read += 1
        await asyncio.sleep(0)
        if self.unreadable:
            self.unreadable -= 1
            raise Unavailable("Ray's key-value store is away")
        return self.classes

    def socket_closed(self, *entry: Any) -> None:
        self.closed.append(entry)


def info(name: str, *, sockets: bool = True, former: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(name=name, key="Hall", sockets=sockets, former=former)


MISSING = InvalidCall("no class 'Settings' is deployed", status=404)


def farewell(
    main: Callable[[Router, Farewells], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farewells, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(farewells, "RETRY_MAX_S", 0.005)

    async def timed() -> None:
        router = Router(MISSING)
        await asyncio.wait_for(main(router, Farewells(router)), 20)  # type: ignore[arg-type]

    asyncio.run(timed())


@pytest.mark.parametrize("status", [404, 409, 422])
@pytest.mark.parametrize("name", ["Room", "Hall", "Lounge"])
def test_a_gateway_tells_an_object_that_cannot_start_again(
    status: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under whatever name of its class the socket was opened."""

    async def main(router: Router, told: Farewells) -> None:
        router.classes["Room"] = info("Room", former=("Lounge",))
        router.error = InvalidCall("its settings are missing", status=status)
        router.unreadable = 1
        told.tell(name, "lobby", "a", 1000, b"")
        await until(lambda: router.calls == 5)
        assert not router.closed
        router.error = None
        await until(lambda: router.closed)
        assert router.closed == [(name, "lobby", "a")]
        assert router.calls == 6
        assert told.waiting == 0

    farewell(main, monkeypatch)


@pytest.mark.parametrize("classes", [{}, {"Room": info("Room", sockets=False)}])
def test_a_gateway_tells_nobody_again_where_no_class_takes_sockets(
    classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(router: Router, told: Farewells) -> None:
        router.classes = classes
        for socket in range(100):
            told.tell("Room", "lobby", f"{socket}", 1000, b"")
        await until(lambda: len(router.closed) == 100)
        assert router.calls == 100
        assert router.read < 50, "the catalog is read for many at once"
        assert told.waiting == 0

    farewell(main, monkeypatch)
