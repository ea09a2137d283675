"""What tests of the storage share: records, segments, a clock and a loop that only turn by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from rayobjects.errors import StorageFailed
from rayobjects.storage.journal import (
    FORMAT,
    Segment,
    SegmentHeader,
    encode_group,
    encode_header,
    read_segment,
    segment_name,
)
from rayobjects.storage.records import Record, encode


def record(sequence: int, **more: Any) -> Record:
    return Record("Room", "berlin", sequence=sequence, epoch=1, **more)


def segment_of(
    *groups: list[Record], first: int = 1, epoch: int = 1, shard: str = "default-0000"
) -> bytes:
    """A segment's bytes."""
    header = SegmentHeader(FORMAT, epoch, shard, first)
    data = encode_header(header)
    for group in groups:
        data += encode_group(header, len(data), len(group), map(encode, group))
    return data


def segment(first: int, last: int, epoch: int = 1, *, tail: bytes = b"") -> Segment:
    """A segment with the records first to last, in one group, and `tail` behind them."""
    groups = [[record(sequence) for sequence in range(first, last + 1)]] if last >= first else []
    data = segment_of(*groups, first=first, epoch=epoch)
    return read_segment(segment_name(first), data + tail)


class HandClock:
    """`Clock`; goes only when told."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


class HandLoop:
    """`soon` and what runs it."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()

    def soon(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def turn(self) -> None:
        """Runs everything, and what that asks for."""
        while self.waiting:
            self.waiting.popleft()()


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that waits for nothing, as those of a shard without threads do."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waits")


class Told:
    """Collects what `done` was called with: `told("name")` makes one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, StorageFailed | None, int]] = []

    def __call__(self, name: Any = None) -> Callable[[StorageFailed | None, int], None]:
        return lambda error, sequence: self.calls.append((name, error, sequence))

    @property
    def good(self) -> list[tuple[Any, int]]:
        return [(name, sequence) for name, error, sequence in self.calls if error is None]

    @property
    def bad(self) -> list[tuple[Any, str]]:
        return [(name, error.message) for name, error, _ in self.calls if error is not None]
