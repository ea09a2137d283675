"""A shard that dies while it closes lets go of its files all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_double import Driver, record

from rayobjects.testing.files import Crashed, FaultyFiles


def test_a_close_that_is_cut_off_lets_go_of_the_checkpoint(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    driver = Driver(files)
    driver.put(n=1)
    driver.fold()
    driver.shard.commit(record(n=2), driver.done)
    files.crash_at = files.operations
    with pytest.raises(Crashed):
        driver.shard.close()  # in writing what was committed, before it folds
    driver.shard.abandon()
    successor = Driver(files.kill())
    assert successor.items() in ({"n": 1}, {"n": 2})
    successor.shard.close()
