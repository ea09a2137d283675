"""An object's life on its host: waking, sleeping, large objects, classes that change or fail."""

from __future__ import annotations

import asyncio
import threading
from unittest import mock

import pytest
from guarantee_objects import GATES, Counter, run, ticks

import rayobjects as ro
from rayobjects.errors import InvalidCall, MethodError
from rayobjects.limits import FINISHED_WINDOW_S, LOAD_WHOLE_KEYS_MAX
from rayobjects.storage.reading import Reading
from rayobjects.testing import LocalHost, LocalStub


class Diary(ro.DurableObject):
    """Writes down what happens to it."""

    lines: list[str] = ro.durable(factory=list)

    async def on_start(self) -> None:
        await asyncio.sleep(0)
        self.lines.append("start")

    def on_stop(self) -> None:
        self.lines.append("stop")

    def on_connect(self, ws: ro.WebSocket) -> None:
        self.lines.append("connect")

    def on_message(self, ws: ro.WebSocket, data: str) -> None:
        self.lines.append(data)
        ws.send(data.upper())

    def read(self) -> list[str]:
        return self.lines

    async def pause(self, gate: str) -> list[str]:
        GATES.reached(gate)
        await GATES[gate].wait()
        return self.lines


class Archive(ro.DurableObject):
    """Holds more than is loaded whole."""

    size: int = ro.durable(0)

    def fill(self, count: int) -> int:
        for number in range(self.size, self.size + count):
            self.storage[f"{number:06d}"] = number
        self.size += count
        return len(self.storage)

    def take(self, key: str) -> int | None:
        return self.storage.get(key)

    def add(self, key: str, by: int) -> int:
        self.storage[key] = self.storage[key] + by
        return self.storage[key]

    def fail(self) -> None:
        del self.storage["000000"]
        self.storage["000001"] = -1
        raise ValueError("no")

    def thread(self) -> str:
        return threading.current_thread().name

    def first(self, count: int) -> list[str]:
        return [key for key, _ in zip(self.storage, range(count), strict=False)]

    async def call(self, other: LocalStub) -> int:
        result: int = await other.increment.remote(self.size)
        return result

    def count(self) -> int:
        return len(self.storage)


def test_idle_objects_leave_and_come_back() -> None:
    async def main() -> None:
        async with LocalHost([Diary], idle_s=60) as host:
            stub = host.get(Diary, "a")
            assert await stub.read.remote() == ["start"]
            await host.move(30)
            assert await stub.read.remote() == ["start"]
            await host.move(59)
            assert host.is_live(stub)
            await host.move(2)
            await ticks()
            assert not host.is_live(stub)
            assert await stub.read.remote() == ["start", "stop", "start"]
            await host.crash()  # no on_stop
            assert await stub.read.remote() == ["start", "stop", "start", "start"]

    run(main)


def test_idle_objects_leave_though_their_sockets_are_open() -> None:
    async def main() -> None:
        async with LocalHost([Diary]) as host:
            stub = host.get(Diary, "a")
            socket = await host.connect(stub)
            await socket.send("x")
            await host.move(3_600)
            await ticks()
            assert not host.is_live(stub)
            await socket.send("hello")
            assert socket.received == ["X", "HELLO"]
            assert await stub.read.remote() == ["start", "connect", "x", "stop", "start", "hello"]

    run(main)


def test_a_running_call_is_not_idle() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            slow = stub.wait.remote("gate")
            await GATES.until_reached("gate")
            await host.move(FINISHED_WINDOW_S + 1)
            assert host.is_live(stub)
            GATES["gate"].set()
            assert await slow == 1
            assert await stub.ran.remote() == 0

    run(main)


def test_evicted_between_two_calls() -> None:
    async def main() -> None:
        async with LocalHost([Diary]) as host:
            stub = host.get(Diary, "a")
            await stub.read.remote()
            slow = stub.pause.remote("gate")
            await GATES.until_reached("gate")
            behind = stub.read.remote()
            evicted = asyncio.ensure_future(host.evict(stub))
            await ticks()
            assert not evicted.done()
            GATES["gate"].set()
            await evicted
            assert await slow == ["start"]
            assert await behind == ["start", "stop", "start"]

    run(main)


