"""The shard, without threads unless the test is about them."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest
from storage_double import ROOM, Driver, finish, items

from rayobjects.clock import SystemClock
from rayobjects.errors import InvalidCall, Overloaded, StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.limits import FINISHED_WINDOW_S, LOAD_WHOLE_KEYS_MAX
from rayobjects.messages import Send
from rayobjects.storage import checkpoint, commits, merge, room
from rayobjects.storage.ownership import Claims
from rayobjects.storage.records import ATTRIBUTE, ITEM, JSON, PICKLE, Record, SocketChange
from rayobjects.storage.shard import Shard
from rayobjects.testing.files import Crashed, FaultyFiles


def syncs(files: FaultyFiles) -> int:
    return sum(step == "sync" and "journal" in name for step, name in files.steps)


def test_records_of_a_tick_are_one_group(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    driver = Driver(files)
    driver.put(a=1)
    before = syncs(files)
    for number in range(100):
        driver.shard.commit(items(a=number), driver.done)
    driver.loop.turn()
    assert syncs(files) == before + 1
    assert driver.answers == [(None, sequence) for sequence in range(1, 102)]
    driver.shard.close()


def test_nothing_is_applied_before_it_is_on_disk(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    driver.shard.commit(items(a=1), driver.done)
    assert driver.items() == {}
    assert driver.answers == []
    driver.loop.turn()
    assert driver.items() == {"a": 1}
    driver.shard.close()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("cleanly", [False, True])
def test_delete_clear_sockets_sends_and_replies_come_back(
    tmp_path: Path, fold: bool, cleanly: bool
) -> None:
    driver = Driver(str(tmp_path))
    full = Record(
        "Room",
        "lobby",
        call_id="c1",
        status=0,
        reply=b"r",
        finished_at=driver.clock.seconds,
        writes=[(ATTRIBUTE + "n", JSON, b"1"), (ITEM + "k", PICKLE, b"\x80x")],
        sockets=[SocketChange("s1", "g1", True, ("t",), JSON, b"2"), SocketChange("s2", "g2")],
        sends=[Send("g1", 0, b"hello"), Send("g2", 0, b"hello")],
    )
    driver.shard.commit(full, driver.done)
    driver.put("old", a=1, b=2)
    driver.put("gone", a=1)
    driver.shard.commit(Record("Room", "gone", sockets=[SocketChange("s3", "g1")]), driver.done)
    driver.loop.turn()
    if fold:
        driver.fold()
    driver.shard.commit(
        Record("Room", "gone", delete=True, call_id="c2", finished_at=driver.clock.seconds),
        driver.done,
    )
    driver.shard.commit(
        Record("Room", "old", clear=True, writes=[(ITEM + "c", JSON, b"3")]), driver.done
    )
    driver.loop.turn()
    driver.shard.sent(ROOM, 1, "g1")
    driver.shard.close() if cleanly else driver.shard.abandon()

    again = Driver(str(tmp_path), driver.clock)
    loaded = finish(again.shard.load(ROOM))
    assert loaded.entries == {"@n": (JSON, b"1"), "/k": (PICKLE, b"\x80x")}
    assert (loaded.exists, loaded.whole, loaded.keys) == (True, True, 1)
    assert sorted(s.socket for s in loaded.sockets) == ["s1", "s2"]
    assert next(s for s in loaded.sockets if s.socket == "s1") == full.sockets[0]
    assert sorted(again.shard.sockets()) == [(ROOM, "s1", "g1"), (ROOM, "s2", "g2")]
    assert again.items("old") == {"c": 3}
    assert not finish(again.shard.exists(ObjectId("Room", "gone")))
    assert finish(again.shard.list_objects("Room")) == ["lobby", "old"]
    (pending,) = again.shard.pending()
    assert (pending.sequence, pending.sends) == (1, full.sends)
    finished = again.shard.finished(ROOM, "c1")
    assert finished is not None
    assert (finished.reply, finished.sequence) == (b"r", 1)
    assert again.shard.finished(ObjectId("Room", "gone"), "c2") is not None
    again.shard.sent(ROOM, 1, "g1")
    again.shard.sent(ROOM, 1, "g2")
    assert again.shard.pending() == []
    again.shard.close()
    last = Driver(str(tmp_path), driver.clock)
    assert last.shard.pending() == []
    last.shard.close()


def test_sockets_stay_in_the_order_in_which_they_were_opened(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))

    def change(name: str, *, open: bool = True, attachment: bytes = b"") -> None:
        changed = SocketChange(name, "g", open, (), JSON if attachment else 0, attachment)
        driver.shard.commit(Record("Room", "lobby", sockets=[changed]), driver.done)
        driver.loop.turn()

    def order() -> list[str]:
        return [each.socket for each in finish(driver.shard.load(ROOM)).sockets]

    names = [f"s{number}" for number in (7, 2, 9, 4, 1, 8, 3)]
    for name in names:
        change(name)
    for step in range(3):
        change(names[1], attachment=b"%d" % step)  # changes, and stays where it is
        driver.fold()
        change(names[0], open=False)
        change(f"late{step}")
        change(names[0])  # again: now it is the youngest
        names = [*names[1:], f"late{step}", names[0]]
        assert order() == names
        driver.shard.abandon()
        driver = Driver(str(tmp_path))
        assert order() == names
    driver.shard.close()


def test_finished_calls_are_kept_for_their_window(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    shard, other = driver.shard, ObjectId("Room", "other")
    shard.commit(items(call_id="key"), driver.done)
    shard.commit(items("other", call_id="key"), driver.done)
    shard.commit(items(call_id="x"), driver.done)
    driver.loop.turn()
    assert shard.finished(ROOM, "key").sequence == 1  # type: ignore[union-attr]
    assert shard.finished(other, "key").sequence == 2  # type: ignore[union-attr]
    assert [f.sequence for f in shard.finished_of(ROOM)] == [1, 3]
    shard.forget("x")
    assert shard.finished(ROOM, "x") is None
    assert shard.finished_count == 2
    driver.clock.seconds += FINISHED_WINDOW_S + 1
    shard.expire()
    assert shard.finished_count == 0
    shard.close()


def test_a_full_disk_fails_everything_after_it_in_order(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    driver = Driver(files)
    driver.put(a=1)
    files.fail("write", errno.ENOSPC, name="journal")
    driver.put(a=2)
    driver.put(a=3)
    assert driver.answers[0] == (None, 1)
    assert [sequence for _, sequence in driver.answers[1:]] == [0, 0]
    error = driver.shard.failed
    assert error is not None
    assert "the disk is full. Free some space" in error.message
    assert driver.items_error() is error
    driver.shard.abandon()
    again = Driver(files.kill())
    assert again.items() in ({"a": 1}, {"a": 2})  # its fate was unknown, the third's was not
    again.shard.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_failed_sync_is_not_believed_later(tmp_path: Path, seed: int) -> None:
    """What the page cache still shows is written anew before anything is built on it."""
    files = FaultyFiles(str(tmp_path), seed=seed)
    driver = Driver(files)
    driver.put(a=1)
    files.fail("sync", errno.EIO, name="journal")
    driver.put(b=2)
    assert driver.answers[1][0] is not None
    driver.shard.abandon()
    second = Driver(successor := files.kill())
    seen = second.items()
    second.put(c=3)
    assert second.answers == [(None, second.shard.stats()["records"])]
    second.shard.abandon()
    third = Driver(successor.crash())
    assert third.items() == seen | {"c": 3}
    third.shard.abandon()


def test_a_stale_owner_answers_nothing_and_its_late_records_are_ignored(tmp_path: Path) -> None:
    stale = Driver(str(tmp_path))
    stale.put(a=1)
    owner = Driver(str(tmp_path))
    owner.put(b=2)
    stale.put(c=3)
    stale.shard.confirm(stale.done)
    stale.loop.turn()
    assert stale.answers[0] == (None, 1)
    assert all(error is not None and sequence == 0 for error, sequence in stale.answers[1:])
    assert "taken over" in stale.shard.failed.message  # type: ignore[union-attr]
    stale.shard.abandon()
    owner.shard.abandon()
    third = Driver(str(tmp_path))
    assert third.items() == {"a": 1, "b": 2}
    third.shard.close()


def test_an_idle_owner_notices_that_it_has_lost_the_shard(tmp_path: Path) -> None:
    stale, owner = Driver(str(tmp_path)), Driver(str(tmp_path))
    stale.shard.expire()
    assert stale.shard.failed is not None
    stale.shard.abandon()
    owner.shard.close()


def test_a_dedicated_owner_is_fenced_alone(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    shard = driver.shard
    shard.claim_object(ROOM, driver.done)
    driver.loop.turn()
    assert driver.answers == [(None, 1)]
    assert not finish(shard.exists(ROOM))
    mine = Record("Room", "lobby", owner_epoch=1, writes=[(ITEM + "a", JSON, b"1")])
    shard.commit(mine, driver.done)
    shard.claim_object(ROOM, driver.done)
    stale = Record("Room", "lobby", owner_epoch=1, writes=[(ITEM + "a", JSON, b"9")])
    shard.commit(stale, driver.done)
    shard.confirm_object(ROOM, 1, driver.done)
    shard.confirm_object(ROOM, 2, driver.done)
    shard.commit(items("other", a=1), driver.done)
    driver.loop.turn()
    succeeded = [error is None for error, _ in driver.answers]
    assert succeeded == [True, True, True, False, False, True, True]
    assert driver.answers[2] == (None, 2)
    assert driver.items() == {"a": 1}
    driver.fold()
    shard.abandon()
    again = Driver(str(tmp_path))
    assert finish(again.shard.load(ROOM)).owner_epoch == 2
    again.shard.close()


def test_a_dedicated_owner_claims_again_only_what_is_still_its_own(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    driver.shard.claim_object(ROOM, driver.done)
    driver.shard.claim_object(ROOM, driver.done, last=1)  # the same actor, in the same process
    driver.shard.claim_object(ROOM, driver.done)  # another one
    driver.shard.claim_object(ROOM, driver.done, last=2)
    driver.shard.confirm_object(ROOM, 3, driver.done)
    driver.loop.turn()
    outcomes = [(error is None, epoch) for error, epoch in driver.answers]
    assert outcomes == [(True, 1), (True, 2), (True, 3), (False, 0), (True, 0)]
    refusal = driver.answers[3][0]
    assert refusal is not None
    assert refusal.details == {"lost": "epoch"}
    driver.shard.close()


def test_a_process_that_opens_again_does_not_take_the_shard_from_its_successor(
    tmp_path: Path,
) -> None:
    files, claims = FaultyFiles(str(tmp_path)), Claims()
    stale = Driver(files, claims=claims)
    stale.put(a=1)
    files.fail("sync", errno.EIO, name="journal")
    stale.put(b=2)
    assert stale.answers[-1][0] is not None
    stale.shard.abandon()
    owner = Driver(FaultyFiles(str(tmp_path), beside=files))
    owner.put(c=3)
    with pytest.raises(StorageFailed, match="taken over") as caught:
        Driver(files, claims=claims)
    assert caught.value.details == {"lost": "epoch"}
    owner.put(d=4)
    assert owner.answers == [(None, 3), (None, 4)]
    owner.shard.close()


def test_a_process_may_open_again_after_an_opening_that_failed(tmp_path: Path) -> None:
    files, claims = FaultyFiles(str(tmp_path)), Claims()
    first = Driver(files, claims=claims)
    first.put(a=1)
    first.shard.abandon()
    files.fail("sync", errno.EIO, name="journal")  # what recovery writes anew
    with pytest.raises(StorageFailed, match="Input/output error"):
        Driver(files, claims=claims)
    third = Driver(files, claims=claims)
    assert third.items() == {"a": 1}
    assert third.shard.epoch == 3
    third.shard.close()


def test_confirm_comes_after_the_commits_before_it(tmp_path: Path) -> None:
    driver, order = Driver(str(tmp_path)), []
    driver.shard.commit(items(a=1), lambda error, sequence: order.append(("commit", error)))
    driver.shard.confirm(lambda error, sequence: order.append(("confirm", error)))
    driver.loop.turn()
    assert order == [("commit", None), ("confirm", None)]
    driver.shard.close()


def test_a_load_that_a_fold_overtakes_sees_every_commit(tmp_path: Path) -> None:
    """The checkpoint is asked in the middle of a fold and answers from before or after it."""

    async def main() -> None:
        driver = Driver(str(tmp_path))
        driver.put(a=1, b=1)
        await driver.shard.fold()
        driver.put(a=2, b=None)
        reading, memtable = driver.shard._reading, driver.shard._memtable
        for folded_between in (0, 1, 2):
            oldest = memtable.oldest
            before = reading._stored([ROOM])
            for _ in range(folded_between):
                driver.put(a=3 + folded_between)
                await driver.shard.fold()
            after = reading._stored([ROOM])
            driver.put(c=folded_between)
            expected = {"a": 3 + folded_between if folded_between else 2, "c": folded_between}
            for stored in (before, after):
                loaded = reading._loaded(ROOM, stored[ROOM], oldest)
                found = {key[1:]: int(data) for key, (_, data) in loaded.entries.items()}
                assert found == expected
        driver.shard.close()

    asyncio.run(main())


def test_large_objects_come_by_key_and_page(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    shard, count = driver.shard, LOAD_WHOLE_KEYS_MAX + 100
    model = {f"{ITEM}{i:04d}": i for i in range(count)}
    writes = [(key, JSON, b"%d" % value) for key, value in model.items()]
    shard.commit(Record("Room", "lobby", writes=[*writes, ("@n", JSON, b"7")]), driver.done)
    driver.loop.turn()
    driver.fold()
    # Some of it changes in the memtable.
    driver.put(**{"0003": None, "0005": 55, "0005x": 5, "9999": 9})
    del model["/0003"]
    model |= {"/0005": 55, "/0005x": 5, "/9999": 9}
    loaded = finish(shard.load(ROOM))
    assert (loaded.whole, loaded.entries) == (False, {"@n": (JSON, b"7")})
    assert shard.count(ROOM) == len(model)
    assert shard.read(ROOM, "/0003") is None
    assert shard.read(ROOM, "/0005") == (JSON, b"55")
    assert shard.read(ROOM, "/0006") == (JSON, b"6")
    assert shard.read(ROOM, "/none") is None
    for reverse in (False, True):
        for start, end in ((None, None), ("/0002", "/0006"), ("/0003", None), (None, "/0004")):
            expected = sorted(
                (k for k in model if (not start or k >= start) and (not end or k < end)),
                reverse=reverse,
            )
            for limit in (1, 2, 5, 1000):
                page = shard.scan(
                    ROOM, prefix=ITEM, start=start, end=end, limit=limit, reverse=reverse
                )
                assert [key for key, _, _ in page] == expected[:limit]
                assert [int(data) for _, _, data in page] == [model[k] for k in expected[:limit]]
    driver.shard.commit(Record("Room", "lobby", clear=True), driver.done)
    driver.loop.turn()
    assert (shard.count(ROOM), shard.read(ROOM, "/0006")) == (0, None)
    assert shard.scan(ROOM, prefix=ITEM) == []
    assert finish(shard.load(ROOM)).whole
    shard.close()


def test_names_are_listed_in_pages_over_both(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    for name in ("a", "b", "c", "é", "\U0001f600"):
        driver.put(name, n=1)
    driver.fold()
    driver.shard.commit(Record("Room", "b", delete=True), driver.done)
    driver.put("bb", n=1)
    shard = driver.shard
    assert finish(shard.list_objects("Room")) == ["a", "bb", "c", "é", "\U0001f600"]
    assert finish(shard.list_objects("Room", limit=2)) == ["a", "bb"]
    assert finish(shard.list_objects("Room", after="bb", limit=2)) == ["c", "é"]
    assert finish(shard.list_objects("Room", prefix="b")) == ["bb"]
    assert finish(shard.list_objects("Other")) == []
    shard.close()


@pytest.mark.parametrize("content", [b"", b"hello, I am no database" * 400])
def test_a_foreign_or_damaged_checkpoint_stops_the_shard(tmp_path: Path, content: bytes) -> None:
    driver = Driver(str(tmp_path))
    driver.put(a=1)
    driver.shard.close()
    path = tmp_path / "checkpoint.duckdb"
    assert b"DUCK" in path.read_bytes()[:16]
    path.write_bytes(content or path.read_bytes()[:4096] + os.urandom(8192))
    with pytest.raises(StorageFailed, match=str(path)):
        Driver(str(tmp_path))


def test_too_much_is_refused_and_nothing_of_it_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(str(tmp_path))
    monkeypatch.setattr(commits, "RECORD_BYTES_MAX", 1000)
    with pytest.raises(InvalidCall, match="at most 1,000 bytes"):
        driver.shard.commit(Record("Room", "lobby", reply=b"x" * 1000), driver.done)
    monkeypatch.setattr(commits, "UNSYNCED_BYTES_MAX", 10)
    driver.shard.commit(items(a=1), driver.done)
    with pytest.raises(Overloaded, match="wait for the disk"):
        driver.shard.commit(items(a=2), driver.done)
    driver.loop.turn()
    monkeypatch.setattr(room, "MEMTABLE_BYTES_MAX", 10)
    with pytest.raises(Overloaded, match="wait to be folded"):
        driver.shard.commit(items(a=3), driver.done)
    driver.fold()
    monkeypatch.undo()
    driver.put(a=4)
    assert driver.answers == [(None, 1), (None, 2)]
    assert driver.items() == {"a": 4}
    driver.shard.close()


def test_segments_rotate_and_go_when_they_are_folded(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path), segment_bytes_max=300)
    for number in range(20):
        driver.put(a=number)
    assert len(list(tmp_path.glob("journal-*"))) > 3
    driver.fold()
    assert len(list(tmp_path.glob("journal-*"))) == 1
    driver.put(a=20)
    driver.shard.abandon()
    again = Driver(str(tmp_path))
    assert again.items() == {"a": 20}
    again.shard.close()
    assert list(tmp_path.glob("journal-*")) == []


def test_with_threads_under_load_in_order_with_folds_between(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        shard = await asyncio.to_thread(
            lambda: Shard.open(
                str(tmp_path),
                "default-0000",
                clock=SystemClock(),
                soon=loop.call_soon,
                post=loop.call_soon_threadsafe,
                fold_records=300,
            )
        )
        answers: list[tuple[StorageFailed | None, int]] = []
        acknowledged: dict[str, int] = {}

        def commit(number: int) -> None:
            def done(error: StorageFailed | None, sequence: int) -> None:
                answers.append((error, sequence))
                acknowledged[f"n{number % 10}"] = number

            shard.commit(items(f"n{number % 10}", n=number), done)

        for number in range(2000):
            commit(number)
            if number % 50 == 0:
                name = f"n{number // 50 % 10}"
                asked = acknowledged.get(name, -1)
                loaded = await shard.load(ObjectId("Room", name))
                assert int(loaded.entries.get("/n", (JSON, b"-1"))[1]) >= asked
        await asyncio.to_thread(shard.close)
        assert answers == [(None, sequence) for sequence in range(1, 2001)]
        await asyncio.to_thread(shard.close)
        with pytest.raises(StorageFailed, match="closed"):
            await shard.load(ROOM)

    asyncio.run(main())
    again = Driver(str(tmp_path))
    assert [again.items(f"n{i}") for i in range(10)] == [{"n": 1990 + i} for i in range(10)]
    assert again.shard.epoch == 2
    again.shard.close()


def test_a_new_checkpoint_is_in_its_directory_before_a_segment_goes(tmp_path: Path) -> None:
    """DuckDB syncs its files, not the directory that they are in."""
    files = FaultyFiles(str(tmp_path), seed=1)
    driver = Driver(files, segment_bytes_max=100)
    for number in range(3):
        driver.put(a=number)
    begin = len(files.steps)
    driver.fold()
    steps = [step for step, _ in files.steps[begin:]]
    assert "unlink" in steps
    assert steps.index("sync_directory") < steps.index("unlink")
    driver.shard.abandon()

    again = Driver(files := files.kill(), segment_bytes_max=100)
    assert ("sync_directory", ".") in files.steps
    steps = [step for step, name in files.steps if name == "." or "journal" in name]
    assert steps.index("sync_directory") < steps.index("unlink")
    again.shard.abandon()


def test_a_directory_that_cannot_be_synced_keeps_the_segments(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    driver = Driver(files, segment_bytes_max=100)
    for number in range(3):
        driver.put(a=number)
    segments = sorted(tmp_path.glob("journal-*"))
    files.fail("sync_directory", errno.EIO)
    with pytest.raises(StorageFailed, match="cannot sync"):
        driver.fold()
    assert sorted(tmp_path.glob("journal-*")) == segments
    driver.shard.abandon()
    (tmp_path / "checkpoint.duckdb").unlink()  # as a power loss may leave it
    again = Driver(files.kill())
    assert again.items() == {"a": 2}
    again.shard.close()


def test_objects_with_the_same_hash_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checkpoint, merge):
        monkeypatch.setattr(module, "object_hash", lambda id: 7)
        monkeypatch.setattr(module, "key_hash", lambda id, key: 7)
    driver = Driver(str(tmp_path))
    for name in ("a", "b", "c", "d"):
        driver.put(name, k=1, l=1)
        driver.shard.claim_object(ObjectId("Room", name), driver.done)
    driver.fold()
    driver.put("a", k=2)
    driver.put("b", l=None)
    driver.shard.commit(Record("Room", "c", delete=True), driver.done)
    driver.shard.commit(Record("Room", "d", clear=True), driver.done)
    driver.shard.claim_object(ObjectId("Room", "b"), driver.done)
    driver.loop.turn()
    driver.fold()
    driver.shard.abandon()
    again = Driver(str(tmp_path))
    found = {name: again.items(name) for name in "abcd"}
    assert found == {"a": {"k": 2, "l": 1}, "b": {"k": 1}, "c": {}, "d": {}}
    assert finish(again.shard.list_objects("Room")) == ["a", "b", "d"]
    owners = [finish(again.shard.load(ObjectId("Room", name))).owner_epoch for name in "abcd"]
    assert owners == [1, 2, 1, 1]
    assert again.shard.read(ObjectId("Room", "b"), "/k") == (JSON, b"1")
    assert again.shard.count(ObjectId("Room", "a")) == 2
    again.shard.close()


def test_a_close_that_is_cut_off_lets_go_of_the_checkpoint(tmp_path: Path) -> None:
    files = FaultyFiles(str(tmp_path))
    driver = Driver(files)
    driver.put(n=1)
    driver.fold()
    driver.shard.commit(items(n=2), driver.done)
    files.crash_at = files.operations
    with pytest.raises(Crashed):
        driver.shard.close()  # in writing what was committed, before it folds
    driver.shard.abandon()
    successor = Driver(files.kill())
    assert successor.items() in ({"n": 1}, {"n": 2})
    successor.shard.close()


def test_a_checkpoint_that_is_in_use_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Driver(str(tmp_path))
    old.put(a=1)
    old.fold()
    monkeypatch.setattr(checkpoint, "OPEN_WITHIN_S", 0.2)
    with pytest.raises(StorageFailed, match="is in use, by another process or by this one"):
        Driver(str(tmp_path))
    monkeypatch.undo()
    letting_go = threading.Timer(0.1, old.shard.abandon)
    letting_go.start()
    again = Driver(str(tmp_path))
    letting_go.join()
    assert again.items() == {"a": 1}
    again.shard.close()
