"""`self.storage`, small and large: the same mapping, whatever is in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objects_double import Live, MemoryLedger

from rayobjects.errors import InvalidCall, StorageFailed
from rayobjects.limits import LOAD_WHOLE_BYTES_MAX, LOAD_WHOLE_KEYS_MAX
from rayobjects.objects.model import DurableObject


class Box(DurableObject):
    pass


def filled(count: int, *, whole: bool) -> Live:
    box = Live(Box, MemoryLedger())
    box.call(lambda b: b.storage.update({f"{i:05}": i for i in range(count)}))
    return box.reloaded(whole=whole)


@pytest.mark.parametrize("whole", [True, False])
def test_a_mapping(whole: bool) -> None:
    box = filled(10, whole=whole)

    def use(b: Box) -> None:
        storage = b.storage
        assert storage["00003"] == 3
        assert "00003" in storage
        assert "x" not in storage
        assert 3 not in storage
        with pytest.raises(KeyError):
            storage["x"]
        with pytest.raises(KeyError):
            del storage["x"]
        storage["x"] = [1]
        storage["x"].append(2)
        del storage["00003"]
        assert "00003" not in storage
        assert len(storage) == 10
        assert storage.get("00003", 7) == 7
        assert storage.pop("00004") == 4
        assert list(storage)[-1] == "x"
        assert next(reversed(storage)) == "x"
        assert bool(storage)
        assert storage.setdefault("y", 1) == 1

    box.call(use)
    again = box.reloaded(whole=whole)
    assert again.instance.storage["x"] == [1, 2]
    assert len(again.instance.storage) == 10


@pytest.mark.parametrize("whole", [True, False])
def test_ranges(whole: bool) -> None:
    box = filled(100, whole=whole)
    storage = box.instance.storage
    assert storage.list(start="00010", end="00013") == {"00010": 10, "00011": 11, "00012": 12}
    assert list(storage.list(prefix="0009", reverse=True, limit=2)) == ["00099", "00098"]
    assert storage.list(limit=0) == {}
    assert list(storage.list(start="00098")) == ["00098", "00099"]
    assert storage.list(prefix="zz") == {}
    with pytest.raises(InvalidCall, match="limit"):
        storage.list(limit=-1)


@pytest.mark.parametrize("whole", [True, False])
def test_delete_all_and_rollback(whole: bool) -> None:
    box = filled(10, whole=whole)

    def fail(b: Box) -> None:
        b.storage["00001"] = "other"
        b.storage.delete_all()
        assert len(b.storage) == 0
        assert not b.storage
        b.storage["new"] = 1
        assert list(b.storage) == ["new"]
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (raised just above)
        box.call(fail)
    assert len(box.instance.storage) == 10
    assert box.instance.storage["00001"] == 1

    box.call(lambda b: (b.storage.delete_all(), b.storage.update({"00001": 1})), sync=False)
    assert box.changes.clear
    assert [write[0] for write in box.changes.writes] == ["/00001"]
    assert dict(box.instance.storage) == {"00001": 1}  # though the ledger has the old ones yet
    assert dict(box.reloaded(whole=whole).instance.storage) == {"00001": 1}


def test_deleting_all_of_nothing_is_no_change() -> None:
    box = Live(Box, MemoryLedger())
    box.call(lambda b: b.storage.clear())
    assert not box.changes


def test_a_large_object_sees_what_is_not_synced_yet() -> None:
    box = filled(50, whole=False)
    box.call(lambda b: b.storage.update({"00001": "new", "a": 1}), sync=False)
    box.call(lambda b: b.storage.__delitem__("00002"), sync=False)
    storage = box.instance.storage
    assert storage["00001"] == "new"
    assert "00002" not in storage
    assert len(storage) == 50
    assert list(storage)[:3] == ["00000", "00001", "00003"]
    assert "00002" not in storage.list()
    box.ledger.sync()
    assert len(storage) == 50
    box.state.trim()
    assert storage["00001"] == "new"
    assert "00002" not in storage
    assert len(storage) == 50


def test_a_large_object_is_iterated_page_by_page() -> None:
    box = filled(5_000, whole=False)
    before = box.ledger.queries
    keys = iter(box.instance.storage)
    assert next(keys) == "00000"
    assert box.ledger.queries == before + 1
    assert sum(1 for _ in keys) == 4_999
    assert box.ledger.queries < before + 12
    assert not box.state.live
    assert sum(v for _, v in box.instance.storage.items()) == sum(range(5_000))
    assert box.ledger.queries < before + 24


def test_deleting_while_iterating() -> None:
    for whole in (True, False):
        box = filled(100, whole=whole)

        def sweep(b: Box) -> None:
            for key in b.storage:
                del b.storage[key]

        box.call(sweep)
        assert len(box.instance.storage) == 0


def test_changes_inside_values_of_a_large_object_are_noticed() -> None:
    box = Live(Box, MemoryLedger())
    box.call(lambda b: b.storage.update({"a": [1], "b": {"x": {1}}}))
    box = box.reloaded(whole=False)
    box.call(lambda b: (b.storage["a"], b.storage["b"]))
    assert not box.changes
    box.call(lambda b: [value.update(y=2) for value in b.storage.values() if value != [1]])
    assert [write[0] for write in box.changes.writes] == ["/b"]
    assert not box.state.live
    assert box.reloaded().instance.storage["b"] == {"x": {1}, "y": 2}


def test_copies_are_copies() -> None:
    box = Live(Box, MemoryLedger())
    box.call(lambda b: b.storage.update(a=[1]))
    box.call(lambda b: b.storage.__setitem__("copy", b.storage["a"]))
    box.call(lambda b: b.storage["a"].append(2))
    assert box.instance.storage["copy"] == [1]


@pytest.mark.parametrize(
    ("key", "problem"),
    [("", "empty"), ("x" * 2049, "2,048"), (3, "not int"), ("\ud800", "UTF-8"), (b"x", "bytes")],
)
def test_wrong_keys(key: Any, problem: str) -> None:
    box = Live(Box, MemoryLedger())
    with pytest.raises(InvalidCall, match=problem):
        box.call(lambda b: b.storage.__setitem__(key, 1))


def test_keys_of_the_largest_size_and_odd_characters() -> None:
    box = Live(Box, MemoryLedger())
    keys = ["x" * 2048, "ä" * 1024, "\0", "/", "@", "\U0001f600"]
    box.call(lambda b: b.storage.update(dict.fromkeys(keys, 1)))
    assert list(box.reloaded().instance.storage) == sorted(keys, key=str.encode)


def test_grown() -> None:
    box = filled(LOAD_WHOLE_KEYS_MAX, whole=True)
    assert not box.state.grown
    box.call(lambda b: b.storage.__setitem__("more", 1))
    assert box.state.grown
    assert not filled(LOAD_WHOLE_KEYS_MAX + 1, whole=False).state.grown
    box = Live(Box, MemoryLedger())
    box.call(lambda b: b.storage.__setitem__("large", "x" * LOAD_WHOLE_BYTES_MAX))
    assert box.state.grown
    box.call(lambda b: b.storage.__delitem__("large"))
    assert not box.state.grown


def test_a_value_whose_class_is_gone_says_so() -> None:
    ledger = MemoryLedger()
    box = Live(Box, ledger)
    box.call(lambda b: b.storage.update(a=1))
    ledger.objects[box.id]["/a"] = (2, b"cnowhere\nThing\n.")
    with pytest.raises(StorageFailed, match=r"storage key 'a' of Box/one cannot be read.*nowhere"):
        box.reloaded().call(lambda b: b.storage["a"])


_steps = st.lists(
    st.tuples(
        st.sampled_from(["set", "append", "del", "clear", "read", "end", "fail", "sync", "len"]),
        st.sampled_from(["a", "b", "c", "ab", "ä", "\U0001f600"]),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(_steps, st.booleans())
def test_like_a_dict_with_transactions(steps: list[tuple[str, str, int]], whole: bool) -> None:
    """The storage behaves as a dict that is copied when a call begins."""
    box = Live(Box, MemoryLedger(), whole=whole)
    committed: dict[str, list[int]] = {}
    model: dict[str, list[int]] = {}
    state, storage = box.state, box.instance.storage
    state.begin()
    for step, key, number in steps:
        if step == "set":
            storage[key] = [number]
            model[key] = [number]
        elif step == "append" and key in model:
            storage[key].append(number)
            model[key].append(number)
        elif step == "del" and key in model:
            del storage[key]
            del model[key]
        elif step == "clear":
            storage.delete_all()
            model.clear()
        elif step == "read":
            assert storage.get(key) == model.get(key)
            assert (key in storage) == (key in model)
            low = storage.list(start=key, limit=2, reverse=bool(number % 2))
            wanted = sorted((k for k in model if k >= key), reverse=bool(number % 2))[:2]
            assert list(low.items()) == [(k, model[k]) for k in wanted]
        elif step == "len":
            assert len(storage) == len(model)
        elif step == "sync":
            box.ledger.sync()
        elif step in ("end", "fail"):
            if step == "end":
                changes = state.changes()
                if changes:
                    box.ledger.commit(box.id, changes)
                state.commit()
                committed = {k: list(v) for k, v in model.items()}
            else:
                state.rollback()
                model = {k: list(v) for k, v in committed.items()}
            if not box.ledger.unsynced:
                state.trim()
            state.begin()
        assert list(storage) == sorted(model)
    state.rollback()
    assert dict(storage) == committed
    assert dict(box.reloaded(whole=whole).instance.storage) == committed
