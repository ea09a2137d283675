"""Streams across processes, on both hostings."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from ray_cluster import ATTACHED, RayCluster
from served import wait_until

import rayobjects as ro
from rayobjects.limits import LOAD_WHOLE_KEYS_MAX, STREAM_ITEMS_AHEAD_MAX, STREAM_SILENT_S
from rayobjects.runtime import admin, placement

WITHIN_S = 60.0

_numbers = itertools.count()


def note(path: str, text: str, mode: str) -> None:
    if path:
        with open(path, mode) as file:
            file.write(text)


class Feed(ro.DurableObject):
    count: int = ro.durable(0)

    def value(self) -> int:
        return self.count

    def fill(self, keys: int) -> None:
        self.storage.update({f"key {number}": number for number in range(keys)})

    async def numbers(self, items: int, path: str = "") -> AsyncIterator[int]:
        """Counts one up for each item, and writes into a file how far it is and how it ended."""
        ended = "?"
        try:
            for number in range(items):
                self.count += 1
                note(path, str(number + 1), "w")
                yield number
            ended = "end"
        except BaseException as error:
            ended = type(error).__name__
            raise
        finally:
            note(path, f" {ended}", "a")

    def plainly(self, items: int) -> Iterator[int]:
        for number in range(items):
            self.count += 1
            yield number

    @ro.blocking
    def on_a_thread(self, items: int) -> Iterator[int]:
        yield from self.plainly(items)

    async def until_told(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            self.count += 1
            yield number
        await asyncio.Event().wait()

    @ro.concurrent
    async def watch(self) -> AsyncIterator[int]:
        """The count, whenever it has changed."""
        seen = -1
        while True:
            if self.count != seen:
                seen = self.count
                yield seen
            await asyncio.sleep(0.01)

    def add(self) -> int:
        self.count += 1
        return self.count

    async def sum_of(self, other: ro.Stub, items: int) -> int:
        return sum([item async for item in other.numbers.remote(items)])


@pytest.fixture
def feeds(hosting: str) -> ro.Namespace[Feed]:
    return ro.deploy(Feed)


def new(feeds: ro.Namespace[Feed]) -> ro.Stub:
    """An object that no other test has."""
    return feeds.get(f"feed {next(_numbers)}")


def pid_of(stub: ro.Stub, hosting: str) -> int:
    """The process in which the object lives."""
    name = placement.shard_host(placement.shard_of(stub.id, 2))
    if hosting == "dedicated":
        name = str(stub.id)
    (pid,) = [each.figures["pid"] for each in admin.status().hosts if each.name == name]
    return int(pid)


def kill_host(stub: ro.Stub, hosting: str) -> None:
    process = psutil.Process(pid_of(stub, hosting))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(WITHIN_S)


@pytest.mark.parametrize("keys", [0, LOAD_WHOLE_KEYS_MAX + 1], ids=["whole", "by key"])
def test_items_come_in_order(feeds: ro.Namespace[Feed], keys: int) -> None:
    feed = new(feeds)
    feed.fill.remote(keys).result(WITHIN_S)
    for method in (feed.numbers, feed.plainly, feed.on_a_thread):
        assert list(method.remote(1_000)) == list(range(1_000))  # plain code
        assert list(method.remote(0)) == []
    assert feed.value.remote().result(WITHIN_S) == 3_000

    async def main() -> None:
        assert [item async for item in feed.numbers.remote(1_000)] == list(range(1_000))
        with pytest.raises(ro.InvalidCall, match="async for"):
            await feed.numbers.remote(1_000)
        with pytest.raises(ro.InvalidCall, match="`await` the"):
            await anext(aiter(feed.value.remote()))

    asyncio.run(asyncio.wait_for(main(), WITHIN_S))
    with pytest.raises(ro.InvalidCall, match="async for"):
        feed.numbers.remote(1_000).result(WITHIN_S)
    assert feed.value.remote().result(WITHIN_S) == 4_000


def test_many_readers_at_once(feeds: ro.Namespace[Feed]) -> None:
    names = [new(feeds) for _ in range(4)]
    found: list[list[int]] = []

    def read(feed: ro.Stub) -> None:
        found.append(list(feed.numbers.remote(3_000)))

    threads = [threading.Thread(target=read, args=(feed,)) for feed in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert found == [list(range(3_000))] * 4


def test_an_object_reads_the_stream_of_another(feeds: ro.Namespace[Feed]) -> None:
    for _ in range(3):  # some are on one host, some on two
        one, other = new(feeds), new(feeds)
        assert one.sum_of.remote(other, 500).result(WITHIN_S) == sum(range(500))
        assert other.value.remote().result(WITHIN_S) == 500


def test_the_method_waits_for_its_reader_and_is_closed_when_that_stops(
    feeds: ro.Namespace[Feed], tmp_path: Path
) -> None:
    feed, path = new(feeds), tmp_path / "made"
    ahead = []
    for item in feed.numbers.remote(1_000_000, str(path)):
        if item % 50 == 0:
            wait_until(lambda: path.read_text() != "", "it has made something")
            ahead.append(int(path.read_text() or 0) - item - 1)
        if item == 500:
            break
    assert max(ahead) <= STREAM_ITEMS_AHEAD_MAX
    wait_until(lambda: path.read_text().endswith(" GeneratorExit"), "it is closed")
    assert feed.value.remote().result(WITHIN_S) == 0


READER = """
import sys
import rayobjects as ro
from rayobjects.runtime import cluster
cluster.connect({address!r})
ro.init()
for item in ro.namespace("Feed").get({name!r}).numbers.remote(1_000_000, {path!r}):
    if item == 100:
        print("reading", flush=True)
        sys.stdin.read()
