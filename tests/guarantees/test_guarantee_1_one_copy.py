"""Guarantee 1: at most one activation can commit, and one whose epoch has ended answers nothing."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from guarantee_objects import Counter, run, ticks

import rayobjects as ro
from rayobjects.objects.host_core import HostCore
from rayobjects.runtime import base_host
from rayobjects.runtime.base_host import BaseHost
from rayobjects.runtime.configuration import Configuration
from rayobjects.testing import FaultyFiles, LocalHost


def test_guarantee_1_a_stale_owner_writes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Counter], files=files) as old:
            assert await old.get(Counter, "a").increment.remote() == 1
            async with LocalHost([Counter], files=FaultyFiles(str(tmp_path), beside=files)) as new:
                assert await new.get(Counter, "a").increment.remote() == 2
                stale = old.core
                assert stale is not None
                response = old.get(Counter, "a").increment.remote(100)
                await old.death()
                assert stale.failed is not None
                assert stale.failed.details == {"lost": "epoch"}
                assert not stale.activations
            # The old host began anew, as its process would, and so took the shard back: the call
            # was sent again and ran on what the other owner had committed.
            assert await response == 102

    run(main)


def test_guarantee_1_a_stale_owner_reads_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Counter], files=files) as old:
            assert await old.get(Counter, "a").increment.remote() == 1
            assert await old.get(Counter, "a").read.remote() == 1
            async with LocalHost([Counter], files=FaultyFiles(str(tmp_path), beside=files)) as new:
                assert await new.get(Counter, "a").increment.remote() == 2
                assert await old.get(Counter, "a").read.remote() == 2  # never 1

    run(main)


def test_guarantee_1_an_idle_stale_owner_lets_go(tmp_path: Path) -> None:
    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Counter], files=files) as old:
            assert await old.get(Counter, "a").increment.remote() == 1
            async with LocalHost([Counter], files=FaultyFiles(str(tmp_path), beside=files)):
                await old.sweep()
                assert old.shard is not None
                assert old.shard.failed is not None

    run(main)


def test_guarantee_1_a_host_whose_disk_failed_does_not_take_the_shard_from_its_successor(
    tmp_path: Path,
) -> None:
    """It opens again in the same process, and does not know yet that it is the stale one."""

    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Counter], files=files) as old:
            assert await old.get(Counter, "a").increment.remote() == 1
            files.fail("sync", errno.EIO, name="journal")
            with pytest.raises(ro.StorageFailed):
                await old.get(Counter, "a").increment.remote(10)
            async with LocalHost([Counter], files=FaultyFiles(str(tmp_path), beside=files)) as new:
                seen = await new.get(Counter, "a").read.remote()
                assert old._claims.epoch == 1
                with pytest.raises(ro.StorageFailed) as caught:
                    old._open()
                assert caught.value.details == {"lost": "epoch"}
                assert await new.get(Counter, "a").increment.remote() == seen + 1
            assert await old.get(Counter, "a").read.remote() == seen + 1  # from a new process

    run(main)


@pytest.mark.parametrize("lost", [True, False])
def test_guarantee_1_a_process_that_finds_a_successor_when_it_opens_ends(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other failure of an opening is answered, and the next call tries again."""

    class Ended(BaseException):
        pass

    class Host(BaseHost):
        async def _open(self) -> HostCore:
            raise ro.StorageFailed("refused", details={"lost": "epoch"} if lost else None)

    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(base_host.os, "_exit", end)

    async def main() -> None:
        host = Host(Configuration("c", "/nowhere", 1, "shared", 60, 30, ""), "default/0000")
        with pytest.raises(Ended if lost else ro.StorageFailed):
            await host._opened()

    run(main)


def test_guarantee_1_calls_at_once_make_one_activation() -> None:
    made = []

    class Once(ro.DurableObject):
        async def on_start(self) -> None:
            made.append(self.id.name)
            await asyncio.sleep(0)

        def name(self) -> str:
            return self.id.name

    async def main() -> None:
        async with LocalHost([Once]) as host:
            stub = host.get(Once, "a")
            assert await asyncio.gather(*(stub.name.remote() for _ in range(50))) == ["a"] * 50
            assert made == ["a"]

    run(main)


def test_guarantee_1_what_a_stale_owner_had_not_synced_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Counter], files=files) as old:
            assert await old.get(Counter, "a").increment.remote() == 1
            with old.syncs_held():
                ahead = old.get(Counter, "a").increment.remote(10)
                await ticks()
                beside = FaultyFiles(str(tmp_path), beside=files)
                async with LocalHost([Counter], files=beside) as new:
                    assert await new.get(Counter, "a").read.remote() == 1
                    await ticks()
                assert not ahead.done()
            assert await ahead == 11  # sent again by its channel, and run once

    run(main)


def test_guarantee_1_a_stale_owner_sends_nothing(tmp_path: Path) -> None:
    class Room(ro.DurableObject):
        def on_connect(self, ws: ro.WebSocket) -> None:
            pass

        def say(self, text: str) -> None:
            self.sockets.broadcast(text)

    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Room], files=files) as old:
            socket = await old.connect(old.get(Room, "a"))
            beside = FaultyFiles(str(tmp_path), beside=files)
            async with LocalHost([Room], files=beside):
                said = old.get(Room, "a").say.remote("once")
                await old.death()
                assert socket.received == []
            await said
            assert await socket.receive() == "once"

    run(main)
