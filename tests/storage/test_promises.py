"""Promises survive whatever the shard does: they are there until a record takes them back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rayobjects.ids import ObjectId
from rayobjects.limits import FINISHED_WINDOW_S, HELD_WINDOW_S
from rayobjects.storage.records import INTENT, SCHEDULE, STEP, TELL, Promise, Record
from rayobjects.storage.shard import Shard
from rayobjects.testing.clock import ManualClock

A = ObjectId("Account", "a")


class Owner:
    """A shard without threads, opened anew as often as a test likes."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.clock = ManualClock()
        self.shard = self.open()

    def open(self) -> Shard:
        return Shard.open(
            self.directory,
            "default-0000",
            clock=self.clock,
            soon=lambda callback: callback(),
            post=lambda callback: callback(),
            threads=False,
        )

    def commit(self, *promises: Promise, **fields: object) -> None:
        outcomes = []
        record = Record(*A, promises=list(promises), **fields)  # type: ignore[arg-type]
        self.shard.commit(record, lambda error, sequence: outcomes.append(error))
        assert outcomes == [None]

    def again(self, how: str) -> None:
        if how == "fold and crash":
            asyncio.run(self.shard.fold())
        if how == "close":
            self.shard.close()
        else:
            self.shard.abandon()
        self.shard = self.open()

    def keys(self) -> list[tuple[int, str]]:
        return [(promise.kind, promise.key) for _, promise in self.shard.promises()]


@pytest.fixture(params=["crash", "close", "fold and crash"])
def how(request: pytest.FixtureRequest) -> str:
    param: str = request.param
    return param


def test_kept_in_order_until_taken_back(tmp_path: Path, how: str) -> None:
    owner = Owner(tmp_path)
    owner.commit(Promise(TELL, "2"), Promise(TELL, "1"), Promise(SCHEDULE, "daily", 5.0, b"body"))
    owner.again(how)
    owner.commit(Promise(INTENT, "call"), Promise(STEP, "call/1"))
    owner.commit(Promise(SCHEDULE, "daily", 9.0, b"changed"))
    owner.again(how)
    made = [(TELL, "2"), (TELL, "1"), (SCHEDULE, "daily"), (INTENT, "call"), (STEP, "call/1")]
    assert owner.keys() == made
    daily = owner.shard.promise(A, SCHEDULE, "daily")
    assert daily is not None
    assert (daily.due, daily.body) == (9.0, b"changed")
    owner.commit(*(Promise(kind, key, open=False) for kind, key in made[1:]))
    owner.again(how)
    assert owner.keys() == [(TELL, "2")]
    assert owner.shard.stats()["promises"] == 1


def test_a_deleted_object_plans_nothing_but_delivers_what_it_told(tmp_path: Path, how: str) -> None:
    owner = Owner(tmp_path)
    owner.commit(
        Promise(TELL, "1"), Promise(SCHEDULE, "daily"), call_id="c", writes=[("@x", 1, b"1")]
    )
    owner.commit(delete=True)
    owner.again(how)
    assert owner.keys() == [(TELL, "1")]
    owner.commit(Promise(TELL, "1", open=False))
    owner.again(how)
    assert owner.keys() == []
    assert not asyncio.run(owner.shard.exists(A)), "taking back a promise makes no object"


def test_an_object_that_only_plans_exists_and_is_loaded_with_its_schedules(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.commit(Promise(SCHEDULE, "daily", 5.0), Promise(TELL, "1"), call_id="c")
    loaded = asyncio.run(owner.shard.load(A))
    assert loaded.exists
    assert [promise.key for promise in loaded.schedules] == ["daily"]


def test_held_replies_outlast_the_window_until_they_are_forgotten(tmp_path: Path, how: str) -> None:
    owner = Owner(tmp_path)
    now = owner.clock.now()
    owner.commit(call_id="child", reply=b"1", finished_at=now, held=True, arguments_hash=7)
    owner.commit(call_id="plain", reply=b"2", finished_at=now)
    owner.again(how)
    owner.clock.move(FINISHED_WINDOW_S + 1)
    owner.shard.expire()
    owner.commit(call_id="later")
    owner.again(how)
    assert owner.shard.finished(A, "plain") is None
    child = owner.shard.finished(A, "child")
    assert child is not None
    assert (child.reply, child.arguments_hash) == (b"1", 7)
    owner.shard.forget("child")
    assert owner.shard.finished(A, "child") is None
    owner.commit(call_id="last")
    owner.again("close")  # a crash may bring it back: it is only said once more
    assert owner.shard.finished(A, "child") is None


def test_held_replies_are_not_kept_for_ever(tmp_path: Path, how: str) -> None:
    owner = Owner(tmp_path)
    owner.commit(call_id="child", finished_at=owner.clock.now(), held=True)
    owner.clock.move(HELD_WINDOW_S + 1)
    owner.again(how)
    owner.commit(call_id="last", finished_at=owner.clock.now())
    owner.again(how)
    owner.shard.expire()
    assert owner.shard.finished(A, "child") is None
