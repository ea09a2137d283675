"""What tests of the storage share: records, segments, a clock and a loop that only turn by hand,
and a shard without threads that is driven by them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.storage.files import Files
from rayobjects.storage.journal import (
    FORMAT,
    Segment,
    SegmentHeader,
    encode_group,
    encode_header,
    read_segment,
    segment_name,
)
from rayobjects.storage.records import DELETED, ITEM, JSON, Record, encode
from rayobjects.storage.shard import Shard

T = TypeVar("T")
ROOM = ObjectId("Room", "lobby")
EXAMPLES = int(os.environ.get("RAYOBJECTS_EXAMPLES", "0"))
"""`RAYOBJECTS_EXAMPLES=1000 pytest tests/storage` looks longer than each push should."""


def examples(count: int, **more: Any) -> settings:
    """Settings of a test by examples: this many, or RAYOBJECTS_EXAMPLES if that is more. However
    slow the machine is: a time limit would only find out how busy it is."""
    return settings(
        max_examples=max(count, EXAMPLES),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
        **more,
    )


# -- records and segments -------------------------------------------------------------------------


def record(sequence: int, **more: Any) -> Record:
    return Record("Room", "berlin", sequence=sequence, epoch=1, **more)


def items(name: str = "lobby", /, *, call_id: str = "", **changed: int | None) -> Record:
    """A record that writes these items; None deletes one."""
    writes = [
        (ITEM + key, DELETED if value is None else JSON, b"" if value is None else b"%d" % value)
        for key, value in changed.items()
    ]
    return Record("Room", name, call_id=call_id, writes=writes, finished_at=1_000_000.0)


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


# -- time -----------------------------------------------------------------------------------------


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


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that waits for nothing, as those of a shard without threads do."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("it waits")


# -- the shard ------------------------------------------------------------------------------------


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


class Driver:
    """A shard without threads, with what it has answered."""

    def __init__(self, files: Files | str, clock: HandClock | None = None, **options: Any) -> None:
        self.clock, self.loop = clock or HandClock(), HandLoop()
        self.answers: list[tuple[StorageFailed | None, int]] = []
        self.shard = Shard.open(
            files,
            "default-0000",
            clock=self.clock,
            soon=self.loop.soon,
            post=self.loop.soon,
            threads=False,
            **options,
        )

    def done(self, error: StorageFailed | None, sequence: int) -> None:
        self.answers.append((error, sequence))

    def put(self, name: str = "lobby", /, **changed: int | None) -> None:
        """Commits one record of items and lets the loop turn."""
        self.shard.commit(items(name, **changed), self.done)
        self.loop.turn()

    def items(self, name: str = "lobby") -> dict[str, int]:
        loaded = finish(self.shard.load(ObjectId("Room", name)))
        assert loaded.whole
        return {key[1:]: int(data) for key, (_, data) in loaded.entries.items()}

    def items_error(self) -> StorageFailed | None:
        try:
            self.items()
        except StorageFailed as error:
            return error
        return None

    def fold(self) -> None:
        finish(self.shard.fold())
