"""Recovery's table, row by row."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_double import examples, record, segment, segment_of

from rayobjects.errors import StorageFailed
from rayobjects.storage.journal import (
    FORMAT,
    Segment,
    SegmentHeader,
    Tail,
    encode_group,
    encode_header,
    read_segment,
    segment_name,
)
from rayobjects.storage.recovery import Plan, decide

SHARD = "default-0000"
TORN = segment_of([record(1)])[len(segment_of()) :][:-3]
"""A group whose end is missing."""


def recover(*segments: Segment, epoch: int = 9, folded: int = 0) -> Plan:
    return decide(SHARD, epoch, folded, list(segments), lambda name: f"/root/{name}")


def sequences(plan: Plan) -> list[int]:
    return [each.sequence for each in plan.records]


def kept(plan: Plan) -> list[tuple[int, int]]:
    return [(int(name[8:-4]), last) for name, last in plan.keep]


def removed(plan: Plan) -> list[int]:
    return [int(name[8:-4]) for name in plan.remove]


def stops(*segments: Segment, match: str, epoch: int = 9, folded: int = 0) -> None:
    with pytest.raises(StorageFailed, match=match) as caught:
        recover(*segments, epoch=epoch, folded=folded)
    message = caught.value.message
    assert re.search(r"/root/journal-\d{20}\.log", message), "it names the file"
    assert "restore" in message or "write" in message, "it says what to do"


def test_row_1_missing() -> None:
    assert recover() == Plan()


def test_row_2_closed() -> None:
    assert recover(folded=7) == Plan(last=7)


def test_row_3_empty() -> None:
    plan = recover(segment(1, 0))
    assert (sequences(plan), plan.last, removed(plan)) == ([], 0, [1])
    plan = recover(segment(8, 7), folded=7)
    assert (sequences(plan), plan.last, removed(plan)) == ([], 7, [8])
    plan = recover(segment(1, 5), segment(6, 5))
    assert (sequences(plan), plan.last, kept(plan)) == ([1, 2, 3, 4, 5], 5, [(1, 5)])
    assert plan.rewrite == []


def test_row_4_torn_tail() -> None:
    plan = recover(segment(1, 3, tail=TORN))
    assert (sequences(plan), plan.last) == ([1, 2, 3], 3)
    assert [each.sequence for each in plan.rewrite] == [1, 2, 3]
    assert recover(segment(1, 0, tail=TORN)).last == 0


def test_row_5_torn_tail_taken_over() -> None:
    plan = recover(segment(1, 3, tail=TORN), segment(4, 6, epoch=2))
    assert (sequences(plan), kept(plan)) == ([1, 2, 3, 4, 5, 6], [(1, 3)])
    assert [each.sequence for each in plan.rewrite] == [4, 5, 6]


def test_row_6_torn_tail_inside() -> None:
    stops(segment(1, 3, tail=TORN), segment(4, 6), match=r"is damaged at byte \d+, and journal-")
    stops(segment(1, 3, tail=TORN), segment(5, 6, epoch=2), match="is damaged at byte")


def test_row_7_bad_record_in_the_middle() -> None:
    data = bytearray(segment_of([record(1)], [record(2)], [record(3)]))
    second = len(segment_of([record(1)]))
    data[second + 20] ^= 1
    damaged = read_segment(segment_name(1), bytes(data))
    assert damaged.tail is Tail.DAMAGED
    stops(damaged, match=f"is damaged at byte {second}, and records behind that are whole")


def test_row_8_gap_in_a_segment() -> None:
    for groups in ([[record(1), record(3)]], [[record(1)], [record(3)]], [[record(2)]]):
        gap = read_segment(segment_name(1), segment_of(*groups))
        stops(gap, match=r"record \d stands where \d belongs")


def test_row_9_gap_between_segments() -> None:
    stops(segment(1, 3), segment(5, 6), match="begins with record 5, but 4 should come before it")
    stops(segment(1, 3), segment(5, 6, epoch=2), match="begins with record 5, but 4 should")


def test_row_10_overlap() -> None:
    stops(segment(1, 4), segment(3, 6), match="repeats records of journal-.* the same owner")


def test_row_11_stale_segment() -> None:
    plan = recover(segment(1, 3), segment(4, 5, epoch=3), segment(6, 8, epoch=2))
    assert (sequences(plan), removed(plan)) == ([1, 2, 3, 4, 5], [6, 4])
    assert plan.last == 5


def test_row_12_stale_records() -> None:
    plan = recover(segment(1, 6), segment(4, 5, epoch=2))
    assert (sequences(plan), plan.last, kept(plan)) == ([1, 2, 3, 4, 5], 5, [(1, 3)])
    plan = recover(segment(1, 3, tail=TORN), segment(2, 2, epoch=2), segment(3, 4, epoch=3))
    assert sequences(plan) == [1, 2, 3, 4]
    data = bytearray(segment_of([record(1)], [record(2)]))
    data[len(segment_of()) + 20] ^= 1
    plan = recover(read_segment(segment_name(1), bytes(data)), segment(1, 1, epoch=2))
    assert (sequences(plan), plan.last) == ([1], 1), "what is superseded may be damaged"
    # The ones of the newer owner count.
    newer = [record(2, reply=b"newer")]
    plan = recover(
        segment(1, 3), read_segment(segment_name(2), segment_of(newer, first=2, epoch=2))
    )
    assert [each.reply for each in plan.records] == [b"", b"newer"]


def test_row_13_checkpoint_ahead() -> None:
    plan = recover(segment(1, 3), segment(4, 6), segment(7, 9), folded=4)
    assert (sequences(plan), kept(plan)) == ([5, 6, 7, 8, 9], [(4, 6)])
    assert removed(plan) == [1, 7]
    plan = recover(segment(1, 3), folded=3)
    assert (sequences(plan), plan.last, removed(plan)) == ([], 3, [1])
    plan = recover(segment(1, 3), folded=12)
    assert (sequences(plan), plan.last, removed(plan)) == ([], 12, [1])


def test_row_14_checkpoint_behind() -> None:
    stops(segment(5, 6), match="there is no checkpoint: records are missing")
    stops(segment(5, 6), folded=3, match="the checkpoint ends with record 3: records are missing")
    assert sequences(recover(segment(5, 6), folded=4)) == [5, 6]


def test_row_15_unknown_format() -> None:
    newer = encode_header(SegmentHeader(FORMAT + 1, 1, SHARD, 1))
    stops(read_segment(segment_name(1), newer), match="has the format 2, this version knows 1")
    header = SegmentHeader(FORMAT, 1, SHARD, 1)
    data = segment_of([record(1)])
    offset = len(data)
    data += encode_group(header, offset, 1, [b"\x01"])
    stops(
        read_segment(segment_name(1), data),
        match=rf"holds records that this version cannot read .*, at byte {offset}\.",
    )


@pytest.mark.parametrize("data", [b"", b"text", bytes(4096)])
def test_row_16_foreign_file(data: bytes) -> None:
    stops(read_segment(segment_name(1), data), match="is not a journal segment")
    stops(segment(1, 3), read_segment(segment_name(4), data), match="is not a journal segment")


def test_row_16_damaged_header() -> None:
    data = bytearray(segment_of([record(1)]))
    data[14] ^= 1
    stops(read_segment(segment_name(1), bytes(data)), match="has a damaged header")


def test_row_16_segment_of_another_shard() -> None:
    foreign = read_segment(segment_name(1), segment_of([record(1)], shard="default-0007"))
    stops(foreign, match="belongs to the shard default-0007, not to default-0000")


def test_row_16_renamed_segment() -> None:
    renamed = read_segment(segment_name(4), segment_of([record(1)]))
    stops(renamed, match="was renamed: it begins with record 1")


@pytest.mark.parametrize("epoch", [9, 10])
def test_row_17_epoch_lost(epoch: int) -> None:
    stops(
        segment(1, 3, epoch=epoch),
        match=f"under epoch {epoch}, but the epoch file has only reached 9: .* write {epoch} into",
    )


def test_row_18_damage_that_is_folded() -> None:
    data = bytearray(segment_of([record(1)], [record(2)]))
    data[len(segment_of()) + 20] ^= 1
    damaged = read_segment(segment_name(1), bytes(data))
    plan = recover(damaged, segment(3, 4), folded=2)
    assert (sequences(plan), removed(plan)) == ([3, 4], [1, 3])
    plan = recover(segment(1, 1, tail=TORN), segment(3, 4), folded=2)
    assert sequences(plan) == [3, 4]
    plan = recover(segment(1, 1), segment(3, 4), folded=2)
    assert sequences(plan) == [3, 4]
    stops(damaged, segment(3, 4), folded=1, match="is damaged at byte")


def test_segments_come_in_any_order() -> None:
    plan = recover(segment(4, 6), segment(7, 8), segment(1, 3))
    assert sequences(plan) == list(range(1, 9))


@given(st.data())
@examples(60)
def test_what_owners_one_after_another_leave(data: st.DataObject) -> None:
    """Each finds what the one before left, torn or not, folds some of it, and writes on; a stale
    one may write late into its own segment. The last one's view is what counts."""
    segments: dict[int, tuple[int, list[int], bytes]] = {}
    expected = 0
    folded = 0
    for epoch in range(1, data.draw(st.integers(1, 5)) + 1):
        first = expected + 1
        count = data.draw(st.integers(0, 4))
        late = data.draw(st.integers(0, 2)) if count else 0
        tail = data.draw(st.sampled_from([b"", TORN, b"\0" * 9]))
        segments[first] = (epoch, list(range(first, first + count + late)), tail)
        expected += count
        folded = data.draw(st.integers(folded, expected))
    # The last owner has no successor that its late records could be stale for.
    expected = max((numbers[-1] for _, numbers, _ in segments.values() if numbers), default=0)
    last_first = max(segments)
    last = segments[last_first][1]
    expected = last[-1] if last else last_first - 1
    found = [
        segment(first, first + len(numbers) - 1, epoch, tail=tail)
        for first, (epoch, numbers, tail) in segments.items()
    ]
    plan = recover(*found, folded=folded)
    assert sequences(plan) == list(range(folded + 1, expected + 1))
    assert plan.last == max(folded, expected)
    covered = {each.sequence for each in plan.rewrite}
    for first, end in kept(plan):
        covered |= set(range(first, end + 1))
    assert set(sequences(plan)) <= covered
