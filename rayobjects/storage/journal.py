"""The journal: segments of groups of records, appended and synced.

    segment   journal-<first sequence, 20 digits>.log
    header    MAGIC, length, CRC32C, msgpack of SegmentHeader
    group     GROUP_MAGIC, length, CRC32C, msgpack array of `records.Record`

Invariants:

1. A segment is made whole (`Files.replace`), so its header is there if the file is.
2. A group is written only after the group before it was synced. So a whole group behind a broken
   one proves that the broken one had been synced: that is damage, while a broken last group is
   what a power loss leaves.
3. A new segment is begun only after the last one was synced.
4. Sequences have no gaps, within a group and from group to group.
5. The CRC covers the segment's first sequence and epoch and the group's offset too: a group that
   is found at another place (a stored value may contain a copy of a journal) does not count.

A process that dies in `write_group` leaves a broken last group or a whole one; in making a segment
it leaves a `.tmp` file or a segment without groups. Both are rows of `recovery`.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import google_crc32c
import msgspec

from rayobjects.errors import StorageFailed
from rayobjects.limits import GROUP_BYTES_MAX, RECORD_BYTES_MAX, SEGMENT_BYTES_MAX
from rayobjects.storage.files import AppendFile, Files
from rayobjects.storage.ownership import Ownership
from rayobjects.storage.records import Record, encode

FORMAT = 1
MAGIC = b"ROBJLOG\n"
GROUP_MAGIC = b"\xf5GRP"
_PREFIX = struct.Struct(">4sII")  # of a group: magic, length, CRC
_HEADER_PREFIX = struct.Struct(">8sII")
_SALT = struct.Struct(">QQQ")
_ARRAY = struct.Struct(">BI")  # msgpack array 32
_GROUP_LENGTH_MAX = GROUP_BYTES_MAX + RECORD_BYTES_MAX + _ARRAY.size

_NAME = re.compile(r"journal-(\d{20})\.log")
_decode_records = msgspec.msgpack.Decoder(list[Record]).decode


class SegmentHeader(msgspec.Struct, array_like=True):
    """What a segment says of itself. `epoch` is that of the owner that made it."""

    format: int
    epoch: int
    shard: str
    first: int


class Tail(Enum):
    """How a segment ends."""

    CLEAN = "clean"
    TORN = "torn"
    """The last group is broken: a power loss, or a process that died while it wrote."""
    DAMAGED = "damaged"
    """A broken group has a whole one behind it."""


@dataclass
class Segment:
    """A segment as it was read.

    Attributes:
        name: the file's name, without its directory.
        first: the first sequence according to the name.
        header: None if it is not one that this version can read; `problem` then says why.
        records: those of the groups before the first broken one.
        tail, offset: how the segment ends, and where its last whole group does.
    """

    name: str
    first: int
    header: SegmentHeader | None
    records: list[Record] = field(default_factory=list)
    tail: Tail = Tail.CLEAN
    offset: int = 0
    problem: str = ""


def segment_name(first: int) -> str:
    """The name of the segment that begins with this sequence."""
    return f"journal-{first:020d}.log"


def first_of(name: str) -> int | None:
    """The first sequence of the segment with this name; None if it is no segment's name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def encode_header(header: SegmentHeader) -> bytes:
    payload = encode(header)
    return _HEADER_PREFIX.pack(MAGIC, len(payload), google_crc32c.value(payload)) + payload


def encode_group(
    header: SegmentHeader, offset: int, count: int, bodies: Iterable[bytes | bytearray]
) -> bytes:
    """A group at its place in a segment; `bodies` are `count` encoded records, joined or not."""
    payload = b"".join((_ARRAY.pack(0xDD, count), *bodies))
    crc = google_crc32c.extend(_seed(header, offset), payload)
    return _PREFIX.pack(GROUP_MAGIC, len(payload), crc) + payload


def read_segment(name: str, data: bytes) -> Segment:
    """Reads a segment; judges nothing (`recovery.decide` does).

    A group whose CRC is right and that cannot be decoded was written by another version: it is
    reported as a `problem`, with its offset.
    """
    first = first_of(name)
    assert first is not None
    segment = Segment(name, first, None)
    if len(data) < _HEADER_PREFIX.size or not data.startswith(MAGIC):
        segment.problem = "is not a journal segment"
        return segment
    _, length, crc = _HEADER_PREFIX.unpack_from(data)
    offset = _HEADER_PREFIX.size + length
    payload = data[_HEADER_PREFIX.size : offset]
    if len(payload) < length or google_crc32c.value(payload) != crc:
        segment.problem = "has a damaged header"
        return segment
    try:
        header = msgspec.msgpack.decode(payload, type=SegmentHeader)
    except msgspec.ValidationError:
        segment.problem = "has an unknown format"
        return segment
    if header.format != FORMAT:
        segment.problem = f"has the format {header.format}, this version knows {FORMAT}"
        return segment
    segment.header = header
    while offset < len(data):
        group = _group_at(header, data, offset)
        if group is None:
            segment.tail = Tail.DAMAGED if _whole_behind(header, data, offset) else Tail.TORN
            break
        try:
            segment.records += _decode_records(group)
        except msgspec.DecodeError as error:
            segment.problem = f"holds records that this version cannot read ({error})"
            break
        offset += _PREFIX.size + len(group)
    segment.offset = offset
    return segment


