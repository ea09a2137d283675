"""Guarantee 4, after a disk has failed twice: what recovery writes anew is on the disk for sure."""

from __future__ import annotations

import errno

import pytest
from guarantee_objects import Counter, run

from rayobjects.errors import StorageFailed
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
