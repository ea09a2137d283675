"""What the host of shard 0 does to classes, with a manifest on disk and without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import rayobjects as ro
from rayobjects.objects.catalog import ClassInfo, describe, pickle_classes
from rayobjects.runtime import class_store
from rayobjects.runtime.class_store import ClassStore, Deployment
from rayobjects.runtime.configuration import Catalog
from rayobjects.storage.manifest import Manifest


class Room(ro.DurableObject):
    pass


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClassStore:
    published = [Catalog(0, {})]
    monkeypatch.setattr(class_store, "read_catalog", lambda: published[-1])
    monkeypatch.setattr(class_store, "write_catalog", lambda new, _: published.append(new))

    async def load(infos: list[ClassInfo], blob: bytes) -> None:
        pass

    return ClassStore(Manifest.open(str(tmp_path), "cluster", 1), load)


def test_a_class_is_not_deleted_by_a_former_name(store: ClassStore) -> None:
    async def main() -> None:
        await store.deploy(Deployment([describe(Room)], pickle_classes([Room])))
        await store.rename("Room", "Hall")
        await store.rename("Hall", "Chamber")
        for former in ("Room", "Hall"):
            with pytest.raises(ro.InvalidCall, match=f"{former} is a former.* called Chamber now"):
                await store.begin_deletion(former)
        assert not store.publish().classes["Chamber"].deleting
        assert (await store.begin_deletion("Chamber")).deleting
        with pytest.raises(ro.InvalidCall, match="delete-class Chamber"):
            await store.begin_deletion("Room")  # nor finished by one
        with pytest.raises(ro.InvalidCall, match="no class 'Nobody'"):
            await store.begin_deletion("Nobody")

    asyncio.run(main())
