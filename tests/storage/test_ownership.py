"""The epoch file: claiming, losing, and dying in between."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from rayobjects.errors import StorageFailed
from rayobjects.storage import files as files_module
from rayobjects.storage.files import RealFiles
from rayobjects.storage.ownership import EPOCH, LOCK, Claims, Ownership
from rayobjects.testing.files import Crashed, FaultyFiles


@pytest.fixture
def files(tmp_path: Path) -> FaultyFiles:
    made = FaultyFiles(str(tmp_path))
    made.make_directory("shard")
    return made


def test_epochs_grow(files: FaultyFiles) -> None:
    for expected in (1, 2, 3):
        ownership = Ownership.claim(files, "shard")
        assert ownership.epoch == expected
        assert files.read("shard/epoch") == b"%d\n" % expected
        ownership.release()


def test_the_one_before_finds_out(files: FaultyFiles) -> None:
    old = Ownership.claim(files, "shard")
    assert old.holds()
    old.check()
    new = Ownership.claim(FaultyFiles(files.root, beside=files), "shard")
    assert not old.holds()
    with pytest.raises(StorageFailed, match=r"epoch 1 has ended\): try again") as caught:
        old.check()
    assert caught.value.details == {"lost": "epoch"}
    with pytest.raises(StorageFailed, match="taken over by another host"), old.locked():
        raise AssertionError("not reached")
    new.check()
    with new.locked():
        pass
    new.release()
    assert not new.holds()


def test_a_removed_epoch_file_is_a_lost_epoch(files: FaultyFiles) -> None:
    ownership = Ownership.claim(files, "shard")
    files.remove("shard/epoch")
    with pytest.raises(StorageFailed, match="taken over"):
        ownership.check()


@pytest.mark.parametrize("data", [b"", b"\n", b"x\n", b"-1\n", b"1.5\n", b"1\n2\n", b"9" * 19])
def test_a_damaged_epoch_file(files: FaultyFiles, data: bytes) -> None:
    files.replace("shard/epoch", data)
    with pytest.raises(StorageFailed, match=r"shard/epoch is damaged: .* Write into it a number"):
        Ownership.claim(files, "shard")
    assert files.read("shard/epoch") == data
    lock = files.lock("shard/epoch.lock", wait=False)
    assert lock is not None
    lock.release()


def test_claims_at_the_same_time_get_different_epochs(tmp_path: Path) -> None:
    (tmp_path / "shard").mkdir()
    claimed: list[Ownership] = []

    def claim() -> None:
        claimed.extend(Ownership.claim(RealFiles(str(tmp_path)), "shard") for _ in range(5))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.epoch for each in claimed) == list(range(1, 21))
    assert [each.epoch for each in claimed if each.holds()] == [20]
    for each in claimed:
        each.release()


def test_a_claimant_waits_for_who_changes_the_journal(
    files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_LOCK_TRIES", 2)
    ownership = Ownership.claim(files, "shard")
    with ownership.locked(), pytest.raises(StorageFailed, match="has been locked"):
        Ownership.claim(files, "shard")
    assert Ownership.claim(files, "shard").epoch == 2


@pytest.mark.parametrize("step", ["create", "write", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_claim_that_the_disk_refuses(files: FaultyFiles, step: str, error: int) -> None:
    Ownership.claim(files, "shard").release()
    files.fail(step, error)
    with pytest.raises(StorageFailed):
        Ownership.claim(files, "shard")
    assert Ownership.claim(files, "shard").epoch in (2, 3)
    assert set(files.list("shard")) <= {EPOCH, LOCK, f"{EPOCH}.{os.getpid()}.tmp"}


def test_a_claim_that_returned_is_never_claimed_again(tmp_path: Path) -> None:
    for at in range(5):
        for seed in range(10):
            files = FaultyFiles(str(tmp_path / f"{at}-{seed}"), seed=seed)
            files.make_directory("shard")
            first = Ownership.claim(files, "shard")
            files.crash_at = files.operations + at
            with pytest.raises(Crashed):
                Ownership.claim(files, "shard")
            files = files.crash()
            second = Ownership.claim(files, "shard")
            assert first.epoch < second.epoch
            files.crash_at = files.operations
            third = Ownership.claim(files.crash(), "shard")
            assert second.epoch < third.epoch


def test_a_process_takes_a_shard_again_only_if_nobody_had_it(files: FaultyFiles) -> None:
    mine, other = Claims(), Claims()
    first = Ownership.claim(files, "shard", mine)
    first.release()
    second = Ownership.claim(files, "shard", mine)
    assert (first.epoch, second.epoch, mine.epoch) == (1, 2, 2)
    Ownership.claim(files, "shard", other).release()  # a new process takes whatever there is
    with pytest.raises(StorageFailed, match=r"taken over .* \(epoch 2 has ended\)") as caught:
        Ownership.claim(files, "shard", mine)
    assert caught.value.details == {"lost": "epoch"}
    assert files.read("shard/epoch") == b"3\n", "the other one keeps it"
    assert Ownership.claim(files, "shard", other).epoch == 4


@pytest.mark.parametrize("step", ["create", "write", "sync", "rename", "sync_directory"])
def test_a_process_knows_its_own_claim_that_failed(files: FaultyFiles, step: str) -> None:
    """After the renaming the number is on the disk, and it is this process's own."""
    claims = Claims()
    Ownership.claim(files, "shard", claims).release()
    files.fail(step, errno.EIO)
    with pytest.raises(StorageFailed) as caught:
        Ownership.claim(files, "shard", claims)
    assert caught.value.details == {}
    assert Ownership.claim(files, "shard", claims).epoch == (3 if step == "sync_directory" else 2)


def test_a_claim_whose_outcome_cannot_be_read_was_the_last(
    files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    Ownership.claim(files, "shard", claims).release()
    read, reads = files.read, []

    def read_once(name: str) -> bytes | None:
        reads.append(name)
        if len(reads) == 2:
            raise StorageFailed("cannot read")
        return read(name)

    monkeypatch.setattr(files, "read", read_once)
    files.fail("sync", errno.EIO)
    with pytest.raises(StorageFailed, match="cannot read"):
        Ownership.claim(files, "shard", claims)
    with pytest.raises(StorageFailed, match="the disk did not tell") as caught:
        Ownership.claim(files, "shard", claims)
    assert caught.value.details == {"lost": "epoch"}


def test_a_look_is_a_single_operation(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    files.make_directory("shard")
    ownership = Ownership.claim(files, "shard")
    before = files.operations
    ownership.check()
    assert files.steps[before:] == [("look", "shard/epoch")]
