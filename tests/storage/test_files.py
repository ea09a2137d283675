"""The file system's seam, and its double that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rayobjects.errors import StorageFailed
from rayobjects.storage import files as files_module
from rayobjects.storage.files import Files, RealFiles, parse_root
from rayobjects.testing.files import Crashed, FaultyFiles


@pytest.fixture(params=[RealFiles, FaultyFiles])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    made: Files = request.param(str(tmp_path))
    return made


# -- where the root is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/abs/data", "/abs/data"),
        ("/abs/../data/", "/data"),
        ("file:///abs/data", "/abs/data"),
        ("file:///abs/../data", "/data"),
    ],
)
def test_locations(location: str, expected: str) -> None:
    assert parse_root(location) == expected


def test_relative_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse_root("./data") == str(tmp_path / "data")
    assert parse_root("data") == str(tmp_path / "data")
    assert parse_root("~/data") == "/home/someone/data"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "is empty: pass a directory"),
        ("s3://bucket/data", "not supported yet"),
        ("gs://bucket/data", "not supported yet"),
        ("az://container/data", "not supported yet"),
        ("file://data", "names a host, not a directory"),
        ("file://", "names a host, not a directory"),
    ],
)
def test_locations_that_are_refused(location: str, message: str) -> None:
    with pytest.raises(StorageFailed, match=message):
        parse_root(location)


# -- files ----------------------------------------------------------------------------------------


def test_replace_and_read(files: Files) -> None:
    assert files.read("a") is None
    assert not files.exists("a")
    files.replace("a", b"one")
    files.replace("a", b"two")
    assert files.read("a") == b"two"
    assert files.exists("a")
    assert files.list("") == ["a"]


def test_append(files: Files) -> None:
    files.replace("log", b"head")
    file = files.append("log")
    assert file.size == 4
    file.write(b"-one")
    file.write(b"")
    file.write(b"-two")
    file.sync()
    assert file.size == 12
    file.close()
    file.close()
    assert files.read("log") == b"head-one-two"


def test_append_needs_the_file(files: Files) -> None:
    with pytest.raises(StorageFailed, match=r"cannot open .*/log: No such file"):
        files.append("log")


def test_directories(files: Files) -> None:
    assert files.list("a/b") == []
    files.make_directory("a/b/c")
    files.make_directory("a/b/c")
    files.replace("a/b/z", b"")
    files.replace("a/b/y", b"")
    assert files.list("a/b") == ["c", "y", "z"]
    assert files.path("a/b") == os.path.join(files.root, "a/b")


def test_remove(files: Files) -> None:
    files.replace("a", b"")
    files.remove("a")
    files.remove("a")
    assert files.list("") == []


def test_hold_notices_a_replacement(files: Files) -> None:
    files.replace("a", b"same")
    held = files.hold("a")
    assert held.same()
    files.replace("a", b"same")
    assert not held.same()
    held.close()
    held.close()


def test_hold_notices_a_removal_and_its_own_end(files: Files) -> None:
    files.replace("a", b"")
    held, other = files.hold("a"), files.hold("a")
    other.close()
    assert not other.same()
    files.remove("a")
    assert not held.same()
    held.close()


def test_locks(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = files.lock("lock")
    assert alone is not None
    assert files.lock("lock", wait=False) is None
    assert files.lock("lock", shared=True, wait=False) is None
    alone.downgrade()
    shared = files.lock("lock", shared=True, wait=False)
    assert shared is not None
    assert files.lock("lock", wait=False) is None
    monkeypatch.setattr(files_module, "_LOCK_TRIES", 2)
    with pytest.raises(StorageFailed, match=r"locked by another process.*`fuser` names it"):
        files.lock("lock")
    shared.release()
    alone.release()
    alone.release()
    again = files.lock("lock", wait=False)
    assert again is not None
    again.release()


# -- what the operating system refuses ------------------------------------------------------------


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    RealFiles(str(tmp_path)).replace("a", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.ENOSPC, "the disk is full. Free some space"),
        (errno.EDQUOT, "the disk is full. Free some space"),
        (errno.EACCES, "Let the user that runs the hosts write"),
        (errno.EROFS, "Let the user that runs the hosts write"),
        (errno.EIO, "Check the disk and its mount"),
    ],
)
@pytest.mark.parametrize("step", ["create", "write", "sync", "rename", "sync_directory"])
def test_replace_translates(tmp_path: Path, step: str, error: int, message: str) -> None:
    files = FaultyFiles(str(tmp_path))
    files.replace("a", b"old")
    files.fail(step, error)
    with pytest.raises(StorageFailed, match=message) as caught:
        files.replace("a", b"new")
    assert str(tmp_path) in caught.value.message
    assert isinstance(caught.value.__cause__, OSError)
    assert files.read("a") == (b"new" if step == "sync_directory" else b"old")


def _log(files: FaultyFiles) -> None:
    files.replace("log", b"")
    files.append("log").write(b"x")


@pytest.mark.parametrize(
    ("step", "action"),
    [
        ("write", lambda files: files.append("log").write(b"x")),
        ("sync", lambda files: files.append("log").sync()),
        ("unlink", lambda files: files.remove("log")),
        ("look", lambda files: files.hold("log").same()),
        ("sync_directory", lambda files: files.make_directory("new")),
    ],
)
def test_everything_else_translates(
    tmp_path: Path, step: str, action: Callable[[FaultyFiles], object]
) -> None:
    files = FaultyFiles(str(tmp_path))
    _log(files)
    files.fail(step, errno.EIO)
    with pytest.raises(StorageFailed, match="Input/output error"):
        action(files)
    action(files)


@pytest.mark.parametrize(
    "action",
    [
        lambda files: files.read("d"),
        lambda files: files.list("f"),
        lambda files: files.append("d"),
        lambda files: files.remove("d"),
        lambda files: files.hold("none"),
        lambda files: files.lock("none/lock"),
        lambda files: files.replace("none/a", b""),
        lambda files: files.make_directory("f/d"),
    ],
)
def test_real_refusals_translate(files: Files, action: Callable[[Files], object]) -> None:
    files.make_directory("d")
    files.replace("f", b"")
    with pytest.raises(StorageFailed, match=r"cannot .*: "):
        action(files)


# -- the double ---------------------------------------------------------------------------------


def test_a_power_loss_keeps_what_was_synced_and_a_prefix(tmp_path: Path) -> None:
    left = set()
    for seed in range(60):
        files = FaultyFiles(str(tmp_path / str(seed)), seed=seed)
        files.make_directory("")
        files.replace("log", b"head")
        file = files.append("log")
        file.write(b"-one")
        file.sync()
        file.write(b"-two")
        data = files.crash().read("log")
        assert data is not None
        assert data.startswith(b"head-one")
        rest = data.removeprefix(b"head-one")
        plain = rest.rstrip(b"\0")
        assert b"-two".startswith(plain)
        assert len(rest) <= 4
        left.add(rest)
    assert {b"", b"-", b"-two"} < left
    assert any(rest.endswith(b"\0") for rest in left)


def test_a_power_loss_may_undo_what_the_directory_was_not_synced_for(tmp_path: Path) -> None:
    seen = set()
    for seed in range(40):
        files = FaultyFiles(str(tmp_path / str(seed)), seed=seed)
        files.make_directory("")
        files.replace("a", b"old")
        files.replace("gone", b"gone")
        files.remove("gone")
        files.crash_at = files.operations + 4  # the directory's sync
        with pytest.raises(Crashed):
            files.replace("a", b"new")
        after = files.crash()
        names = [name for name in after.list("") if not name.endswith(".tmp")]
        seen.add((after.read("a"), "gone" in names))
    assert seen == {(b"old", False), (b"old", True), (b"new", False), (b"new", True)}


def test_replace_is_all_or_nothing(tmp_path: Path) -> None:
    for at in range(5):
        for seed in range(10):
            files = FaultyFiles(str(tmp_path / f"{at}-{seed}"), seed=seed)
            files.make_directory("")
            files.replace("a", b"old content")
            files.crash_at = files.operations + at
            with pytest.raises(Crashed):
                files.replace("a", b"new content")
            assert files.crash().read("a") in (b"old content", b"new content")


def test_a_failed_sync_loses_data_that_can_still_be_read(tmp_path: Path) -> None:
    lost = 0
    for seed in range(20):
        files = FaultyFiles(str(tmp_path / str(seed)), seed=seed)
        files.make_directory("")
        files.replace("log", b"")
        file = files.append("log")
        file.write(b"data")
        files.fail("sync", errno.EIO)
        with pytest.raises(StorageFailed):
            file.sync()
        file.sync()  # reports success and means nothing
        files = files.kill()
        assert files.read("log") == b"data"
        file = files.append("log")
        file.write(b"more")
        file.sync()
        lost += files.crash().read("log") != b"datamore"
    assert lost > 10


def test_a_dead_process_does_nothing_more(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    files.replace("a", b"old")
    lock = files.lock("lock")
    file, held = files.append("a"), files.hold("a")
    files.crash_at = files.operations
    with pytest.raises(Crashed):
        file.write(b"data")
    size = os.path.getsize(tmp_path / "a")
    actions: list[Callable[[], object]] = [
        lambda: file.write(b"data"),
        lambda: file.sync(),
        lambda: held.same(),
        lambda: files.read("a"),
        lambda: files.list(""),
        lambda: files.exists("a"),
        lambda: files.replace("a", b""),
        lambda: files.append("a"),
        lambda: files.hold("a"),
        lambda: files.lock("other"),
        lambda: files.remove("a"),
        lambda: files.make_directory("d"),
    ]
    for action in actions:
        with pytest.raises(Crashed):
            action()
    assert os.path.getsize(tmp_path / "a") == size
    successor = files.kill()
    again = successor.lock("lock", wait=False)  # lives no longer than its process
    assert again is not None
    again.release()
    assert lock is not None
    lock.release()


def test_faults_are_where_they_were_ordered(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    files.fail("write", errno.EIO, name="b", skip=1, times=2)
    outcomes = []
    for name in ("a", "b", "b", "b", "b", "a"):
        try:
            files.replace(name, b"data")
            outcomes.append("ok")
        except StorageFailed:
            outcomes.append("failed")
    assert outcomes == ["ok", "ok", "failed", "failed", "ok", "ok"]
    assert files.steps[:5] == [
        ("create", f"a.{os.getpid()}.tmp"),
        ("write", f"a.{os.getpid()}.tmp"),
        ("sync", f"a.{os.getpid()}.tmp"),
        ("rename", f"a.{os.getpid()}.tmp"),
        ("sync_directory", "."),
    ]
    with pytest.raises(ValueError, match="none of"):
        files.fail("think", errno.EIO)


def test_the_same_seed_gives_the_same_outcome(tmp_path: Path) -> None:
    def outcome(directory: str) -> bytes | None:
        files = FaultyFiles(str(tmp_path / directory), seed=7)
        files.make_directory("")
        files.replace("log", b"")
        files.append("log").write(bytes(range(100)))
        return files.crash().read("log")

    assert outcome("one") == outcome("two")


def test_two_processes_share_a_disk(tmp_path: Path) -> None:
    one = FaultyFiles(str(tmp_path))
    two = FaultyFiles(str(tmp_path), beside=one)
    one.replace("a", b"one")
    old = one.append("a")
    two.replace("a", b"two")
    old.write(b"late")  # into the file that has no name any more
    old.sync()
    assert two.read("a") == b"two"
    one.kill()
    assert two.crash().read("a") == b"two"


def test_a_file_that_was_left_after_a_failed_sync_is_not_built_on(tmp_path: Path) -> None:
    """The sync fails, and the process dies before it can take the new file away: the next process
    may have the same id, and finds it."""
    for seed in range(10):
        files = FaultyFiles(str(tmp_path / str(seed)), seed=seed)
        files.make_directory("")
        files.fail("sync", errno.EIO)
        files.crash_at = files.operations + 3  # create, write, sync; then the removal
        with pytest.raises(Crashed):
            files.replace("a", b"lost")
        assert files.steps[-1][0] == "unlink"
        files = files.kill()
        files.replace("a", b"kept")
        assert files.crash().read("a") == b"kept"


def test_a_file_that_was_left_is_written_again(tmp_path: Path) -> None:
    for seed in range(20):
        files = FaultyFiles(str(tmp_path / str(seed)), seed=seed)
        files.make_directory("")
        files.crash_at = files.operations + 2  # the sync
        with pytest.raises(Crashed):
            files.replace("a", b"first and longer")
        files = files.kill()
        files.crash_at = files.operations + 3  # behind the removal of what was left
        with pytest.raises(Crashed):
            files.replace("a", b"second")
        assert files.steps[-1][0] == "sync"
        files = files.crash()
        assert files.read("a") is None
        for name in files.list(""):
            left = (files.read(name) or b"").rstrip(b"\0")
            assert b"second".startswith(left) or b"first and longer".startswith(left)
        files.replace("a", b"third")
        assert files.crash().read("a") == b"third"
