"""Objects and their ids, with both hostings: new names, what exists, what is deleted, who gives
up."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal

import pytest
from ray_sockets import Sockets

import rayobjects as ro
from rayobjects.runtime import admin, placement

pytestmark = pytest.mark.timeout(300)

WITHIN_S = 60.0


class Room(ro.DurableObject):
    said: list[str] = ro.durable(factory=list)
    memory = 0  # plain

    def say(self, text: str) -> int:
        self.memory += 1
        self.said.append(text)
        return self.memory

    def both(self) -> tuple[int, list[str]]:
        return self.memory, self.said

    def give_up(self) -> None:
        self.say("never")
        self.abort("too tired")

    async def open_rooms(self, count: int) -> list[str]:
        rooms = [ro.namespace("Room").create() for _ in range(count)]
        for room in rooms:
            await room.say.remote("hello")
        return [room.id.name for room in rooms]

    async def look(self, name: str) -> tuple[bool, list[str]]:
        rooms = ro.namespace("Room")
        return await rooms.exists_async(name), await rooms.list_async(prefix=name, limit=1)

    def look_now(self, name: str) -> tuple[bool, list[str]]:
        rooms = ro.namespace("Room")
        return rooms.exists(name), rooms.list(prefix=name, limit=1)

    def on_message(self, ws: object, data: str) -> None:
        ws.send(f"{self.say(data)} {len(self.said)}")  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def rooms(hosting: str) -> ro.Namespace[Room]:
    namespace: ro.Namespace[Room] = ro.deploy(Room)
    return namespace


def test_new_names(rooms: ro.Namespace[Room]) -> None:
    made = [rooms.create() for _ in range(3)]
    names = [stub.id.name for stub in made]
    assert len(set(names)) == 3
    assert all(len(name) == 32 for name in names)
    assert not rooms.exists(names[0])
    assert made[0].say.remote("hello").result(WITHIN_S) == 1
    assert rooms.exists(names[0])
    assert pickle.loads(pickle.dumps(made[0])).both.remote().result(WITHIN_S) == (1, ["hello"])
    opened = rooms.get("opener").open_rooms.remote(2).result(WITHIN_S)
    assert len({*names, *opened}) == 5
    assert all(map(rooms.exists, opened))


def test_what_exists(rooms: ro.Namespace[Room], hosting: str) -> None:
    for name in ("exists/b", "exists/a", "exists/c", "exists"):
        rooms.get(name).say.remote("hello").result(WITHIN_S)
    rooms.get("exists/never").both.remote().result(WITHIN_S)
    assert rooms.list(prefix="exists/") == ["exists/a", "exists/b", "exists/c"]
    assert rooms.list(prefix="exists", limit=2) == ["exists", "exists/a"]
    assert rooms.list(prefix="exists", after="exists/a", limit=1) == ["exists/b"]
    assert [rooms.exists(name) for name in ("exists", "exists/a", "exists/never", "exist")] == [
        True,
        True,
        False,
        False,
    ]

    async def look() -> tuple[bool, bool, list[str]]:
        listed = await rooms.list_async(prefix="exists/", limit=1)
        return await rooms.exists_async("exists"), await rooms.exists_async("exist"), listed

    assert asyncio.run(look()) == (True, False, ["exists/a"])
    assert rooms.get("looker").look.remote("exists/c").result(WITHIN_S) == (True, ["exists/c"])
    now = rooms.get("looker").look_now.remote("exists/c")
    if hosting == "shared":  # it would hold up the very loop that brings the answer
        with pytest.raises(ro.MethodError, match=r"use `await namespace.exists_async\(…\)`"):
            now.result(WITHIN_S)
    else:
        assert now.result(WITHIN_S) == (True, ["exists/c"])
    for limit in (0, -1, 1_001, "many"):
        with pytest.raises(ro.InvalidCall, match="limit is a whole number from 1 to 1,000"):
            rooms.list(limit=limit)  # type: ignore[arg-type]
    with pytest.raises(ro.InvalidCall, match="must not be empty"):
        rooms.exists("")
    with pytest.raises(ro.InvalidCall, match="no class 'Nothing' is deployed"):
        ro.namespace("Nothing").exists("one")
    with pytest.raises(ro.InvalidCall, match="no class 'Nothing' is deployed"):
        ro.namespace("Nothing").list()


def test_a_deleted_object(rooms: ro.Namespace[Room]) -> None:
    room = rooms.get("deleted")
    with Sockets() as sockets:
        socket = sockets.connect(room)
        assert socket.say("a") == "1 1"
        assert room.delete().result(WITHIN_S)
        socket.wait(lambda: socket.closed is not None)
        assert not rooms.exists("deleted")
        assert not room.delete().result(WITHIN_S)
        with pytest.raises(ro.InvalidCall, match="does not know this socket"):
            socket.tell("on_message", "b")
        kill(room)
        assert room.both.remote().result(WITHIN_S) == (0, [])


def test_an_object_that_gives_up_begins_anew(rooms: ro.Namespace[Room]) -> None:
    room = rooms.get("aborted")
    with Sockets() as sockets:
        socket = sockets.connect(room)
        assert socket.say("a") == "1 1"
        calls = [room.say.remote("b"), room.give_up.remote(), room.say.remote("c")]
        assert calls[0].result(WITHIN_S) == 2
        with pytest.raises(ro.MethodError, match="give_up was ended by abort: too tired") as raised:
            calls[1].result(WITHIN_S)
        assert raised.value.cause_type == "Aborted"
        assert calls[2].result(WITHIN_S) == 1
        assert room.both.remote().result(WITHIN_S) == (1, ["a", "b", "c"])
        assert socket.say("d") == "2 4"
        assert socket.closed is None


def kill(stub: ro.Stub) -> None:
    """Kills the processes that have the object and its state."""
    names = {str(stub.id), placement.shard_host(placement.shard_of(stub.id, 2))}
    for host in admin.status().hosts:
        if host.name in names and "pid" in host.figures:
            os.kill(host.figures["pid"], signal.SIGKILL)