def _seed(header: SegmentHeader, offset: int) -> int:
    salt = _SALT.pack(header.first, header.epoch, offset)
    return google_crc32c.value(salt)  # type: ignore[no-any-return]


def _group_at(header: SegmentHeader, data: bytes, offset: int) -> bytes | None:
    """The payload of the whole group at the offset, or None."""
    begin = offset + _PREFIX.size
    if begin > len(data):
        return None
    magic, length, crc = _PREFIX.unpack_from(data, offset)
    if magic != GROUP_MAGIC or length > _GROUP_LENGTH_MAX or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    return payload if google_crc32c.extend(_seed(header, offset), payload) == crc else None


def _whole_behind(header: SegmentHeader, data: bytes, offset: int) -> bool:
    while (offset := data.find(GROUP_MAGIC, offset + 1)) >= 0:
        if _group_at(header, data, offset) is not None:
            return True
    return False


class Journal:
    """The writer of a shard's journal. One thread writes; another may remove what is folded.

    Any StorageFailed that `write_group` raises is final: the caller writes no more.
    """

    def __init__(
        self,
        files: Files,
        directory: str,
        shard: str,
        ownership: Ownership,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> None:
        self._files = files
        self._directory = directory
        self._shard = shard
        self._ownership = ownership
        self._segment_bytes_max = segment_bytes_max
        self._file: AppendFile | None = None
        self._header = SegmentHeader(FORMAT, ownership.epoch, shard, 0)
        self._last = 0
        self._rotate = False
        self._closed: list[tuple[str, int, int]] = []  # (name, last sequence, bytes)
        self._lock = threading.Lock()  # of _closed, which two threads change

    def adopt(self, kept: Sequence[tuple[str, int, int]], records: list[Record]) -> None:
        """Begins where recovery ended.

        Args:
            kept: segments that stay: (name, last sequence, size in bytes).
            records: those of the last segment that are not folded. They were read from the page
                cache of a file whose last sync may have failed, so they are written anew, and
                synced, before anything is acknowledged on top of them.
        """
        self._closed = list(kept)
        if not records:
            return
        header = SegmentHeader(FORMAT, self._ownership.epoch, self._shard, records[0].sequence)
        parts = [encode_header(header)]
        size = len(parts[0])
        for group in _groups_of(records):
            parts.append(encode_group(header, size, len(group), group))
            size += len(parts[-1])
        self._begin(header, b"".join(parts))
        self._last = records[-1].sequence

    def write_group(self, first: int, count: int, bodies: Sequence[bytes | bytearray]) -> None:
        """Appends encoded records, `first` the sequence of the first one, and syncs them.

        Raises:
            StorageFailed: they may or may not be on the disk.
        """
        file = self._file
        if file is None or file.size >= self._segment_bytes_max or self._rotate:
            self._rotate = False
            self._end()
            header = SegmentHeader(FORMAT, self._ownership.epoch, self._shard, first)
            file = self._begin(header, encode_header(header))
        file.write(encode_group(self._header, file.size, count, bodies))
        file.sync()
        self._last = first + count - 1

    def rotate(self) -> None:
        """Lets the next group begin a new segment, so that the present one can be removed once it
        is folded."""
        self._rotate = True

    def remove_folded(self, folded: int) -> None:
        """Removes closed segments of which every record is folded."""
        with self._lock:
            gone = [entry for entry in self._closed if entry[1] <= folded]
            self._closed = [entry for entry in self._closed if entry[1] > folded]
        for name, _, _ in gone:
            self._files.remove(f"{self._directory}/{name}")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        with self._lock:
            closed = sum(entry[2] for entry in self._closed)
        return closed + (self._file.size if self._file is not None else 0)

    @property
    def segment(self) -> str:
        """The name of the segment that is being written, "" if there is none yet."""
        return segment_name(self._header.first) if self._file is not None else ""

    def close(self) -> None:
        """Ends the last segment, so that `remove_folded` may remove it."""
        self._end()

    def _begin(self, header: SegmentHeader, data: bytes) -> AppendFile:
        name = f"{self._directory}/{segment_name(header.first)}"
        with self._ownership.locked():
            # A file of this name can only be what a stale owner left, or the one whose records
            # are in `data`.
            self._files.replace(name, data)
            self._file = self._files.append(name)
        self._header = header
        self._last = header.first - 1
        return self._file

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        if self._last >= self._header.first:  # else its name is still to be used
            with self._lock:
                self._closed.append((segment_name(self._header.first), self._last, file.size))
        file.close()


def _groups_of(records: list[Record]) -> Iterable[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for record in records:
        body = encode(record)
        if group and size + len(body) > GROUP_BYTES_MAX:
            yield group
            group, size = [], 0
        group.append(body)
        size += len(body)
    yield group


def unreadable(path: str, problem: str) -> StorageFailed:
    """The error of a segment that stops its shard."""
    return StorageFailed(
        f"{path} {problem}. The shard stays closed, so that nothing acknowledged is lost: restore "
        "the shard's directory from a copy, or open it with the version that wrote it"
    )
