"""Guarantee 4, after a disk has failed twice: what recovery writes anew is on the disk for sure."""

from __future__ import annotations

import asyncio
import errno

import pytest
from guarantee_objects import Counter, run

from rayobjects.errors import StorageFailed
from rayobjects.storage.ownership import Ownership
from rayobjects.testing import FaultyFiles, LocalHost


@pytest.mark.parametrize("seed", range(8))
def test_guarantee_4_a_recovery_whose_sync_failed_begins_with_a_new_file(
    tmp_path: object, seed: int
) -> None:
    async def main() -> None:
        async with LocalHost([Counter], files=FaultyFiles(str(tmp_path), seed=seed)) as host:
            stub = host.get(Counter, "a")
            assert await stub.increment.remote(5) == 5
            # The group fails, then the sync of the segment that recovery writes anew.
            host.files.fail("write", errno.EIO, name="journal")
            host.files.fail("sync", errno.EIO, name="journal")
            for _ in range(2):
                with pytest.raises(StorageFailed):
                    await stub.increment.remote()
            assert await stub.read.remote() == 5
            await host.crash()
            assert await stub.read.remote() == 5

    run(main)


@pytest.mark.parametrize("seed", range(8))
def test_guarantee_4_a_recovery_does_not_build_on_what_a_dead_one_left(
    tmp_path: object, seed: int
) -> None:
    """Its sync failed, and it died before it could take its file away: a process with the same id
    would write on in that file, which no later sync brings to the disk."""

    async def main() -> None:
        async with LocalHost([Counter], files=FaultyFiles(str(tmp_path), seed=seed)) as host:
            stub = host.get(Counter, "a")
            assert await stub.increment.remote(5) == 5
            await host.kill()  # recovery has written the journal anew, and is to do so again
            host.files.fail("sync", errno.EIO, name="journal")
            with pytest.raises(StorageFailed):
                await stub.increment.remote()
            before = host.files.operations
            host.files.fail("sync", errno.EIO, name=".log.")
            claim = ["create", "write", "sync", "rename", "sync_directory", "look"]
            anew = ["create", "write", "sync", "unlink"]  # the journal
            host.files.crash_at = before + len(claim + anew) - 1
            call = asyncio.ensure_future(stub.read.remote())
            await host.death()
            assert [step for step, _ in host.files.steps[before:]] == claim + anew
            await host.kill()
            seen = await call
            assert seen in (5, 6)
            await host.crash()
            assert await stub.read.remote() == seen

    run(main)


@pytest.mark.parametrize("what", ["fold", "look"])
def test_guarantee_4_a_shard_that_failed_by_itself_is_opened_again_by_the_next_call(
    tmp_path: object, what: str
) -> None:
    """No commit was under way that could have told; and the object is not live either, so that
    nothing but its loading asks the storage."""

    async def main() -> None:
        files = FaultyFiles(str(tmp_path))
        async with LocalHost([Counter], files=files) as host:
            stub = host.get(Counter, "a")
            assert await stub.increment.remote(5) == 5
            await host.evict(stub)
            if what == "fold":
                files.fail("sync_directory", errno.EIO)
                with pytest.raises(StorageFailed):
                    await host.fold()
            else:
                Ownership.claim(FaultyFiles(str(tmp_path), beside=files), ".").release()
                await host.sweep()
            assert host.shard is not None
            assert host.shard.failed is not None
            assert await stub.read.remote() == 5

    run(main)
