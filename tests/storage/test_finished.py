"""Finished calls: what is kept, for how long, and what goes first."""

from __future__ import annotations

from pathlib import Path

import pytest
from storage_double import ROOM, Driver

from rayobjects.errors import InvalidCall, from_wire
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import ERROR
from rayobjects.storage import finished as finished_module
from rayobjects.storage.finished import FinishedCalls
from rayobjects.storage.records import REPLY, Finished, Promise, Record
from rayobjects.testing.files import FaultyFiles

KEY = ("Room", "lobby")
OTHER = ("Room", "attic")


def call(number: int, size: int = 100, key: tuple[str, str] = KEY, id: str = "") -> Finished:
    reply = bytes([number]) * size
    return Finished(*key, id or f"c{number}", 0, reply, float(number), number)


def test_the_oldest_replies_go_first_and_their_calls_stay_known() -> None:
    calls = FinishedCalls(bytes_max=1_000)
    for number in range(10):
        calls.add(call(number))
    assert all(calls.get(KEY, f"c{number}") == call(number) for number in range(10))
    calls.add(call(10))
    assert calls.reply_bytes <= 1_000 - 1_000 // 8
    assert len(calls) == 11
    for number in range(3):
        found = calls.get(KEY, f"c{number}")
        assert found is not None
        assert (found.status, found.sequence, found.finished_at) == (ERROR, number, number)
        error = from_wire(found.reply)
        assert isinstance(error, InvalidCall)
        assert error.status == 410
        assert "has taken effect" in error.message
    assert all(calls.get(KEY, f"c{number}") == call(number) for number in range(3, 11))
    assert calls.get(OTHER, "c0") is None
    assert [each.sequence for each in calls.of(KEY)] == list(range(11))


def test_small_replies_are_never_dropped() -> None:
    calls = FinishedCalls(bytes_max=1_000)
    calls.add(call(0, 60))
    for number in range(1, 40):
        calls.add(call(number))
    assert calls.get(KEY, "c0") == call(0, 60)
    assert calls.reply_bytes <= 1_000


def test_one_object_does_not_forget_the_call_of_another() -> None:
    calls = FinishedCalls()
    calls.add(call(1, id="key:k"))
    calls.add(Finished(*OTHER, "key:k", 0, b"held", 1.0, 2, held=True))
    assert calls.forget("key:k", OTHER)
    assert calls.get(KEY, "key:k") == call(1, id="key:k")
    assert calls.get(OTHER, "key:k") is None
    assert not calls.forget("key:k", OTHER)
    calls.add(Finished(*OTHER, "key:k", 0, b"held", 1.0, 2, held=True))
    assert calls.forget("key:k", KEY)
    assert calls.get(KEY, "key:k") is None
    assert calls.get(OTHER, "key:k") is not None
    assert calls.held_bytes == 4


def test_bytes_are_counted_through_repetitions_forgetting_and_time() -> None:
    calls = FinishedCalls(bytes_max=1_000)
    calls.add(call(1))
    calls.add(call(2, key=OTHER, id="c1"))  # two objects, one id
    calls.add(call(3, 50, key=OTHER, id="c1"))
    calls.add(call(4, 50, id="c1"))
    assert (calls.reply_bytes, len(calls)) == (100, 2)
    assert calls.get(KEY, "c1") == call(4, 50, id="c1")
    assert calls.get(OTHER, "c1") == call(3, 50, key=OTHER, id="c1")
    assert calls.forget("c1")
    assert not calls.forget("c1")
    assert (calls.reply_bytes, len(calls)) == (50, 1)
    for number in range(5, 30):
        calls.add(call(number))
    dropped = calls.get(OTHER, "c1")
    assert dropped is not None
    assert dropped.status == 0, "it is small"
    calls.expire(FINISHED_WINDOW_S + 28)
    assert (calls.reply_bytes, len(calls)) == (200, 2)
    calls.expire(FINISHED_WINDOW_S + 31)
    assert (calls.reply_bytes, len(calls)) == (0, 0)


def test_calls_with_a_shared_id_are_dropped_too() -> None:
    calls = FinishedCalls(bytes_max=1_000)
    keys = [("Room", f"r{number}") for number in range(30)]
    for number, key in enumerate(keys):
        calls.add(call(number, key=key, id="same"))
    assert calls.reply_bytes <= 1_000
    found = [calls.get(key, "same") for key in keys]
    assert [each.sequence for each in found if each is not None] == list(range(30))
    statuses = [each.status for each in found if each is not None]
    assert statuses == sorted(statuses, reverse=True), "the oldest first"
    # One that takes effect anew has a reply again.
    calls.add(call(31, key=keys[0], id="same"))
    assert calls.get(keys[0], "same") == call(31, key=keys[0], id="same")


