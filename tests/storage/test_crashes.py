"""Guarantees 1 and 4 under power loss: what was acknowledged is there, what was not is there wholly
or not at all, and the order is kept."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_double import Driver, now

from rayobjects.ids import ObjectId
from rayobjects.messages import Send
from rayobjects.storage.records import ITEM, JSON, Record, SocketChange
from rayobjects.testing.files import Crashed, FaultyFiles

NAMES = ("a", "b", "c")
Model = dict[str, dict[str, Any]]


def apply(model: Model, record: Record) -> Model:
    """What the storage should have after the record: written without looking at the storage."""
    model = copy.deepcopy(model)
    if record.delete:
        model.pop(record.name, None)
        return model
    state = model.setdefault(record.name, {"items": {}, "sockets": set()})
    if record.clear:
        state["items"] = {}
    for key, encoding, data in record.writes:
        if encoding == JSON:
            state["items"][key] = data
        else:
            state["items"].pop(key, None)
    for change in record.sockets:
        (state["sockets"].add if change.open else state["sockets"].discard)(change.socket)
    return model


def observe(driver: Driver) -> Model:
    model: Model = {}
    for name in NAMES:
        loaded = now(driver.shard.load(ObjectId("Room", name)))
        if loaded.exists:
            items = {key: data for key, (_, data) in loaded.entries.items()}
            model[name] = {"items": items, "sockets": {s.socket for s in loaded.sockets}}
        else:
            assert not loaded.entries
            assert not loaded.sockets
    assert now(driver.shard.list_objects("Room")) == sorted(model)
    return model


class World:
    """A shard that dies and comes back, and what it must have."""

    def __init__(self, root: str, seed: int) -> None:
        self.files = FaultyFiles(root, seed=seed)
        self.states: list[Model] = [{}]  # by sequence
        self.sends: list[int] = []
        self.acknowledged = 0
        self.driver: Driver | None = None

    def done(self, error: Any, sequence: int) -> None:
        if error is None:
            assert sequence == self.acknowledged + 1
            self.acknowledged = sequence

    def submit(self, record: Record) -> None:
        assert self.driver is not None
        self.states.append(apply(self.states[-1], record))
        if record.sends:
            self.sends.append(len(self.states) - 1)
        self.driver.shard.commit(record, self.done)

    def open(self) -> None:
        self.driver = Driver(self.files, segment_bytes_max=400)
        last = self.driver.shard.stats()["records"]
        assert self.acknowledged <= last < len(self.states)
        assert observe(self.driver) == self.states[last]
        del self.states[last + 1 :]
        self.sends = [sequence for sequence in self.sends if sequence <= last]
        assert [each.sequence for each in self.driver.shard.pending()] == self.sends
        for sequence in range(1, last + 1):
            # Every record has its call's id; each is known once, under its sequence.
            finished = self.driver.shard._indexes._finished[f"call{sequence}"]
            assert finished.sequence == sequence
        self.acknowledged = last

    def lose_power(self) -> None:
        if self.driver is not None:
            self.driver.shard.abandon()
            self.driver = None
        self.files = self.files.crash()

    def run(self, steps: list[Any]) -> None:
        if self.driver is None:
            self.open()
        assert self.driver is not None
        for step in steps:
            if step == "tick":
                self.driver.hands.run()
            elif step == "fold":
                self.driver.hands.run()
                self.driver.fold()
            elif step == "close":
                self.driver.shard.close()
                self.driver = None
                self.open()
            else:
                self.submit(self.record(*step))
        self.driver.hands.run()

    def record(self, kind: str, name: str, key: str, value: int) -> Record:
        record = Record("Room", name, call_id=f"call{len(self.states)}", finished_at=1_000_000.0)
        if kind == "delete":
            record.delete = True
        elif kind == "socket":
            record.sockets = [SocketChange(f"{name}{key}", "g", value % 2 == 0)]
            record.sends = [Send("g", 0, b"hello")] if value % 3 == 0 else []
        else:
            record.clear = kind == "clear"
            encoding = JSON if value % 5 else 0
            record.writes = [(ITEM + key, encoding, b"%d" % value if encoding else b"")]
        return record


RECORDS = st.tuples(
    st.sampled_from(["write", "write", "write", "clear", "delete", "socket"]),
    st.sampled_from(NAMES),
    st.sampled_from(["k", "l"]),
    st.integers(0, 999),
)
STEPS = st.lists(
    st.one_of(RECORDS, RECORDS, RECORDS, st.sampled_from(["tick", "tick", "fold", "close"])),
    max_size=14,
)


@settings(max_examples=15, deadline=None)
@given(
    lives=st.lists(st.tuples(STEPS, st.integers(0, 60)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_any_history_survives_power_losses_anywhere(
    lives: list[tuple[list[Any], int]], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as root:
        world = World(root, seed)
        for steps, crash_at in lives:
            world.files.crash_at = crash_at
            try:
                world.run(steps)
            except Crashed:
                pass
            world.lose_power()
        world.open()
        assert world.driver is not None
        world.driver.shard.close()


HISTORY: list[Any] = [
    ("write", "a", "k", 1),
    ("socket", "a", "s", 6),
    "tick",
    ("write", "b", "k", 2),
    "fold",
    ("delete", "b", "k", 0),
    ("write", "a", "l", 3),
    "tick",
    ("clear", "a", "k", 4),
    ("write", "c", "k", 7),
    "tick",
    "fold",
    ("write", "b", "l", 8),
]


def operations(root: Path) -> int:
    world = World(str(root), 0)
    world.run(HISTORY)
    count = world.files.operations
    world.lose_power()
    return count


@pytest.mark.parametrize("seed", [1])
def test_a_power_loss_at_every_operation(tmp_path: Path, seed: int) -> None:
    (tmp_path / "count").mkdir()
    for crash_at in range(operations(tmp_path / "count")):
        root = tmp_path / str(crash_at)
        root.mkdir()
        world = World(str(root), seed * 1000 + crash_at)
        world.files.crash_at = crash_at
        with pytest.raises(Crashed):
            world.run(HISTORY)
        world.lose_power()
        # The recovery is cut off too, before the one that counts.
        world.files.crash_at = crash_at % 9
        try:
            world.open()
        except Crashed:
            pass
        world.lose_power()
        world.open()
        assert world.driver is not None
        world.driver.shard.abandon()
