"""The storage root: its manifest, its classes and its lock."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from rayobjects.errors import StorageFailed
from rayobjects.ids import SLOT_COUNT
from rayobjects.storage.files import RealFiles
from rayobjects.storage.manifest import CLUSTER, MANIFEST, Manifest
from rayobjects.testing.files import Crashed, FaultyFiles


def test_a_new_root_gets_its_manifest(tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    manifest = Manifest.open(str(root), "cluster-a", 3)
    manifest.close()
    written = json.loads((root / "manifest.json").read_text())
    assert written == {
        "format": 1,
        "pools": {"default": {"shards": 3}},
        "slots": [
            {"first": 0, "last": 1365, "shard": "default-0000"},
            {"first": 1366, "last": 2730, "shard": "default-0001"},
            {"first": 2731, "last": 4095, "shard": "default-0002"},
        ],
        "classes": {},
    }


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 16, 1000, SLOT_COUNT])
def test_slots_are_dealt_out_evenly(tmp_path: Path, shards: int) -> None:
    manifest = Manifest.open(str(tmp_path), "cluster-a", shards)
    expected = [slot * shards // SLOT_COUNT for slot in range(SLOT_COUNT)]
    assert [manifest.shard_of(slot) for slot in range(SLOT_COUNT)] == expected
    manifest.close()
    again = Manifest.open(str(tmp_path), "cluster-a", 1)
    assert [again.shard_of(slot) for slot in range(SLOT_COUNT)] == expected
    again.close()


def test_a_look_at_a_root_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Manifest.check(str(root))
    assert not root.exists()
    manifest = Manifest.open(str(root), "cluster-a", 1)
    before = sorted(path.name for path in root.iterdir())
    with pytest.raises(StorageFailed, match="in use by the cluster 'cluster-a'"):
        Manifest.check(str(root))
    manifest.close()
    Manifest.check(str(root))
    assert sorted(path.name for path in root.iterdir()) == before
    Manifest.open(str(root), "cluster-b", 1).close()
    (root / "manifest.json").write_text('{"format": 999}')
    with pytest.raises(StorageFailed, match="format 999, this version knows 1"):
        Manifest.check(str(root))


@pytest.mark.parametrize("shards", [0, -1, SLOT_COUNT + 1])
def test_a_number_of_shards_that_cannot_be(tmp_path: Path, shards: int) -> None:
    with pytest.raises(StorageFailed, match="1 to 4,096 shards"):
        Manifest.open(str(tmp_path), "cluster-a", shards)


def test_the_root_keeps_its_number_of_shards(tmp_path: Path) -> None:
    Manifest.open(str(tmp_path), "cluster-a", 5).close()
    manifest = Manifest.open(str(tmp_path), "cluster-b", 8)
    assert manifest.shards == 5
    manifest.close()


def test_shards_have_directories_of_their_own(tmp_path: Path) -> None:
    manifest = Manifest.open(f"file://{tmp_path}", "cluster-a", 5)
    assert manifest.shard_name(3) == "default-0003"
    assert manifest.shard_root(3) == str(tmp_path / "shards" / "default-0003")
    assert (tmp_path / "shards" / "default-0003").is_dir()
    assert manifest.shard_root(3) == manifest.shard_root(3)
    manifest.close()


# -- classes ------------------------------------------------------------------------------------


def test_classes_are_seen_by_others_at_once(tmp_path: Path) -> None:
    writer = Manifest.open(str(tmp_path), "cluster-a", 2)
    reader = Manifest.open(str(tmp_path), "cluster-a", 2)
    assert reader.classes() == {}
    writer.store_class("Room", 1, b"code one", b"\x00\xff info")
    writer.store_class("Model", 4, b"model", b"")
    assert reader.classes() == {"Room": (1, b"\x00\xff info"), "Model": (4, b"")}
    writer.store_class("Room", 2, b"code two", b"newer")
    assert reader.classes()["Room"] == (2, b"newer")
    assert reader.class_blob("Room", 1) == b"code one"
    assert reader.class_blob("Room", 2) == b"code two"
    assert (tmp_path / "classes" / "Room-2.pickle").read_bytes() == b"code two"
    writer.close()
    reader.close()


def test_a_missing_class_file_is_named(tmp_path: Path) -> None:
    manifest = Manifest.open(str(tmp_path), "cluster-a", 1)
    manifest.store_class("Room", 1, b"code", b"")
    (tmp_path / "classes" / "Room-1.pickle").unlink()
    with pytest.raises(StorageFailed, match=r"Room-1\.pickle is missing: deploy the class Room"):
        manifest.class_blob("Room", 1)
    manifest.close()


@pytest.mark.parametrize("name", ["", "../Room", "a/b", "Room-1", "."])
def test_a_class_name_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    manifest = Manifest.open(str(tmp_path), "cluster-a", 1)
    with pytest.raises(StorageFailed, match="use an identifier"):
        manifest.store_class(name, 1, b"", b"")
    manifest.close()


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    manifests = [Manifest.open(str(tmp_path), "cluster-a", 1) for _ in range(4)]
    threads = [
        threading.Thread(target=manifest.store_class, args=(f"Class{number}", 1, b"", b""))
        for number, manifest in enumerate(manifests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(manifests[0].classes()) == ["Class0", "Class1", "Class2", "Class3"]
    for manifest in manifests:
        manifest.close()


# -- whose root it is ---------------------------------------------------------------------------


def test_another_cluster_is_refused_while_a_host_lives(tmp_path: Path) -> None:
    first = Manifest.open(str(tmp_path), "cluster-a", 2)
    second = Manifest.open(str(tmp_path), "cluster-a", 2)
    for _ in range(2):
        with pytest.raises(StorageFailed, match="in use by the cluster 'cluster-a'"):
            Manifest.open(str(tmp_path), "cluster-b", 2)
    first.close()
    with pytest.raises(StorageFailed, match="in use by the cluster 'cluster-a'"):
        Manifest.open(str(tmp_path), "cluster-b", 2)
    third = Manifest.open(str(tmp_path), "cluster-a", 2)  # a refused one leaves no trace
    second.close()
    third.close()
    third.close()
    other = Manifest.open(str(tmp_path), "cluster-b", 2)
    with pytest.raises(StorageFailed, match="in use by the cluster 'cluster-b'"):
        Manifest.open(str(tmp_path), "cluster-a", 2)
    other.close()


def test_a_dead_host_does_not_keep_the_root(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    Manifest.open(files, "cluster-a", 2)
    with pytest.raises(StorageFailed, match="in use"):
        Manifest.open(str(tmp_path), "cluster-b", 2)
    files.kill()
    Manifest.open(str(tmp_path), "cluster-b", 2).close()


def test_all_hosts_open_at_the_same_time(tmp_path: Path) -> None:
    """Two clusters want a new root: one gets it, with all of its hosts."""
    start = threading.Barrier(8)
    opened: list[tuple[str, Manifest]] = []
    refused: list[str] = []

    def host(cluster: str) -> None:
        start.wait()
        try:
            opened.append((cluster, Manifest.open(str(tmp_path / "root"), cluster, 4)))
        except StorageFailed as error:
            refused.append(cluster + ("" if "in use by the cluster" in error.message else "?"))

    threads = [threading.Thread(target=host, args=(f"cluster-{n % 2}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len({cluster for cluster, _ in opened}) == 1
    assert refused == [({"cluster-0", "cluster-1"} - {opened[0][0]}).pop()] * 4
    assert {manifest.shards for _, manifest in opened} == {4}
    for _, manifest in opened:
        manifest.close()


def test_hosts_of_one_cluster_are_never_refused(tmp_path: Path) -> None:
    for attempt in range(10):
        start = threading.Barrier(6)
        opened: list[Manifest] = []

        def host(
            start: threading.Barrier = start,
            opened: list[Manifest] = opened,
            root: str = str(tmp_path / str(attempt)),
        ) -> None:
            start.wait()
            opened.append(Manifest.open(root, "cluster-a", 4))

        threads = [threading.Thread(target=host) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 6
        for manifest in opened:
            manifest.close()


# -- what a root must not be --------------------------------------------------------------------


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StorageFailed, match=r"not empty \(it has 'thesis.txt'\): pass an empty"):
        Manifest.open(str(tmp_path), "cluster-a", 2)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_marks_of_file_systems_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    Manifest.open(str(tmp_path), "cluster-a", 2).close()


@pytest.mark.parametrize("left", ["shards", "classes"])
def test_a_root_that_lost_its_manifest(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir()
    with pytest.raises(StorageFailed, match="is missing, but there are shards: restore it"):
        Manifest.open(str(tmp_path), "cluster-a", 2)


def test_a_file_is_no_root(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for root in (file, file / "below"):
        for look in (Manifest.check, lambda root: Manifest.open(root, "cluster-a", 2)):
            with pytest.raises(StorageFailed, match=f"{file} is a file: choose a directory$"):
                look(str(root))


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 2, "pools": "of another kind"}')
    with pytest.raises(StorageFailed, match="has the format 2, this version knows 1: use the"):
        Manifest.open(str(tmp_path), "cluster-a", 2)
    assert os.listdir(tmp_path) == [MANIFEST]


def _damage(change: str) -> str:
    plain = {
        "format": 1,
        "pools": {"default": {"shards": 2}},
        "slots": [
            {"first": 0, "last": 2047, "shard": "default-0000"},
            {"first": 2048, "last": 4095, "shard": "default-0001"},
        ],
    }
    slots: list[dict[str, object]] = plain["slots"]  # type: ignore[assignment]
    match change:
        case "gap":
            slots[1]["first"] = 2049
        case "overlap":
            slots[1]["first"] = 2000
        case "short":
            slots[1]["last"] = 4000
        case "name":
            slots[1]["shard"] = "default-0007"
        case "backwards":
            slots[0]["last"] = -1
            slots[1]["first"] = 0
        case "count":
            plain["pools"] = {"default": {"shards": 3}}
        case "pool":
            plain["pools"] = {}
        case "format":
            del plain["format"]
    return json.dumps(plain)


@pytest.mark.parametrize(
    "change", ["gap", "overlap", "short", "name", "backwards", "count", "pool", "format"]
)
def test_a_manifest_that_makes_no_sense(tmp_path: Path, change: str) -> None:
    (tmp_path / MANIFEST).write_text(_damage(change))
    with pytest.raises(StorageFailed, match=r"manifest\.json is damaged .*: restore it"):
        Manifest.open(str(tmp_path), "cluster-a", 2)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(StorageFailed, match=r"manifest\.json is damaged"):
        Manifest.open(str(tmp_path), "cluster-a", 2)


def test_an_undamaged_manifest_passes_the_same_checks(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(_damage("none"))
    Manifest.open(str(tmp_path), "cluster-a", 9).close()


# -- dying in between ---------------------------------------------------------------------------


def _life(files: FaultyFiles, told: list[int]) -> None:
    manifest = Manifest.open(files, "cluster-a", 3)
    for version in (1, 2):
        manifest.store_class("Room", version, b"code %d" % version, b"info %d" % version)
        told.append(version)
    manifest.close()


def test_a_power_loss_at_every_operation(tmp_path: Path) -> None:
    counted = FaultyFiles(str(tmp_path / "counted"))
    _life(counted, [])
    for at in range(counted.operations):
        for seed in range(4):
            root = str(tmp_path / f"{at}-{seed}")
            files = FaultyFiles(root, seed=seed)
            files.crash_at = at
            told: list[int] = []
            with pytest.raises(Crashed):
                _life(files, told)
            manifest = Manifest.open(files.crash(), "cluster-b", 3)
            version, info = manifest.classes().get("Room", (0, b"info 0"))
            assert version >= max(told, default=0)
            assert info == b"info %d" % version
            if version:
                assert manifest.class_blob("Room", version) == b"code %d" % version
            manifest.store_class("Room", version + 1, b"next", b"next")
            assert manifest.class_blob("Room", version + 1) == b"next"
            manifest.close()


def test_the_cluster_is_written_whole(tmp_path: Path) -> None:
    files = RealFiles(str(tmp_path))
    Manifest.open(files, "cluster-a", 1).close()
    assert files.read(CLUSTER) == b"cluster-a"