def test_a_fold_takes_what_is_still_known_as_it_is_known() -> None:
    calls = FinishedCalls(bytes_max=1_000)
    every = [call(number) for number in range(12)]
    for each in every:
        calls.add(each)
    calls.forget("c7")
    still = calls.still(every)
    assert [each.sequence for each in still] == [*range(7), *range(8, 12)]
    assert still[0].status == ERROR
    assert every[0].status == 0, "what a fold may be reading is not changed"
    calls.add(Finished(*KEY, "c8", 0, b"anew", 20.0, 20))
    assert call(8) not in calls.still(every)


@pytest.mark.parametrize("fold", [False, True])
def test_dropped_replies_come_back_dropped(
    tmp_path: Path, fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 5: known after a crash too, whether they were folded before they were dropped,
    after that, or not at all; and bounded when they are read again."""
    monkeypatch.setattr(FinishedCalls.__init__, "__defaults__", (1_000,))
    driver = Driver(FaultyFiles(str(tmp_path)))
    for number in range(30):
        record = Record(
            *ROOM, f"c{number}", 0, b"%02d" % number * 50, driver.clock.now() + number / 10
        )
        driver.shard.commit(record, driver.done)
        driver.loop.turn()
        if fold and number in (4, 20):
            driver.fold()
    for _ in range(2):
        found = [driver.shard.finished(ROOM, f"c{number}") for number in range(30)]
        assert [each.sequence for each in found if each is not None] == list(range(1, 31))
        kept = [each.reply for each in found if each is not None and each.status == 0]
        assert kept == [b"%02d" % number * 50 for number in range(30 - len(kept), 30)]
        assert 8 <= len(kept) <= 10
        assert driver.shard.stats()["finished_bytes"] == 100 * len(kept)
        driver.shard.abandon()
        driver = Driver(FaultyFiles(str(tmp_path)))
    driver.shard.close()


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("later_s", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("folds", [(), (0,), (1,), (0, 1)])
def test_of_two_records_of_one_call_the_younger_one_counts(
    tmp_path: Path, folds: tuple[int, ...], later_s: float, held: bool
) -> None:
    """Guarantee 5: that it was cut off, and its end; whatever the clock said, wherever a fold was,
    however often the shard is opened."""
    driver = Driver(FaultyFiles(str(tmp_path)))

    def commit(call_id: str, status: int, reply: bytes, at: float) -> None:
        record = Record(*ROOM, call_id, status, reply, driver.clock.now() + at, held=held)
        driver.shard.commit(record, driver.done)

    calls = [f"c{number}" for number in range(40)]  # a sort may keep the order of few
    for number, (status, reply, at) in enumerate([(ERROR, b"cut", 0.0), (0, b"end", later_s)]):
        for call_id in calls:
            commit(call_id, status, reply, at)
        driver.loop.turn()
        if number in folds:
            driver.fold()
    for end in ("abandon", "abandon", "close", "abandon", "close"):
        assert {driver.shard.finished(ROOM, each).reply for each in calls} == {b"end"}  # type: ignore[union-attr]
        assert driver.shard.finished_count == len(calls)
        driver.put(more=1)
        getattr(driver.shard, end)()
        driver = Driver(FaultyFiles(str(tmp_path)))

    if held:  # what is forgotten is so for good
        for call_id in calls:
            record = Record(*ROOM, promises=[Promise(REPLY, call_id, open=False)])
            driver.shard.commit(record, driver.done)
        driver.loop.turn()
        driver.shard.close()
        driver = Driver(FaultyFiles(str(tmp_path)))
        assert driver.shard.finished_count == 0
    driver.shard.close()


def test_a_held_call_that_ends_and_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    """Also if a fold had only that it was cut off."""
    driver = Driver(FaultyFiles(str(tmp_path)))
    for status, reply in ((ERROR, b"cut"), (0, b"end")):
        now = driver.clock.now()
        driver.shard.commit(Record(*ROOM, "c", status, reply, now, held=True), driver.done)
        driver.loop.turn()
        if status == ERROR:
            driver.fold()
    record = Record(*ROOM, promises=[Promise(REPLY, "c", open=False)])
    driver.shard.commit(record, driver.done)
    driver.loop.turn()
    for _ in range(2):
        assert driver.shard.finished_count == 0
        driver.fold()
        driver.shard.abandon()
        driver = Driver(FaultyFiles(str(tmp_path)))
    driver.shard.close()


def test_an_id_that_was_shared_is_had_once() -> None:
    calls = FinishedCalls()
    calls.add(call(1, id="key:k"))
    calls.add(call(2, key=OTHER, id="key:k"))
    assert calls.forget("key:k", KEY)
    calls.add(call(3, 50, key=OTHER, id="key:k"))
    assert calls.of(OTHER) == [call(3, 50, key=OTHER, id="key:k")]
    assert (calls.reply_bytes, len(calls)) == (50, 1)
    assert calls.forget("key:k", OTHER)
    assert calls.get(OTHER, "key:k") is None


def test_the_message_fits_the_limits() -> None:
    assert len(finished_module._DROPPED) < 1_000
