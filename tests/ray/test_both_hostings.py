"""What an object has and keeps, hosted with others in its shard's actor and in an actor of its own.
The rules themselves are tested in process (tests/objects, tests/guarantees); here, on Ray, that
they hold wherever the object lives."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket as sockets
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
import uvicorn
from ray_cluster import RayCluster, objects_on
from served import wait_until
from websockets.asyncio.client import connect

import rayobjects as ro
from rayobjects.clock import SystemClock
from rayobjects.limits import (
    CALL_BYTES_MAX,
    KEY_BYTES_MAX,
    LOAD_WHOLE_KEYS_MAX,
    VALUE_BYTES_MAX,
    WAITING_CALLS_MAX,
)
from rayobjects.runtime import admin, placement, process
from rayobjects.runtime.gateways import gateway_id
from rayobjects.runtime.router import Router
from rayobjects.serve.gateway import Gateway

WITHIN_S = 30.0

IDLE_S = 2.0
"""Objects leave soon, so that the tests see them leave; nothing else may notice."""

LARGE = 4 * LOAD_WHOLE_KEYS_MAX


@pytest.fixture(scope="module", params=["shared", "dedicated"])
def hosting(request: pytest.FixtureRequest, ray_cluster: RayCluster) -> Iterator[str]:
    with objects_on(ray_cluster, shards=2, hosting=request.param, idle_s=IDLE_S):
        ro.deploy(Box, LivingBox, Room)
        yield request.param


pytestmark = pytest.mark.usefixtures("hosting")


@dataclass
class Point:
    x: int
    y: int


class Box(ro.DurableObject):
    count: int = ro.durable(0)
    items: list[Any] = ro.durable(factory=list)
    anything: Any = ro.durable(None)

    plain = 0

    def everything(self) -> tuple[int, list[Any], Any]:
        return self.count, self.items, self.anything

    def set(self, count: int, item: Any, anything: Any) -> None:
        self.count = count
        self.items.append(item)
        self.anything = anything

    def point(self) -> Point:
        return Point(1, 2)

    def increment(self) -> int:
        self.count += 1
        return self.count

    def change_all_and_raise(self) -> None:
        self.set(-1, "lost", "lost")
        self.storage["kept"] = "lost"
        self.storage["new"] = "lost"
        self.storage.pop("other", None)
        self.plain += 1
        raise RuntimeError("after all of it")

    def plain_attribute(self) -> int:
        return self.plain

    def run(self, operations: Callable[[MutableMapping[str, Any]], Any]) -> Any:
        """Runs a function on the storage."""
        return operations(self.storage)

    def put(self, key: str, value: Any) -> None:
        self.storage[key] = value

    def put_bytes(self, size: int) -> None:
        self.count = -1
        self.storage["big"] = b"x" * size

    def answer(self, size: int) -> bytes:
        self.count = -1
        return b"x" * size

    def key_of(self, characters: int) -> None:
        self.count = -1
        self.storage["k" * characters] = 1

    async def wait_for(self, path: str) -> None:
        while not await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.01)


class LivingBox(Box):
    starts: int = ro.durable(0)
    stops: int = ro.durable(0)

    def on_start(self) -> None:
        self.starts += 1

    def on_stop(self) -> None:
        self.stops += 1

    def life(self) -> tuple[int, int]:
        return self.starts, self.stops


_numbers = itertools.count()


def box(class_name: str = "Box") -> ro.Stub:
    """A box that no other test has."""
    return ro.namespace(class_name).get(f"box {next(_numbers)}")


def host_of(stub: ro.Stub, hosting: str) -> str:
    if hosting == "dedicated":
        return str(stub.id)
    return placement.shard_host(placement.shard_of(stub.id, 2))


def kill_host(stub: ro.Stub, hosting: str) -> None:
    """Kills the process in which the object lives."""
    (pid,) = [
        each.figures["pid"] for each in admin.status().hosts if each.name == host_of(stub, hosting)
    ]
    killed = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    killed.wait(WITHIN_S)


# -- state -----------------------------------------------------------------------------------------


def test_durable_attributes(hosting: str) -> None:
    home = box()
    assert home.everything.remote().result(WITHIN_S) == (0, [], None)
    others = [{"a": [1, 2.5, None]}, {1, 2}, Point(1, 2), datetime(2026, 1, 2), b"\x00", 10**30]
    for number, value in enumerate(others, start=1):
        home.set.remote(number, value, value).result(WITHIN_S)
        assert home.everything.remote().result(WITHIN_S) == (number, others[:number], value)
    kill_host(home, hosting)
    assert home.everything.remote().result(WITHIN_S) == (len(others), others, others[-1])


class Sorted(dict[str, Any]):
    """What `self.storage` promises, as a dict that can be compared with it."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.keys()))

    def list(
        self,
        prefix: str = "",
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> dict[str, Any]:
        found = [
            key
            for key in sorted(self.keys(), reverse=reverse)
            if key.startswith(prefix)
            and (start is None or key >= start)
            and (end is None or key < end)
        ]
        return {key: self[key] for key in found[:limit]}

    def delete_all(self) -> None:
        self.clear()


def changes(size: int) -> Callable[[Any], list[Any]]:
    def operations(storage: Any) -> list[Any]:
        results: list[Any] = [bool(storage), len(storage)]
        for number in range(size):
            storage[f"key/{number:05}"] = number
        storage.update({"ä": 1, "z": [1], "key": "itself"})
        results += [storage.pop("z"), storage.pop("z", "default"), storage.setdefault("y", 2)]
        results += [storage.setdefault("y", 3), storage.get("nothing"), storage.get("no", 7)]
        del storage["key/00001"]
        storage["key/00002"] = "overwritten"
        results += ["key/00001" in storage, "key/00002" in storage, bool(storage), len(storage)]
        for key in ("key/00001", "nothing"):
            try:
                results.append(storage[key])
            except KeyError as error:
                results.append(repr(error))
        return results

    return operations


def looks(size: int) -> Callable[[Any], list[Any]]:
    last = f"key/{size - 1:05}"

    def operations(storage: Any) -> list[Any]:
        return [
            len(storage),
            sorted(storage.keys()) == list(storage),
            list(itertools.islice(storage, 3)),
            storage[last],
            storage["key/00002"],
            storage.get("key/00001"),
            list(storage.list(limit=3).items()),
            list(storage.list(prefix="key/", limit=3).items()),
            list(storage.list(prefix="key/", reverse=True, limit=3).items()),
            list(storage.list(start=last).items()),
            list(storage.list(end="key/00004").items()),
            list(storage.list(prefix="key/", start="key/00003", end="key/00006", limit=2).items()),
            len(storage.list()),
            storage.list(limit=0),
            sum(isinstance(value, int) for value in storage.values()),
        ]

    return operations


@pytest.mark.parametrize("size", [10, LARGE], ids=["whole", "by key"])
def test_storage(hosting: str, size: int) -> None:
    """Every operation, on an object that is loaded whole and on one that is read by key; in one
    call, and again when the object has come back from the disk."""
    home, model = box(), Sorted()
    assert home.run.remote(changes(size)).result(WITHIN_S) == changes(size)(model)
    assert home.run.remote(looks(size)).result(WITHIN_S) == looks(size)(model)
    kill_host(home, hosting)
    assert home.run.remote(looks(size)).result(WITHIN_S) == looks(size)(model)
    assert (
        home.run.remote(lambda storage: list(reversed(storage))[:3]).result(WITHIN_S)
        == (sorted(model, reverse=True)[:3])
    )
    assert home.run.remote(changes(size)).result(WITHIN_S) == changes(size)(model)
    assert home.run.remote(looks(size)).result(WITHIN_S) == looks(size)(model)
    home.run.remote(lambda storage: storage.delete_all()).result(WITHIN_S)
    assert home.run.remote(lambda storage: (len(storage), dict(storage))).result(WITHIN_S) == (
        0,
        {},
    )
    assert home.everything.remote().result(WITHIN_S) == (0, [], None)  # attributes stay


@pytest.mark.parametrize("size", [2, LARGE], ids=["whole", "by key"])
def test_guarantee_3_a_call_that_raises_leaves_nothing(size: int) -> None:
    home = box()
    home.set.remote(1, "kept", "kept").result(WITHIN_S)
    home.put.remote("kept", "kept").result(WITHIN_S)
    home.run.remote(
        lambda storage: storage.update({f"other/{number}": number for number in range(size)})
    ).result(WITHIN_S)
    home.put.remote("other", "kept").result(WITHIN_S)
    for _ in range(2):
        with pytest.raises(ro.MethodError, match="RuntimeError: after all of it"):
            home.change_all_and_raise.remote().result(WITHIN_S)
    assert home.everything.remote().result(WITHIN_S) == (1, ["kept"], "kept")
    assert home.run.remote(
        lambda storage: (storage["kept"], storage["other"], "new" in storage, len(storage))
    ).result(WITHIN_S) == ("kept", "kept", False, size + 2)
    assert home.plain_attribute.remote().result(WITHIN_S) == 2  # that one does not roll back


# -- life ------------------------------------------------------------------------------------------


def test_an_idle_object_leaves_and_comes_back(hosting: str) -> None:
    home = box("LivingBox")
    home.set.remote(1, "item", None).result(WITHIN_S)
    home.put.remote("key", "value").result(WITHIN_S)
    assert home.life.remote().result(WITHIN_S) == (1, 0)

    def has_left() -> bool:
        figures = [
            each.figures for each in admin.status().hosts if each.name == host_of(home, hosting)
        ]
        return not figures or figures[0].get("live") == 0

    wait_until(has_left, "the object has left")
    assert home.life.remote().result(WITHIN_S) == (2, 1)
    assert home.everything.remote().result(WITHIN_S) == (1, ["item"], None)
    assert home.run.remote(dict).result(WITHIN_S) == {"key": "value"}
    if hosting == "dedicated":  # the actor itself goes, too
        wait_until(lambda: str(home.id) not in placement.live_hosts(), "the actor has ended")
        assert home.increment.remote().result(WITHIN_S) == 2


def test_a_deleted_object_begins_anew() -> None:
    boxes = ro.namespace("Box")
    for name in ("list/b", "list/a", "list/c"):
        boxes.get(name).set.remote(1, name, name).result(WITHIN_S)
        boxes.get(name).put.remote("key", "value").result(WITHIN_S)
    assert boxes.list(prefix="list/") == ["list/a", "list/b", "list/c"]
    assert boxes.list(prefix="list/", after="list/a", limit=1) == ["list/b"]
    assert boxes.get("list/b").delete().result(WITHIN_S)
    assert not boxes.get("list/b").delete().result(WITHIN_S)
    assert boxes.list(prefix="list/") == ["list/a", "list/c"]
    assert boxes.get("list/b").everything.remote().result(WITHIN_S) == (0, [], None)
    assert boxes.get("list/b").run.remote(dict).result(WITHIN_S) == {}


# -- limits (guarantee 8) --------------------------------------------------------------------------


def test_what_is_too_large_is_refused_and_leaves_nothing() -> None:
    home = box()
    home.put_bytes.remote(VALUE_BYTES_MAX - 1_000).result(WITHIN_S)
    home.set.remote(1, "item", None).result(WITHIN_S)
    too_large = [
        lambda: home.put_bytes.remote(VALUE_BYTES_MAX + 1),
        lambda: home.answer.remote(CALL_BYTES_MAX + 1),
        lambda: home.key_of.remote(KEY_BYTES_MAX + 1),
        lambda: home.put.remote("key", b"x" * (CALL_BYTES_MAX + 1)),
    ]
    for call in too_large:
        with pytest.raises(ro.InvalidCall, match="at most"):
            call().result(WITHIN_S)
    assert home.everything.remote().result(WITHIN_S) == (1, ["item"], None)
    assert home.run.remote(lambda storage: list(storage)).result(WITHIN_S) == ["big"]


def test_too_many_waiting_calls_are_refused(tmp_path: Path) -> None:
    home = box()
    assert home.increment.remote().result(WITHIN_S) == 1  # it is live
    slow = home.wait_for.remote(str(tmp_path / "now"))
    calls = [home.increment.remote() for _ in range(WAITING_CALLS_MAX + 10)]
    for refused in calls[WAITING_CALLS_MAX:]:
        with pytest.raises(ro.Overloaded, match="back off"):
            refused.result(WITHIN_S)
    (tmp_path / "now").touch()
    slow.result(WITHIN_S)
    counts = [call.result(WITHIN_S) for call in calls[:WAITING_CALLS_MAX]]
    assert counts == list(range(2, WAITING_CALLS_MAX + 2))


# -- a gateway: ids of calls, sockets --------------------------------------------------------------


class Room(ro.DurableObject):
    said: list[str] = ro.durable(factory=list)

    def on_connect(self, ws: ro.WebSocket) -> None:
        if ws.query.get("name") == "nobody":
            ws.close(4001, "no")
            return
        ws.attachment = {"name": ws.query["name"]}
        self.sockets.broadcast(f"{ws.query['name']} came", exclude=ws)

    def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        if isinstance(data, bytes):
            ws.send(data[::-1])
            return
        self.said.append(data)
        self.sockets.broadcast(f"{ws.attachment['name']}: {data}")
        if data == "oops":
            raise ValueError("nobody hears of it")

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        self.sockets.broadcast(f"{ws.attachment['name']} left with {code} {reason}", exclude=ws)

    def history(self) -> list[str]:
        return self.said

    def people(self) -> list[str]:
        return [ws.attachment["name"] for ws in self.sockets]


@asynccontextmanager
async def gateway() -> AsyncIterator[str]:
    """A gateway of this process's, without Ray Serve; yields its address."""
    router = Router(
        gateway_id(process.new_router_id()),
        asyncio.get_running_loop(),
        process.router().configuration,
        SystemClock(),
    )
    configuration = uvicorn.Config(
        Gateway(router),  # type: ignore[arg-type]
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(configuration)
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
            await router.close()


def test_guarantee_5_a_call_that_comes_again(hosting: str) -> None:
    """Gets the reply of the first time, also from a host that was not there then."""
    home = box()

    async def main() -> None:
        async with gateway() as address, httpx.AsyncClient(timeout=WITHIN_S) as client:

            async def increment(key: str) -> int:
                path = f"/objects/Box/{quote(home.id.name)}/increment"
                headers = {"Idempotency-Key": key}
                answer = await client.post(f"http://{address}{path}", headers=headers)
                assert answer.status_code == 200, answer.text
                return int(answer.json())

            assert [await increment(key) for key in ("a", "b", "a", "b")] == [1, 2, 1, 2]
            await asyncio.to_thread(kill_host, home, hosting)
            assert [await increment(key) for key in ("a", "b", "c")] == [1, 2, 3]

        ordered = home.options(idempotency_key="from Python")
        assert [await ordered.increment.remote() for _ in range(2)] == [4, 4]
        await asyncio.to_thread(kill_host, home, hosting)
        assert [await ordered.increment.remote(), await home.increment.remote()] == [4, 5]

    asyncio.run(asyncio.wait_for(main(), 2 * WITHIN_S))


def test_guarantee_6_sockets(hosting: str) -> None:
    """Open, text and bytes, broadcast, an error that sends nothing, a killed host, a sleeping
    object, the end; over the same two WebSockets all the time."""
    lobby = ro.namespace("Room").get("the lobby")

    async def main() -> None:
        async with gateway() as address:
            url = f"ws://{address}/objects/Room/the%20lobby"
            async with connect(f"{url}?name=nobody") as nobody:
                await nobody.wait_closed()
                assert (nobody.close_code, nobody.close_reason) == (4001, "no")
            async with connect(f"{url}?name=ann") as ann, connect(f"{url}?name=bob") as bob:
                assert await ann.recv() == "bob came"
                await ann.send(b"\x01\x02")
                assert await ann.recv() == b"\x02\x01"
                for number in range(6):
                    if number == 3:
                        await asyncio.to_thread(kill_host, lobby, hosting)
                    await (ann, bob)[number % 2].send(f"{number}")
                    await bob.send("oops")  # rolled back, with what it had sent
                heard = [await ann.recv() for _ in range(6)]
                assert [await bob.recv() for _ in range(6)] == heard
                assert [text for text in heard if text.startswith("ann")] == [
                    f"ann: {number}" for number in (0, 2, 4)
                ]
                assert [text for text in heard if text.startswith("bob")] == [
                    f"bob: {number}" for number in (1, 3, 5)
                ]
                said = [text.partition(": ")[2] for text in map(str, heard)]
                assert await lobby.history.remote() == said
                await asyncio.to_thread(wait_until, asleep, "the object sleeps")
                await ann.send("good morning")
                assert [await ann.recv(), await bob.recv()] == ["ann: good morning"] * 2
                assert await lobby.people.remote() == ["ann", "bob"]
                await ann.close(4002, "enough")
                assert await bob.recv() == "ann left with 4002 enough"
                assert await lobby.people.remote() == ["bob"]

    def asleep() -> bool:
        (figures,) = [
            each.figures for each in admin.status().hosts if each.name == host_of(lobby, hosting)
        ]
        assert figures["sockets"] == 2
        return bool(figures["live"] == 0)

    asyncio.run(asyncio.wait_for(main(), 2 * WITHIN_S))
