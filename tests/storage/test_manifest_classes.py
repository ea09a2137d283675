"""Classes in the manifest: their names, keys and ends, and what a crash leaves of a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rayobjects.errors import StorageFailed
from rayobjects.storage.manifest import Manifest
from rayobjects.testing.files import Crashed, FaultyFiles


def opened(files: FaultyFiles | str) -> Manifest:
    return Manifest.open(files, "cluster", 2)


def with_room(root: Path) -> Manifest:
    manifest = opened(str(root))
    manifest.store_class("Room", 1, b"code 1", b"info 1")
    manifest.store_class("Roomy", 1, b"code of another", b"info")
    return manifest


def files_of(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "classes").iterdir())


def test_a_renamed_class_keeps_code_and_key(tmp_path: Path) -> None:
    manifest = with_room(tmp_path)
    manifest.change_class("Room", b"info 1, renamed", "Hall")
    manifest.close()
    manifest = opened(str(tmp_path))
    assert manifest.classes() == {"Hall": (1, b"info 1, renamed"), "Roomy": (1, b"info")}
    assert manifest.class_blob("Hall", 1) == b"code 1"
    manifest.store_class("Hall", 2, b"code 2", b"info 2", "Room")
    assert manifest.class_blob("Hall", 2) == b"code 2"
    assert files_of(tmp_path) == ["Room-1.pickle", "Room-2.pickle", "Roomy-1.pickle"]
    manifest.change_class("Hall", b"info 2, marked")
    assert manifest.classes()["Hall"] == (2, b"info 2, marked")
    assert manifest.class_blob("Hall", 2) == b"code 2"
    manifest.change_class("Hall", b"info 2, back", "Room")
    assert manifest.class_blob("Room", 2) == b"code 2"
    manifest.remove_class("Room")
    manifest.remove_class("Room")
    assert manifest.classes() == {"Roomy": (1, b"info")}
    assert files_of(tmp_path) == ["Roomy-1.pickle"]
    manifest.close()


@pytest.mark.parametrize(("name", "new_name"), [("Nobody", "Hall"), ("Room", "Roomy")])
def test_changes_that_cannot_be(tmp_path: Path, name: str, new_name: str) -> None:
    manifest = with_room(tmp_path)
    before = manifest.classes()
    with pytest.raises(StorageFailed):
        manifest.change_class(name, b"", new_name)
    assert manifest.classes() == before
    manifest.close()


CHANGES: list[Callable[[Manifest], None]] = [
    lambda manifest: manifest.change_class("Room", b"new", "Hall"),
    lambda manifest: manifest.change_class("Room", b"new"),
    lambda manifest: manifest.remove_class("Room"),
    lambda manifest: manifest.store_class("Room", 2, b"code 2", b"new"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_the_power_cuts_off_is_made_or_not(
    tmp_path: Path, change: Callable[[Manifest], None]
) -> None:
    outcomes = set()
    step = 0
    while True:
        root = tmp_path / str(step)
        with_room(root).close()
        files = FaultyFiles(str(root))
        manifest = opened(files)
        before = manifest.classes()
        files.crash_at = len(files.steps) + step
        try:
            change(manifest)
            ended = True
        except Crashed:
            ended = False
        found = opened(files.crash())
        classes = found.classes()
        for name, (version, _) in classes.items():
            assert found.class_blob(name, version)
        outcomes.add(str(classes))
        if ended:
            assert classes != before
            break
        step += 1
    assert len(outcomes) == 2
