"""The memtable: deltas, generations, and readers that a fold overtakes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from storage_double import examples

from rayobjects.storage.memtable import Delta, Memtable, is_live
from rayobjects.storage.records import ATTRIBUTE, DELETED, ITEM, JSON, Record, SocketChange, Write

KEY = ("Room", "berlin")


def record(sequence: int, **more: object) -> Record:
    return Record(*KEY, sequence=sequence, **more)  # type: ignore[arg-type]


def put(key: str, value: str) -> Write:
    return (key, JSON, value.encode())


class Model:
    """What an object is, said plainly."""

    def __init__(self) -> None:
        self.exists = False
        self.entries: dict[str, bytes] = {}
        self.owner = 0

    def apply(self, each: Record) -> None:
        if each.delete:
            self.exists, self.entries = False, {}
        if each.clear:
            self.entries = {k: v for k, v in self.entries.items() if not k.startswith(ITEM)}
        for key, encoding, data in each.writes:
            if encoding == DELETED:
                self.entries.pop(key, None)
            else:
                self.entries[key] = data
        if each.claims:
            return
        if not each.delete or self.entries or any(change.open for change in each.sockets):
            self.exists = True

    def copy(self) -> Model:
        made = Model()
        made.exists, made.entries = self.exists, dict(self.entries)
        return made


def over(base: Model, delta: Delta) -> tuple[bool, dict[str, bytes]]:
    """A checkpoint's answer with a delta laid over it."""
    entries = {} if delta.deleted else dict(base.entries)
    if delta.cleared:
        entries = {k: v for k, v in entries.items() if not k.startswith(ITEM)}
    for key, entry in delta.entries.items():
        entries.pop(key, None)
        if is_live(entry):
            entries[key] = entry[1]
    return (base.exists if delta.exists is None else delta.exists), entries


def test_an_object_that_nobody_knows() -> None:
    memtable = Memtable()
    delta = memtable.overlay(KEY, memtable.oldest)
    assert (delta.exists, delta.entries, delta.hides_items) == (None, {}, False)
    assert memtable.entry(KEY, "@a", memtable.oldest) == (False, None)


def test_figures() -> None:
    memtable = Memtable()
    memtable.apply([], 0, 1.0)
    assert memtable.active.first_at == 0
    memtable.apply([record(4), record(5)], 120, 7.0)
    memtable.apply([record(6)], 30, 9.0)
    active = memtable.active
    assert (active.records, active.size, active.first_at, active.last) == (3, 150, 7.0, 6)
    frozen = memtable.freeze()
    assert frozen is active
    memtable.apply([record(7)], 10, 11.0)
    assert (memtable.size, memtable.active.records) == (160, 1)
    memtable.drop(frozen)
    assert (memtable.size, memtable.oldest) == (10, memtable.active)


def test_a_claim_makes_no_object() -> None:
    memtable = Memtable()
    memtable.apply([record(1, owner_epoch=3, claims=True)], 10, 0)
    assert memtable.overlay(KEY, memtable.oldest).exists is None
    assert memtable.active.owners == {KEY: 3}
    memtable.apply([record(2)], 10, 0)
    assert memtable.overlay(KEY, memtable.oldest).exists is True


def test_delete_and_begin_anew() -> None:
    memtable = Memtable()
    memtable.apply([record(1, writes=[put("@a", "1"), put("/k", "1")])], 10, 0)
    memtable.apply([record(2, delete=True)], 10, 0)
    delta = memtable.overlay(KEY, memtable.oldest)
    assert (delta.exists, delta.deleted, delta.entries) == (False, True, {})
    memtable.apply([record(3, delete=True, writes=[put("@a", "2")])], 10, 0)
    assert memtable.overlay(KEY, memtable.oldest).exists is True
    memtable.apply([record(4, delete=True, sockets=[SocketChange("s", "g")])], 10, 0)
    delta = memtable.overlay(KEY, memtable.oldest)
    assert (delta.exists, delta.entries) == (True, {})
    memtable.apply([record(5, delete=True, sockets=[SocketChange("s", "g", False)])], 10, 0)
    assert memtable.overlay(KEY, memtable.oldest).exists is False


