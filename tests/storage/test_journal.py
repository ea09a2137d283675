"""The journal's format and its writer."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_double import examples, record, segment_of

from rayobjects.errors import StorageFailed
from rayobjects.limits import GROUP_BYTES_MAX
from rayobjects.messages import Send
from rayobjects.storage import journal as journal_module
from rayobjects.storage.journal import (
    FORMAT,
    GROUP_MAGIC,
    Journal,
    Segment,
    SegmentHeader,
    Tail,
    encode_group,
    encode_header,
    first_of,
    read_segment,
    segment_name,
)
from rayobjects.storage.ownership import Ownership
from rayobjects.storage.records import JSON, SocketChange, encode
from rayobjects.testing.files import FaultyFiles


def read(data: bytes, first: int = 1) -> Segment:
    return read_segment(segment_name(first), data)


# -- the format ---------------------------------------------------------------------------------


def test_names() -> None:
    assert segment_name(17) == "journal-00000000000000000017.log"
    assert first_of(segment_name(17)) == 17
    for name in ("epoch", "journal-17.log", f"{segment_name(17)}.tmp", "xjournal-17.log"):
        assert first_of(name) is None


def test_the_format_does_not_change() -> None:
    """A segment of the first release is read for ever; what has come since stands at the end."""
    header = "524f424a4c4f470a00000011098309f9940101ac64656661756c742d3030303001"
    group = "f547525000000030d327ce62dd00000001"
    body = "9fa4526f6f6da66265726c696ea000c400cb00000000000000009193a2406e01c40131c2c2909000c20101"
    segment = read(bytes.fromhex(header + group + body))
    assert segment.header == SegmentHeader(1, 1, "default-0000", 1)
    assert segment.records == [record(1, writes=[("@n", JSON, b"1")])]
    data = segment_of([record(1, writes=[("@n", JSON, b"1")])])
    assert data.hex().startswith(header + group[:8])
    first = msgspec.msgpack.decode(bytes.fromhex(body))
    now = msgspec.msgpack.decode(encode(record(1, writes=[("@n", JSON, b"1")])))
    assert now[: len(first)] == first


def test_records_come_back_as_they_were() -> None:
    records = [
        record(1, call_id="c", status=200, reply=b"\x00reply", finished_at=12.5),
        record(2, writes=[("/k", JSON, b"1"), ("@a", 0, b""), ("/p", 2, b"\x80")], clear=True),
        record(3, delete=True),
        record(4, sockets=[SocketChange("s", "g", True, ("a", "b"), JSON, b"{}")]),
        record(5, sends=[Send("g", 1, b"hi", 0, ("s",), ("t",)), Send("g", 2, b"", 0, None)]),
        record(6, owner_epoch=3, claims=True),
    ]
    segment = read(segment_of(records[:2], records[2:]))
    assert segment.records == records
    assert (segment.tail, segment.problem) == (Tail.CLEAN, "")
    assert segment.offset == len(segment_of(records[:2], records[2:]))


def test_every_cut_is_a_torn_tail() -> None:
    whole = segment_of([record(1)], [record(2), record(3)])
    second = len(segment_of([record(1)]))
    for end in range(second + 1, len(whole)):
        segment = read(whole[:end])
        assert (segment.tail, segment.offset) == (Tail.TORN, second)
        assert [each.sequence for each in segment.records] == [1]
    head = len(segment_of())
    assert read(whole[:head]).tail is Tail.CLEAN
    for end in range(head):
        assert read(whole[:end]).header is None


def test_every_changed_byte_is_found() -> None:
    whole = segment_of([record(1)], [record(2)], [record(3)])
    starts = [len(segment_of()), len(segment_of([record(1)]))]
    starts.append(len(segment_of([record(1)], [record(2)])))
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0x40
        segment = read(bytes(data))
        if position < starts[0]:
            assert segment.header is None
            continue
        intact = sum(start <= position for start in starts) - 1
        assert [each.sequence for each in segment.records] == list(range(1, intact + 1))
        assert segment.tail is (Tail.TORN if intact == 2 else Tail.DAMAGED)
        assert segment.offset == starts[intact]


def test_a_group_counts_at_its_own_place_only() -> None:
    """A value may contain a copy of a journal, or of the very group that is broken."""
    inner = segment_of([record(1)], [record(2)])
    whole = segment_of([record(1, reply=inner)])
    torn = read(whole[:-1])
    assert (torn.tail, torn.records) == (Tail.TORN, [])
    # A group of another segment or epoch, at the same offset, does not count either.
    head = len(segment_of())
    for other in (segment_of([record(1)], epoch=2), segment_of([record(1)], first=9)):
        assert read(segment_of() + other[head:]).tail is Tail.TORN


def test_a_length_that_cannot_be_is_not_believed() -> None:
    head = segment_of()
    assert read(head + GROUP_MAGIC + b"\xff\xff\xff\xff" + bytes(100)).tail is Tail.TORN
    assert read(head + bytes(4096)).tail is Tail.TORN


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not a journal segment"),
        (b"SQLite format 3\0" + bytes(100), "is not a journal segment"),
        (segment_of()[:-1], "has a damaged header"),
        (segment_of()[:12] + bytes(4) + segment_of()[16:], "has a damaged header"),
        (
            encode_header(SegmentHeader(FORMAT + 1, 1, "default-0000", 1)),
            "has the format 2, this version knows 1",
        ),
    ],
)
def test_headers_that_cannot_be_read(data: bytes, problem: str) -> None:
    segment = read(data)
    assert segment.header is None
    assert segment.problem == problem


def test_an_unknown_kind_of_header() -> None:
    import google_crc32c
    import msgspec

    payload = msgspec.msgpack.encode({"format": 1})
    prefix = journal_module._HEADER_PREFIX.pack(
        journal_module.MAGIC, len(payload), google_crc32c.value(payload)
    )
    assert read(prefix + payload).problem == "has an unknown format"


def test_records_that_cannot_be_read() -> None:
    header = SegmentHeader(FORMAT, 1, "default-0000", 1)
    data = segment_of([record(1)])
    size = len(data)
    data += encode_group(header, size, 1, [encode({"not": "a record"})])
    segment = read(data)
    assert segment.problem.startswith("holds records that this version cannot read")
    assert (segment.offset, len(segment.records)) == (size, 1)


def test_fields_that_a_newer_version_appends_are_ignored() -> None:
    import msgspec

    header = SegmentHeader(FORMAT, 1, "default-0000", 1)
    data = segment_of()
    plain = [*msgspec.msgpack.decode(encode(record(1))), "something new"]
    data += encode_group(header, len(data), 1, [msgspec.msgpack.encode(plain)])
    assert read(data).records == [record(1)]


@given(
    groups=st.lists(st.lists(st.binary(max_size=60), min_size=1, max_size=3), max_size=4),
    tail=st.binary(max_size=80),
)
@examples(60)
def test_rubbish_behind_whole_groups_costs_nothing(groups: list[list[bytes]], tail: bytes) -> None:
    sequence = 0
    whole = [[record(sequence := sequence + 1, reply=reply) for reply in group] for group in groups]
    segment = read(segment_of(*whole) + tail)
    assert segment.records == [each for group in whole for each in group]
    assert segment.tail is (Tail.TORN if tail else Tail.CLEAN)


# -- the writer ---------------------------------------------------------------------------------


class Writer:
    """A journal in a directory of its own."""

    def __init__(self, path: Path, segment_bytes_max: int = 1 << 20) -> None:
        self.files = FaultyFiles(str(path))
        self.files.make_directory("shard")
        self.open(segment_bytes_max)

    def open(self, segment_bytes_max: int = 1 << 20) -> None:
        self.ownership = Ownership.claim(self.files, "shard")
        self.journal = Journal(
            self.files,
            "shard",
            "default-0000",
            self.ownership,
            segment_bytes_max=segment_bytes_max,
        )

    def write(self, *sequences: int) -> None:
        bodies = [encode(record(sequence)) for sequence in sequences]
        self.journal.write_group(sequences[0], len(bodies), bodies)

    def segments(self) -> dict[int, list[int]]:
        """first sequence → the sequences in the segment."""
        result = {}
        for name in self.files.list("shard"):
            if first_of(name) is not None:
                segment = read_segment(name, self.files.read(f"shard/{name}") or b"")
                assert segment.header is not None
                assert segment.header.first == segment.first
                assert segment.tail is Tail.CLEAN
                result[segment.first] = [each.sequence for each in segment.records]
        return result


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def test_nothing_is_made_before_the_first_group(writer: Writer) -> None:
    assert writer.segments() == {}
    assert writer.journal.size == 0


def test_a_group_is_one_write_and_one_sync(writer: Writer) -> None:
    writer.write(1)
    before = writer.files.operations
    writer.write(2, 3, 4)
    assert [step for step, _ in writer.files.steps[before:]] == ["write", "sync"]
    assert writer.segments() == {1: [1, 2, 3, 4]}
    assert writer.journal.size == len(writer.files.read(f"shard/{segment_name(1)}") or b"")


def test_bodies_may_come_joined(writer: Writer) -> None:
    joined = encode(record(1)) + encode(record(2))
    writer.journal.write_group(1, 3, [joined, encode(record(3))])
    assert writer.segments() == {1: [1, 2, 3]}


def test_segments_are_closed_at_their_size(tmp_path: Path) -> None:
    writer = Writer(tmp_path, segment_bytes_max=150)
    for sequence in range(1, 7):
        writer.write(sequence)
    segments = writer.segments()
    assert [each for part in segments.values() for each in part] == [1, 2, 3, 4, 5, 6]
    assert len(segments) > 1
    assert all(first == part[0] for first, part in segments.items())


def test_folded_segments_are_removed(writer: Writer) -> None:
    for sequence in (1, 2, 3):
        writer.write(sequence)
        writer.journal.rotate()
    writer.journal.remove_folded(1)
    assert list(writer.segments()) == [2, 3]
    writer.journal.remove_folded(3)  # the last one is still open
    assert list(writer.segments()) == [3]
    writer.write(4)
    writer.journal.remove_folded(3)
    assert list(writer.segments()) == [4]
    writer.journal.close()
    writer.journal.remove_folded(4)
    assert writer.segments() == {}
    assert writer.journal.size == 0


def test_an_owner_that_lost_its_epoch_makes_no_segment(writer: Writer) -> None:
    writer.write(1)
    writer.journal.rotate()
    Ownership.claim(writer.files, "shard")
    with pytest.raises(StorageFailed, match="taken over"):
        writer.write(2)
    assert writer.segments() == {1: [1]}


@pytest.mark.parametrize("step", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_group_that_the_disk_refuses(writer: Writer, step: str, error: int) -> None:
    writer.write(1)
    writer.files.fail(step, error)
    with pytest.raises(StorageFailed, match=r"journal-0+1\.log"):
        writer.write(2)


@pytest.mark.parametrize("step", ["create", "write", "sync", "rename", "sync_directory"])
def test_a_segment_that_the_disk_refuses(writer: Writer, step: str) -> None:
    writer.files.fail(step, errno.ENOSPC)
    with pytest.raises(StorageFailed, match="the disk is full"):
        writer.write(1)
    lock = writer.files.lock("shard/epoch.lock", wait=False)
    assert lock is not None
    lock.release()


def test_adopted_records_are_written_anew(writer: Writer) -> None:
    writer.write(1, 2)
    writer.open()
    before = writer.files.operations
    writer.journal.adopt([], [record(2)])
    assert writer.segments() == {1: [1, 2], 2: [2]}
    assert "sync" in [step for step, _ in writer.files.steps[before:]]
    writer.write(3)
    assert writer.segments() == {1: [1, 2], 2: [2, 3]}
    segment = read_segment(segment_name(2), writer.files.read(f"shard/{segment_name(2)}") or b"")
    assert segment.header is not None
    assert segment.header.epoch == 2


def test_adopting_replaces_the_segment_of_the_same_name(writer: Writer) -> None:
    writer.write(1, 2)
    writer.open()
    writer.journal.adopt([], [record(1), record(2)])
    assert writer.segments() == {1: [1, 2]}
    writer.write(3)
    assert writer.segments() == {1: [1, 2, 3]}


def test_adopted_segments_are_removed_when_folded(writer: Writer) -> None:
    writer.write(1, 2)
    size = writer.journal.size
    writer.open()
    writer.journal.adopt([(segment_name(1), 2, size)], [])
    assert writer.journal.size == size
    writer.write(3)
    writer.journal.remove_folded(2)
    assert writer.segments() == {3: [3]}


def test_large_adopted_records_are_cut_into_groups(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    third = GROUP_BYTES_MAX // 3
    records = [record(sequence, reply=bytes(third)) for sequence in range(1, 5)]
    writer.journal.adopt([], records)
    data = writer.files.read(f"shard/{segment_name(1)}") or b""
    segment = read_segment(segment_name(1), data)
    assert [each.sequence for each in segment.records] == [1, 2, 3, 4]
    assert data.count(GROUP_MAGIC) == 2
