"""`LocalHost` and its sockets, where a test uses them wrongly or its objects raise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost


class Refused(Exception):
    pass


class Room(ro.DurableObject):
    def on_connect(self, ws: ro.WebSocket) -> None:
        if "no" in ws.query:
            raise Refused("nobody")

    def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        raise Refused(data)


class Quiet(ro.DurableObject):
    seen: int = ro.durable(0)

    def on_connect(self, ws: ro.WebSocket) -> None:
        self.seen += 1
        self.sockets.auto_response("ping", "pong")


def test_a_state_has_only_what_the_class_has_written() -> None:
    async def main() -> None:
        async with LocalHost([Quiet]) as host:
            quiet = host.get(Quiet, "a")
            socket = await host.connect(quiet)
            await socket.send("ping")
            assert socket.received == ["pong"]
            assert await host.state(quiet) == {"attributes": {"seen": 1}, "storage": {}}

    asyncio.run(main())


def test_a_host_that_was_not_opened_says_how() -> None:
    host = LocalHost([Room])
    with pytest.raises(ro.InvalidCall, match="open the host first: `async with LocalHost"):
        host.get(Room, "a")
    with pytest.raises(ro.InvalidCall, match="open the host first"):
        asyncio.run(host.list(Room))
    with pytest.raises(ro.InvalidCall, match="open the host first"):
        asyncio.run(host.move(1))
    with pytest.raises(AttributeError, match="has no attribute 'rooter'"):
        host.rooter  # noqa: B018


def test_two_classes_of_one_name_are_refused() -> None:
    def other() -> Any:
        class Room(ro.DurableObject):
            pass

        return Room

    with pytest.raises(ro.InvalidCall, match="2 classes of the name 'Room'"):
        LocalHost([Room, other()])
    LocalHost([Room, Room])

    async def main() -> None:
        async with LocalHost([Room]) as host:
            await host.deploy(other())  # a new version

    asyncio.run(main())


def test_what_a_socket_raises_has_its_cause() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            socket = await host.connect(host.get(Room, "a"))
            for text in ("first", "second"):
                with pytest.raises(ro.MethodError, match=text) as raised:
                    await socket.send(text)
                assert isinstance(raised.value.cause, Refused)
                assert raised.value.cause.args == (text,)
                assert raised.value.__cause__ is raised.value.cause
            with pytest.raises(ro.MethodError) as raised:
                await host.connect(host.get(Room, "a"), query="no=1")
            assert isinstance(raised.value.cause, Refused)

    asyncio.run(main())


WITHOUT_RAY = """
import asyncio
import sys

import rayobjects as ro
from rayobjects.testing import LocalHost


class Pair(ro.DurableObject):
    async def ask(self, name: str) -> bool:
        other: ro.Stub = ro.namespace("Pair").get(name)
        return await other.answer.remote()

    def answer(self) -> bool:
        return "ray" in sys.modules


async def main() -> None:
    async with LocalHost([Pair]) as host:
        print(await host.get(Pair, "a").ask.remote("b"))


asyncio.run(main())
"""


def test_objects_under_test_call_each_other_without_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