def test_clear_spares_attributes() -> None:
    memtable = Memtable()
    memtable.apply([record(1, writes=[put("@a", "1"), put("/k", "1"), put("/l", "1")])], 10, 0)
    memtable.freeze()
    memtable.apply([record(2, clear=True, writes=[put("/l", "2")])], 10, 0)
    delta = memtable.overlay(KEY, memtable.oldest)
    assert delta.entries == {"@a": (JSON, b"1"), "/l": (JSON, b"2")}
    assert delta.hides_items
    assert not delta.deleted
    assert memtable.entry(KEY, "/k", memtable.oldest) == (True, None)
    assert memtable.entry(KEY, "/other", memtable.oldest) == (True, None)
    assert memtable.entry(KEY, "@other", memtable.oldest) == (False, None)
    assert memtable.entry(KEY, "@a", memtable.oldest) == (True, (JSON, b"1"))


def test_names() -> None:
    memtable = Memtable()
    memtable.apply([Record("Room", name) for name in ("a", "ab", "b")], 10, 0)
    memtable.apply([Record("Model", "ac")], 10, 0)
    memtable.freeze()
    memtable.apply([Record("Room", "ab", delete=True)], 10, 0)
    memtable.apply([Record("Room", "zz", owner_epoch=1, claims=True)], 10, 0)
    oldest = memtable.oldest
    assert memtable.names("Room", "", "", oldest) == {"a": True, "ab": False, "b": True}
    assert memtable.names("Room", "a", "", oldest) == {"a": True, "ab": False}
    assert memtable.names("Room", "", "ab", oldest) == {"b": True}
    assert memtable.names("Model", "a", "", oldest) == {"ac": True}


KEYS = st.sampled_from([ATTRIBUTE + "a", ATTRIBUTE + "b", ITEM + "k", ITEM + "l"])
RECORDS = st.builds(
    lambda writes, clear, delete, sockets: Record(
        *KEY,
        writes=[(key, JSON if data else DELETED, data) for key, data in writes],
        clear=clear,
        delete=delete,
        sockets=sockets,
    ),
    st.lists(st.tuples(KEYS, st.sampled_from([b"", b"1", b"2", b"3"])), max_size=3),
    st.booleans(),
    st.sampled_from([False, False, True]),
    st.lists(st.builds(SocketChange, st.just("s"), st.just("g"), st.booleans()), max_size=1),
)


@given(
    before=st.lists(RECORDS, max_size=4),
    generations=st.lists(st.lists(RECORDS, max_size=4), min_size=1, max_size=4),
    folded=st.integers(0, 4),
)
@examples(60)
def test_a_reader_that_a_fold_overtakes_sees_the_same(
    before: list[Record], generations: list[list[Record]], folded: int
) -> None:
    """However many generations the checkpoint has when it answers, the result is the same."""
    checkpoint = Model()
    for each in before:
        checkpoint.apply(each)
    truth = checkpoint.copy()
    memtable = Memtable()
    answers = [checkpoint.copy()]
    for number, generation in enumerate(generations):
        if number:
            memtable.freeze()
        memtable.apply(generation, 1, 0)
        for each in generation:
            truth.apply(each)
            checkpoint.apply(each)
        answers.append(checkpoint.copy())
    oldest = memtable.oldest
    answer = answers[min(folded, len(generations))]
    for _ in range(min(folded, len(generations) - 1)):
        memtable.drop(memtable.oldest)
    delta = memtable.overlay(KEY, oldest)
    assert over(answer, delta) == (truth.exists, truth.entries)
    for key in ("@a", "@b", "/k", "/l"):
        decided, entry = memtable.entry(KEY, key, oldest)
        found = entry[1] if entry is not None else None
        assert (found if decided else answer.entries.get(key)) == truth.entries.get(key)