def test_the_end_of_the_host_stops_its_objects(tmp_path: object) -> None:
    async def main() -> None:
        async with LocalHost([Diary], str(tmp_path)) as host:
            await host.get(Diary, "a").read.remote()
        async with LocalHost([Diary], str(tmp_path)) as host:
            assert await host.get(Diary, "a").read.remote() == ["start", "stop", "start"]

    run(main)


def test_on_start_that_fails_fails_the_calls_and_is_tried_again() -> None:
    broken = [True, True]

    class Fragile(ro.DurableObject):
        started: int = ro.durable(0)

        def on_start(self) -> None:
            self.started += 1
            if broken:
                broken.pop()
                raise OSError("no connection")

        def read(self) -> int:
            return self.started

    async def main() -> None:
        async with LocalHost([Fragile]) as host:
            stub = host.get(Fragile, "a")
            for _ in range(2):
                with pytest.raises(MethodError, match="on_start raised OSError: no connection"):
                    await stub.read.remote()
            assert await stub.read.remote() == 1

    run(main)


def test_on_stop_that_fails_leaves_all_the_same() -> None:
    class Sticky(Counter):
        def on_stop(self) -> None:
            self.count = 1_000
            raise ValueError("no")

    async def main() -> None:
        async with LocalHost([Sticky]) as host:
            stub = host.get(Sticky, "a")
            await stub.increment.remote()
            await host.evict(stub)
            assert not host.is_live(stub)
            assert await stub.read.remote() == 1

    run(main)


def test_a_class_that_cannot_be_loaded_fails_its_own_calls_only() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            original = host.classes.get

            async def get(name: str) -> object:
                if name == "Broken":
                    await asyncio.sleep(0)
                    raise InvalidCall("the class Broken cannot be loaded: no module named 'torch'")
                return await original(name)

            with mock.patch.object(host.classes, "get", get):
                responses = [host.get("Broken", str(n % 2)).read.remote() for n in range(6)]
                fine = [host.get(Counter, str(n)).increment.remote() for n in range(6)]
                assert await asyncio.gather(*fine) == [1] * 6
                for response in responses:
                    with pytest.raises(InvalidCall, match="no module named 'torch'"):
                        await response
                assert not host.is_live(host.get("Broken", "0"))
            with pytest.raises(InvalidCall, match="no class 'Broken' is deployed") as caught:
                await host.get("Broken", "0").read.remote()
            assert caught.value.status == 404

    run(main)


def test_a_new_version_takes_over_between_two_calls() -> None:
    class Second(Counter):
        def read(self) -> int:
            return -self.count

    Second.__name__ = "Counter"

    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            slow = stub.wait.remote("gate")
            await GATES.until_reached("gate")
            behind = stub.read.remote()
            await host.deploy(Second)
            GATES["gate"].set()
            assert await slow == 1, "the running call ends in the old version"
            assert await behind == -1, "the next one runs in the new"

    run(main)


def test_a_large_object_is_not_loaded_whole_and_blocks_nobody() -> None:
    async def main() -> None:
        async with LocalHost([Archive, Counter]) as host:
            archive, counter = host.get(Archive, "a"), host.get(Counter, "b")
            for _ in range(5):
                await archive.fill.remote(20_000)
            assert await archive.count.remote() == 100_000
            await host.fold()
            await host.kill()
            await counter.increment.remote()
            # A read that takes long on the disk: until the test lets it.
            reading, proceed = threading.Event(), threading.Event()
            read = Reading.read

            def slowly(self: Reading, *arguments: object) -> object:
                reading.set()
                assert proceed.wait(5)
                return read(self, *arguments)  # type: ignore[arg-type]

            with mock.patch.object(Reading, "read", slowly):
                taken = archive.take.remote("077777")
                await asyncio.to_thread(reading.wait, 5)
                for total in range(2, 12):
                    assert await counter.increment.remote() == total
                assert not taken.done()
                proceed.set()
                assert await taken == 77_777
            assert host.core is not None
            state = host.core.activations["Archive", "a"].state
            assert not state.whole
            assert len(state._committed.entries) + len(state.live) < 10

    run(main)