"""


def test_a_reader_that_is_killed_lets_the_object_go(
    feeds: ro.Namespace[Feed], tmp_path: Path, ray_cluster: RayCluster
) -> None:
    feed, path = new(feeds), tmp_path / "made"
    assert ray_cluster.local is not None
    address = ray_cluster.local.address
    script = READER.format(address=address, name=feed.id.name, path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={name: value for name, value in os.environ.items() if name not in ATTACHED},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        reader.kill()
    assert feed.value.remote().result(WITHIN_S) == 0  # its turn comes
    assert path.read_text().endswith(" GeneratorExit")


def test_a_reader_that_shuts_down_lets_the_object_go_at_once(
    feeds: ro.Namespace[Feed], tmp_path: Path, ray_cluster: RayCluster
) -> None:
    feed, path = new(feeds), tmp_path / "made"
    assert ray_cluster.local is not None
    address = ray_cluster.local.address
    script = READER.format(address=address, name=feed.id.name, path=str(path))
    shuts_down = "print(__import__('time').time()); ro.shutdown()"
    script = script.replace("sys.stdin.read()", shuts_down) + "        break\n"
    reading, shut_down_at = ray_cluster.run_elsewhere(script).splitlines()
    assert reading == "reading"
    assert feed.value.remote().result(WITHIN_S) == 0
    assert path.read_text().endswith(" GeneratorExit")
    assert path.stat().st_mtime - float(shut_down_at) < STREAM_SILENT_S


def test_a_host_that_is_killed_cuts_its_streams_off(
    feeds: ro.Namespace[Feed], hosting: str
) -> None:
    feed = new(feeds)
    items = iter(feed.until_told.remote(3))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    kill_host(feed, hosting)
    with pytest.raises(ro.Unavailable, match="cut off"):
        next(items)
    assert feed.value.remote().result(WITHIN_S) == 0
    assert list(feed.numbers.remote(3)) == [0, 1, 2]
    assert feed.value.remote().result(WITHIN_S) == 3


def test_a_stream_of_which_nothing_was_seen_is_sent_again(
    feeds: ro.Namespace[Feed], hosting: str, tmp_path: Path
) -> None:
    """The host is killed under a call that the stream stands behind."""
    feed = new(feeds)
    holding = iter(feed.until_told.remote(1))
    assert next(holding) == 0
    response = feed.numbers.remote(1_000)
    kill_host(feed, hosting)
    with pytest.raises(ro.Unavailable):
        next(holding)
    assert list(response) == list(range(1_000))
    assert feed.value.remote().result(WITHIN_S) == 1_000


def test_watching_beside_the_others(feeds: ro.Namespace[Feed]) -> None:
    feed = new(feeds)

    async def main() -> None:
        readers = [aiter(feed.watch.remote()) for _ in range(3)]
        for expected in range(5):
            for reader in readers:
                seen = -1
                while seen < expected:
                    seen = await anext(reader)
                assert seen == expected
            assert await feed.add.remote() == expected + 1
        for reader in readers:
            await reader.aclose()

    asyncio.run(asyncio.wait_for(main(), WITHIN_S))
