"""Guarantee 3: what a call writes and sends takes effect together, or not at all if it raises."""

from __future__ import annotations

import asyncio

import pytest
from guarantee_objects import Counter, run

import rayobjects as ro
from rayobjects.errors import InvalidCall, MethodError
from rayobjects.limits import VALUE_BYTES_MAX
from rayobjects.testing import LocalHost


class Desk(ro.DurableObject):
    """Writes into everything that it has, then raises if it is told to."""

    total: int = ro.durable(0)
    tags: list[str] = ro.durable(factory=list)

    def on_connect(self, ws: ro.WebSocket) -> None:
        ws.attachment = {"messages": 0}

    def on_message(self, ws: ro.WebSocket, data: str) -> None:
        ws.attachment["messages"] += 1
        self.write(data)

    def write(self, data: str) -> int:
        self.total += 1
        self.tags.append(data)
        self.storage["last"] = data
        self.storage[data] = {"nested": [data]}
        self.sockets.broadcast(data)
        if data.startswith("bad"):
            raise ValueError(data)
        if data.startswith("close"):
            for socket in self.sockets:
                socket.close(4000, "as asked")
        return self.total

    async def write_slowly(self, data: str) -> int:
        await asyncio.sleep(0)
        return self.write(data)

    def close_and_raise(self) -> None:
        for socket in self.sockets:
            socket.close()
        raise ValueError("no")

    def attachments(self) -> list[int]:
        return [socket.attachment["messages"] for socket in self.sockets]


@pytest.mark.parametrize("method", ["write", "write_slowly"])
@pytest.mark.parametrize("then", ["nothing", "crash", "evict"])
def test_guarantee_3_a_call_that_raises_leaves_nothing(method: str, then: str) -> None:
    async def main() -> None:
        async with LocalHost([Desk]) as host:
            desk = host.get(Desk, "a")
            socket = await host.connect(desk)
            assert await getattr(desk, method).remote("good") == 1
            with pytest.raises(MethodError, match="bad news") as caught:
                await getattr(desk, method).remote("bad news")
            assert isinstance(caught.value.cause, ValueError)
            if then == "crash":
                await host.crash()
            elif then == "evict":
                await host.evict(desk)
            assert await host.state(desk) == {
                "attributes": {"total": 1, "tags": ["good"]},
                "storage": {"last": "good", "good": {"nested": ["good"]}},
            }
            assert await getattr(desk, method).remote("better") == 2
            await host.settled()
            assert socket.received == ["good", "better"]

    run(main)


def test_guarantee_3_a_message_that_raises_leaves_nothing_and_the_socket_open() -> None:
    async def main() -> None:
        async with LocalHost([Desk]) as host:
            desk = host.get(Desk, "a")
            socket, other = await host.connect(desk), await host.connect(desk)
            with pytest.raises(MethodError):
                await socket.send("bad")
            assert await desk.attachments.remote() == [0, 0]
            await socket.send("good")
            assert await desk.attachments.remote() == [1, 0]
            assert socket.received == other.received == ["good"]

    run(main)


class Huge(ro.DurableObject):
    written: int = ro.durable(0)

    def write(self, size: int) -> None:
        self.written = 1
        self.storage["huge"] = b"x" * size

    def read(self) -> int:
        return self.written

    def unsendable(self) -> object:
        self.written = 1
        return asyncio.get_running_loop()  # cannot be pickled


def test_guarantee_3_what_cannot_be_stored_undoes_the_rest() -> None:
    async def main() -> None:
        async with LocalHost([Huge]) as host:
            stub = host.get(Huge, "a")
            with pytest.raises(InvalidCall, match="huge"):
                await stub.write.remote(VALUE_BYTES_MAX + 1)
            with pytest.raises((InvalidCall, MethodError)):
                await stub.unsendable.remote()
            assert await stub.read.remote() == 0
            assert await host.list(Huge) == []

    run(main)


def test_guarantee_3_closing_a_socket_is_part_of_the_call() -> None:
    async def main() -> None:
        async with LocalHost([Desk]) as host:
            desk = host.get(Desk, "a")
            socket = await host.connect(desk)
            with pytest.raises(MethodError):
                await desk.close_and_raise.remote()
            assert socket.closed is None
            await desk.write.remote("close")
            await host.settled()
            assert socket.received == ["close"]
            assert socket.closed == (4000, "as asked")
            assert await desk.attachments.remote() == []

    run(main)


def test_guarantee_3_delete_takes_everything() -> None:
    async def main() -> None:
        async with LocalHost([Desk]) as host:
            desk = host.get(Desk, "a")
            socket = await host.connect(desk)
            await socket.send("good")
            assert await desk.delete() is True
            await host.settled()
            assert socket.closed is not None
            assert await host.list(Desk) == []
            await host.crash()
            assert await host.list(Desk) == []
            assert await desk.attachments.remote() == []
            assert await desk.write.remote("new") == 1
            assert await desk.delete() is True
            assert await desk.delete() is False

    run(main)


def test_guarantee_3_plain_attributes_do_not_roll_back() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            await stub.increment.remote()
            with pytest.raises(MethodError):
                await stub.fail.remote()
            assert await stub.ran.remote() == 1
            assert await stub.read.remote() == 1
            assert await stub.keys.remote() == []

    run(main)


class Archive(ro.DurableObject):
    def put(self, first: int, count: int, size: int) -> None:
        for number in range(first, first + count):
            self.storage[f"{number:05}"] = "x" * size

    def drop(self, count: int) -> None:
        for number in range(count):
            del self.storage[f"{number:05}"]

    def drop_and_read(self, count: int) -> int:
        self.drop(count)
        return sum(len(value) for value in self.storage.values())

    def drop_all_that_is_listed(self, count: int) -> None:
        for key in list(self.storage)[:count]:
            del self.storage[key]

    def keys(self) -> list[str]:
        return list(self.storage)


@pytest.mark.parametrize(
    ("method", "keys", "size", "dropped"),
    [
        ("drop", 3_000, 10, 2_500),
        ("drop", 4, 5_000_000, 2),
        ("drop_and_read", 3_000, 10, 1),
        ("drop_all_that_is_listed", 3_000, 10, 2_900),
    ],
)
@pytest.mark.parametrize("folded", [True, False])
def test_guarantee_3_keys_of_a_large_object_are_deleted_however_many(
    method: str, keys: int, size: int, dropped: int, folded: bool
) -> None:
    """Also those that the object has read and does not remember any more."""

    async def main() -> None:
        async with LocalHost([Archive]) as host:
            archive = host.get(Archive, "a")
            page = max(1, min(keys, 4_000_000 // size))
            for first in range(0, keys, page):
                await archive.put.remote(first, min(page, keys - first), size)
            await host.kill()
            if folded:
                await host.fold()
            await getattr(archive, method).remote(dropped)
            left = [f"{number:05}" for number in range(dropped, keys)]
            assert await archive.keys.remote() == left
            await host.kill()
            assert await archive.keys.remote() == left

    run(main)