def test_a_large_object_keeps_the_guarantees() -> None:
    async def main() -> None:
        async with LocalHost([Archive, Counter]) as host:
            archive = host.get(Archive, "a")
            await archive.fill.remote(LOAD_WHOLE_KEYS_MAX * 4)
            await host.fold()
            await host.evict(archive)
            assert await archive.thread.remote() == "rayobjects-lane"
            assert await archive.add.remote("000005", 10) == 15
            with pytest.raises(MethodError):
                await archive.fail.remote()
            assert await archive.take.remote("000000") == 0
            assert await archive.take.remote("000001") == 1
            assert await archive.first.remote(3) == ["000000", "000001", "000002"]
            counter = host.get(Counter, "b")
            assert await archive.call.remote(counter) == LOAD_WHOLE_KEYS_MAX * 4
            with host.syncs_held():
                ahead = [archive.add.remote("000005", 1) for _ in range(5)]
                seen = archive.take.remote("000005")
                await ticks(300)
                assert not any(response.done() for response in (*ahead, seen))
            assert await asyncio.gather(*ahead, seen) == [16, 17, 18, 19, 20, 20]
            await host.crash()
            assert await archive.take.remote("000005") == 20
            assert await archive.count.remote() == LOAD_WHOLE_KEYS_MAX * 4

    run(main)


def test_an_object_that_has_grown_is_loaded_again() -> None:
    async def main() -> None:
        async with LocalHost([Archive]) as host:
            archive = host.get(Archive, "a")
            assert (await archive.thread.remote()) != "rayobjects-lane"
            await archive.fill.remote(LOAD_WHOLE_KEYS_MAX + 1)
            await ticks()
            assert await archive.thread.remote() == "rayobjects-lane"

    run(main)


def test_raw_requests_and_json() -> None:
    class Web(ro.DurableObject):
        def on_request(self, request: ro.Request) -> object:
            return {"path": request.path, "body": request.body.decode()}

        def greet(self, name: str, times: int = 1) -> str:
            return f"hello {name} " * times

    async def main() -> None:
        async with LocalHost([Web, Counter]) as host:
            stub = host.get(Web, "a")
            response = await host.fetch(stub, "POST", "/x/y", body=b"hi")
            assert response.status == 200
            assert response.body == b'{"path":"/x/y","body":"hi"}'
            assert await host.post(stub, "greet", {"name": "ann", "times": 2}) == "hello ann " * 2
            with pytest.raises(InvalidCall, match="times"):
                await host.post(stub, "greet", {"name": "ann", "times": "two"})
            with pytest.raises(InvalidCall, match="takes no raw requests"):
                await host.fetch(host.get(Counter, "a"))
            with pytest.raises(InvalidCall, match="takes no WebSockets"):
                await host.connect(host.get(Counter, "a"))

    run(main)


def test_calls_between_objects_and_lists() -> None:
    class Front(ro.DurableObject):
        async def all_names(self) -> list[str]:
            return await ro.namespace("Counter").list_async(prefix="x")

        async def add(self, names: list[str]) -> list[int]:
            counters = ro.namespace(Counter)
            return list(await asyncio.gather(*(counters.get(n).increment.remote() for n in names)))

    async def main() -> None:
        async with LocalHost([Counter, Front]) as host:
            front = host.get(Front, "f")
            assert await front.add.remote(["x1", "y", "x2", "x1"]) == [1, 1, 1, 2]
            assert await front.all_names.remote() == ["x1", "x2"]
            assert await host.list(Counter) == ["x1", "x2", "y"]
            # Stubs of the cluster, used around the host, find it too.
            assert await ro.namespace("Counter").get("y").increment.remote() == 2

    run(main)
