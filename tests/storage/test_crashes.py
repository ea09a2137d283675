"""Guarantees 1 and 4 when the process dies, or the power fails, at every single operation of a
history, and again in the recovery: what was acknowledged is there, what was not is there wholly or
not at all, and the order is kept. `test_shard_machine` takes any history, at some operations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from storage_double import EXAMPLES, Driver, finish

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
        loaded = finish(driver.shard.load(ObjectId("Room", name)))
        if loaded.exists:
            items = {key: data for key, (_, data) in loaded.entries.items()}
            model[name] = {"items": items, "sockets": {s.socket for s in loaded.sockets}}
        else:
            assert not loaded.entries
            assert not loaded.sockets
    assert finish(driver.shard.list_objects("Room")) == sorted(model)
    return model


class World:
    """A shard that dies and comes back, and what it must have."""

    def __init__(self, root: str, seed: int) -> None:
        self.files = FaultyFiles(root, seed=seed)
        self.states: list[Model] = [{}]  # by sequence
        self.sends: list[int] = []
        self.acknowledged = 0
        self.wrong: list[str] = []  # what a callback found: the shard catches what it raises
        self.driver: Driver | None = None

    def done(self, error: Any, sequence: int) -> None:
        if error is not None:
            self.wrong.append(f"failed: {error.message}")
        elif sequence != self.acknowledged + 1:
            self.wrong.append(f"{sequence} came after {self.acknowledged}")
        else:
            self.acknowledged = sequence

    def submit(self, record: Record) -> None:
        assert self.driver is not None
        self.states.append(apply(self.states[-1], record))
        if record.sends:
            self.sends.append(len(self.states) - 1)
        self.driver.shard.commit(record, self.done)

    def open(self) -> None:
        assert not self.wrong
        self.driver = Driver(self.files, segment_bytes_max=400)
        last = self.driver.shard.stats()["records"]
        assert self.acknowledged <= last < len(self.states)
        assert observe(self.driver) == self.states[last]
        del self.states[last + 1 :]
        self.sends = [sequence for sequence in self.sends if sequence <= last]
        assert [each.sequence for each in self.driver.shard.pending()] == self.sends
        for sequence in range(1, last + 1):
            # Every record has its call's id; each is known once, under its sequence.
            finished = self.driver.shard._indexes.calls._by_id[f"call{sequence}"]
            assert finished.sequence == sequence
        self.acknowledged = last

    def end(self, how: str) -> None:
        """Ends the process, by `kill` or `crash`; the next one has not begun."""
        if self.driver is not None:
            self.driver.shard.abandon()
            self.driver = None
        self.files = self.files.crash() if how == "crash" else self.files.kill()

    def run(self, steps: list[Any]) -> None:
        if self.driver is None:
            self.open()
        assert self.driver is not None
        for step in steps:
            if step == "tick":
                self.driver.loop.turn()
            elif step == "fold":
                self.driver.loop.turn()
                self.driver.fold()
            elif step == "close":
                self.driver.shard.close()
                self.open()
            else:
                self.submit(self.record(*step))
        self.driver.loop.turn()

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
    "close",
    ("write", "b", "k", 9),
]


def operations(root: Path) -> int:
    world = World(str(root), 0)
    world.run(HISTORY)
    count = world.files.operations
    assert world.acknowledged == len(world.states) - 1 == 9
    world.end("kill")
    return count


@pytest.mark.parametrize(("how", "step"), [("crash", 1), ("kill", 1 if EXAMPLES else 4)])
def test_an_end_at_every_operation(tmp_path: Path, how: str, step: int) -> None:
    (tmp_path / "count").mkdir()
    for crash_at in range(0, operations(tmp_path / "count"), step):
        root = tmp_path / str(crash_at)
        root.mkdir()
        world = World(str(root), 1000 + crash_at)
        world.files.crash_at = crash_at
        with pytest.raises(Crashed):
            world.run(HISTORY)
        world.end(how)
        # The recovery is cut off too, before the one that counts.
        world.files.crash_at = crash_at % 9
        try:
            world.open()
        except Crashed:
            pass
        world.end(how)
        world.open()
        assert world.driver is not None
        world.driver.shard.abandon()
