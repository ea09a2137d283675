"""Which version of its class last wrote an object: kept with the object through all that the
storage does."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from storage_double import Driver, finish, items

from rayobjects.ids import ObjectId
from rayobjects.storage.checkpoint import NAME
from rayobjects.storage.records import Record

OLD_OBJECTS = """
ATTACH '{path}' AS shard; USE shard;
CREATE TABLE before AS SELECT slot, object_hash, class, name FROM objects;
DROP TABLE objects;
ALTER TABLE before RENAME TO objects;
CHECKPOINT shard;
"""


def put(driver: Driver, name: str, version: int, **changed: int | None) -> None:
    record = items(name, **changed)
    record.version = version
    driver.shard.commit(record, driver.done)
    driver.loop.turn()


def version(driver: Driver, name: str) -> int:
    return finish(driver.shard.load(ObjectId("Room", name))).version


@pytest.mark.parametrize("end", ["memtable", "fold", "close", "abandon"])
def test_the_last_writer_counts(tmp_path: Path, end: str) -> None:
    driver = Driver(str(tmp_path))
    put(driver, "a", 1, x=1)
    put(driver, "b", 1, x=1)
    put(driver, "gone", 3, x=1)
    if end == "fold":
        driver.fold()
    put(driver, "a", 2, x=2)
    put(driver, "b", 0, x=2)  # says nothing: it stays what it was
    driver.shard.commit(Record("Room", "gone", delete=True, version=3), driver.done)
    driver.loop.turn()
    if end == "fold":
        driver.fold()
    elif end != "memtable":
        getattr(driver.shard, end)()
        driver = Driver(str(tmp_path))
    assert [version(driver, name) for name in ("a", "b", "never")] == [2, 1, 0]
    assert not finish(driver.shard.load(ObjectId("Room", "gone"))).exists
    driver.shard.close()


def test_a_checkpoint_of_a_release_without_versions(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    put(driver, "a", 1, x=1)
    driver.shard.close()
    with duckdb.connect(":memory:") as connection:
        for step in OLD_OBJECTS.format(path=tmp_path / NAME).split(";\n"):
            connection.execute(step)
    driver = Driver(str(tmp_path))
    assert version(driver, "a") == 0
    assert driver.items("a") == {"x": 1}
    put(driver, "a", 4, x=2)
    driver.fold()
    assert version(driver, "a") == 4
    driver.shard.close()
