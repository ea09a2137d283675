"""Every row of the decision table in `storage.recovery`."""

from __future__ import annotations

import pytest

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
from rayobjects.storage.records import Record, encode
from rayobjects.storage.recovery import Plan, decide

SHARD = "default-0000"


def segment(
    first: int, count: int, *, epoch: int = 1, tail: Tail = Tail.CLEAN, problem: str = ""
) -> Segment:
    records = [Record("Room", "a", sequence=first + i, epoch=epoch) for i in range(count)]
    header = SegmentHeader(FORMAT, epoch, SHARD, first)
    return Segment(segment_name(first), first, header, records, tail, 100, problem)


def plan(*segments: Segment, folded: int = 0, epoch: int = 9) -> Plan:
    return decide(SHARD, epoch, folded, list(segments))


def sequences(records: list[Record]) -> list[int]:
    return [record.sequence for record in records]


def stops(*segments: Segment, folded: int = 0, says: str) -> None:
    with pytest.raises(StorageFailed, match=says) as caught:
        plan(*segments, folded=folded)
    assert "journal-" in caught.value.message


def test_row_1_missing() -> None:
    assert plan() == Plan()


def test_row_2_closed() -> None:
    assert plan(folded=7) == Plan(last=7)


def test_row_3_empty() -> None:
    found = plan(segment(1, 0))
    assert (found.last, found.records, found.remove) == (0, [], [segment_name(1)])


def test_row_4_torn_tail_is_cut_and_rewritten() -> None:
    found = plan(segment(1, 3, tail=Tail.TORN))
    assert sequences(found.records) == sequences(found.rewrite) == [1, 2, 3]
    assert found.last == 3


def test_row_5_torn_tail_taken_over() -> None:
    found = plan(segment(1, 3, tail=Tail.TORN), segment(4, 2, epoch=2))
    assert sequences(found.records) == [1, 2, 3, 4, 5]
    assert sequences(found.rewrite) == [4, 5]
    assert found.keep == [(segment_name(1), 3)]


def test_row_6_torn_tail_inside() -> None:
    stops(segment(1, 3, tail=Tail.TORN), segment(4, 2), says="is damaged at byte 100")
    stops(segment(1, 2, tail=Tail.TORN), segment(4, 2, epoch=2), says="is damaged at byte 100")


def test_row_7_bad_record_in_the_middle() -> None:
    stops(segment(1, 3, tail=Tail.DAMAGED), says="byte 100, and records behind that are whole")


def test_row_8_gap_in_a_segment() -> None:
    broken = segment(1, 3)
    broken.records[2].sequence = 4
    stops(broken, says="record 4 stands where 3 belongs")


def test_row_9_gap_between_segments() -> None:
    stops(segment(1, 3), segment(5, 2), says="begins with record 5, but 4 should")


def test_row_10_overlap() -> None:
    stops(segment(1, 3), segment(3, 2), says="repeats records")


def test_row_11_stale_segment() -> None:
    found = plan(segment(1, 3, epoch=2), segment(3, 9, epoch=1))
    assert sequences(found.records) == [1, 2, 3]
    assert segment_name(3) in found.remove


def test_row_12_stale_records() -> None:
    stale = segment(1, 9)
    found = plan(stale, segment(4, 1, epoch=2))
    assert [(r.sequence, r.epoch) for r in found.records] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert found.last == 4


def test_row_12_damage_among_stale_records_does_not_matter() -> None:
    found = plan(segment(1, 3, tail=Tail.DAMAGED), segment(4, 1, epoch=2))
    assert found.last == 4


@pytest.mark.parametrize("folded", [3, 5, 8])
def test_row_13_checkpoint_ahead(folded: int) -> None:
    found = plan(segment(1, 3), segment(4, 2), folded=folded)
    assert sequences(found.records) == [s for s in range(1, 6) if s > folded]
    assert found.last == max(folded, 5)
    assert segment_name(1) in found.remove


def test_row_14_checkpoint_behind() -> None:
    stops(segment(5, 3), folded=3, says="checkpoint ends with record 3: records are missing")
    stops(segment(5, 3), says="there is no checkpoint")


def test_row_15_unknown_format() -> None:
    header = SegmentHeader(FORMAT + 1, 1, SHARD, 1)
    stops(read_segment(segment_name(1), encode_header(header)), says="has the format 2")
    known = SegmentHeader(FORMAT, 1, SHARD, 1)
    data = encode_header(known)
    data += encode_group(known, len(data), 1, [b"\xa1x"])
    stops(read_segment(segment_name(1), data), says="cannot read")


def test_row_16_foreign_file() -> None:
    stops(read_segment(segment_name(1), b"hello"), says="is not a journal segment")
    stops(read_segment(segment_name(1), b""), says="is not a journal segment")
    other = SegmentHeader(FORMAT, 1, "default-0001", 1)
    stops(read_segment(segment_name(1), encode_header(other)), says="belongs to the shard")
    renamed = SegmentHeader(FORMAT, 1, SHARD, 1)
    stops(read_segment(segment_name(7), encode_header(renamed)), says="was renamed")
    data = bytearray(encode_header(renamed))
    data[-1] ^= 1
    stops(read_segment(segment_name(1), bytes(data)), says="damaged header")


def test_row_17_epoch_lost() -> None:
    stops(segment(1, 1, epoch=9), says="only reached 9")


def test_row_18_damage_that_is_folded() -> None:
    found = plan(segment(1, 1, tail=Tail.DAMAGED), segment(4, 2), folded=3)
    assert sequences(found.records) == [4, 5]
    assert segment_name(1) in found.remove


def journal(groups: list[list[Record]]) -> tuple[bytes, list[int]]:
    header = SegmentHeader(FORMAT, 1, SHARD, 1)
    data, offsets = encode_header(header), []
    for group in groups:
        offsets.append(len(data))
        data += encode_group(header, len(data), len(group), [encode(record) for record in group])
    return data, offsets


def test_a_segment_cut_or_flipped_anywhere_gives_whole_groups_only() -> None:
    records = [Record("Room", "a", reply=b"x" * 9, sequence=i + 1, epoch=1) for i in range(6)]
    data, offsets = journal([records[:2], records[2:5], records[5:]])
    ends = [*offsets, len(data)]
    for cut in range(offsets[0], len(data)):
        found = read_segment(segment_name(1), data[:cut])
        whole = sum(end <= cut for end in ends[1:])
        assert len(found.records) == [0, 2, 5, 6][whole]
        assert found.tail is (Tail.CLEAN if cut in ends else Tail.TORN)
    for at in range(offsets[0], len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        found = read_segment(segment_name(1), bytes(flipped))
        broken = sum(offset <= at for offset in offsets) - 1
        assert len(found.records) == [0, 2, 5][broken]
        assert found.tail is (Tail.TORN if broken == 2 else Tail.DAMAGED)
        assert found.offset == offsets[broken]


def test_a_copy_of_a_journal_inside_a_value_is_no_group() -> None:
    inner, _ = journal([[Record("Room", "a", sequence=1, epoch=1)]])
    data, offsets = journal([[Record("Room", "a", reply=inner, sequence=1, epoch=1)]])
    found = read_segment(segment_name(1), data[:-1])
    assert (found.tail, found.offset) == (Tail.TORN, offsets[0])
