"""What is committed of one object: all of it in memory, or the part that the ledger lacks.

A small object is whole: `entries` has everything. A large one has its attributes in memory, and
of its storage keys those that were committed since the last `trim()`; the ledger has the others.
The ledger answers for synced commits only, so what is in memory always comes first; a key that is
gone stays in memory as DELETED until then. Answers of the ledger are remembered, up to a bound.
Concurrent methods read on the lane or on threads while the loop commits.

    commit     apply() while the record is on its way to the disk
    synced     trim(), when nothing is pending any more: the ledger has it all
    crash      everything in here is forgotten, and the object is loaded again
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rayobjects.ids import ObjectId
from rayobjects.limits import (
    LOAD_WHOLE_BYTES_MAX,
    LOAD_WHOLE_KEYS_MAX,
    PAGE_KEYS_MAX,
    REMEMBERED_BYTES_MAX,
)
from rayobjects.objects.fields import Entry
from rayobjects.objects.ledger import Ledger
from rayobjects.storage.records import DELETED, ITEM, Loaded, Write

_TOMBSTONE: Entry = (DELETED, b"")

_PAGE_KEYS_FIRST = 32
_PAGE_BYTES_FEW = 256 * 1024
_PAGE_BYTES_MANY = 4 * 1024 * 1024
"""Pages begin small and grow while they stay light: a page of large values must not fill the
memory, and one of small values should not cost a query for every few keys."""

_COUNT_BY_READS_MAX = 64
"""Up to so many unsynced keys, asking the ledger for each is quicker than walking all keys."""

_COUNT_TRIES = 4

_UNKNOWN: Any = object()


class _Remembered(dict[str, Entry | None]):
    """What the ledger has answered: key → entry, None for a key that is not there.

    It is valid only as long as it is the object's own. Whoever asks the ledger takes hold of it
    first: where the loop commits or trims meanwhile, the answer may be outdated, and goes into one
    that nobody looks at any more.
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def make_room(self, count: int, size: int) -> None:
        """Room for what is about to be remembered; a page stays together."""
        if len(self) + count > 2 * PAGE_KEYS_MAX or self._bytes + size > REMEMBERED_BYTES_MAX:
            self.clear()
            self._bytes = 0
        self._bytes += size


class Committed:
    """The committed view of one object.

    Attributes:
        entries: key with prefix → entry; DELETED only where the object is not whole.
        whole: `entries` has all of the object's keys.
    """

    __slots__ = (
        "_changed",
        "_counted",
        "_id",
        "_item_bytes",
        "_item_count",
        "_ledger",
        "_remembered",
        "entries",
        "whole",
    )

    def __init__(self, id: ObjectId, ledger: Ledger, loaded: Loaded) -> None:
        self._id = id
        self._ledger = ledger
        self.entries: dict[str, Entry] = loaded.entries
        self.whole = loaded.whole
        self._remembered = None if loaded.whole else _Remembered()
        """None where memory has everything, so that the ledger has nothing to say."""
        self._item_bytes = 0
        self._item_count: int | None = None
        """Kept by the loop, as long as it can be known without asking the ledger."""
        self._changed = 0
        """How often something was committed."""
        self._counted = (-1, 0)
        """`_changed` when the ledger was asked last, and the count that came of it. One value, so
        that a lane which has been overtaken by a commit never passes its figure off as today's."""
        if loaded.whole:
            self._item_count = 0
            for key, entry in loaded.entries.items():
                if key[0] == ITEM:
                    self._item_count += 1
                    self._item_bytes += len(entry[1])

    @property
    def grown(self) -> bool:
        """Whether the object is whole in memory though it has become too large for that."""
        if not self.whole or self._item_count is None:
            return False
        return self._item_count > LOAD_WHOLE_KEYS_MAX or self._item_bytes > LOAD_WHOLE_BYTES_MAX

    def get(self, key: str) -> Entry | None:
        """The entry of a key; blocks for a query where the ledger must be asked."""
        entry = self.entries.get(key)
        if entry is not None:
            return entry if entry[0] != DELETED else None
        if self.whole or key[0] != ITEM:
            return None
        remembered = self._remembered
        if remembered is None:  # it has become whole just now
            return None
        entry = remembered.get(key, _UNKNOWN)
        if entry is _UNKNOWN:
            entry = self._ledger.read(self._id, key)
            remembered.make_room(1, len(entry[1]) if entry is not None else 0)
            remembered[key] = entry
        return entry

    def known(self, key: str) -> Entry | None:
        """The entry of a key as far as it is at hand: for comparing, where a miss costs only a
        write that was not needed."""
        entry = self.entries.get(key)
        if entry is None and self._remembered is not None:
            entry = self._remembered.get(key)
        return entry

    def apply(self, writes: list[Write], clear: bool) -> None:
        """Takes over what a call has committed."""
        changed, count = self._counted
        if changed == self._changed and self._item_count is None:
            self._item_count = count
        if clear:
            # Whatever the ledger has of the items is void, so that memory has all there is.
            self.entries = {k: e for k, e in self.entries.items() if k[0] != ITEM}
            self.whole = True
            self._remembered = None
            self._item_count = 0
            self._item_bytes = 0
        for key, encoding, data in writes:
            if key[0] == ITEM:
                self._count(key, encoding, data)
            if encoding != DELETED:
                self.entries[key] = (encoding, data)
            elif self.whole or key[0] != ITEM:
                self.entries.pop(key, None)
            else:
                self.entries[key] = _TOMBSTONE
        self._changed += 1  # at the end: whoever has seen a part of it must notice, too

    def trim(self) -> None:
        """Drops what the ledger has: for a large object whose commits are all synced."""
        if not self.whole:
            self.entries = {k: e for k, e in self.entries.items() if k[0] != ITEM}
            self._remembered = _Remembered()

    def count(self) -> int:
        """How many storage keys there are; blocks for queries where that is not known.

        Beside a call that has the turn, commits may overtake it again and again: then it may be
        off by what they did, and is not kept.
        """
        for _ in range(_COUNT_TRIES):
            changed = self._changed
            count = self._item_count
            if count is not None:
                return count
            counted = self._counted
            if counted[0] != changed:
                counted = self._counted = (changed, self._ask_count())
            if self._changed == changed:
                break
        return counted[1]

    def _ask_count(self) -> int:
        """Counts by the ledger's figure, corrected by what it does not know yet.

        Commits may be synced while it is asked, and be counted by one answer and not by the next:
        so the figures count only when they came out the same twice.
        """
        entries = self.entries.copy()  # the loop may commit while the lane asks
        local = [key for key in entries if key[0] == ITEM]
        if len(local) <= _COUNT_BY_READS_MAX:
            last: list[int] = []
            for _ in range(_COUNT_TRIES):
                figures = [self._ledger.count(self._id)]
                figures += [self._ledger.read(self._id, key) is not None for key in local]
                if figures == last or not local:
                    alive = sum(entries[key][0] != DELETED for key in local)
                    return figures[0] + alive - sum(figures[1:])
                last = figures
        return sum(1 for _ in self.walk(ITEM, None, None, False))

    def walk(
        self,
        prefix: str,
        start: str | None,
        end: str | None,
        reverse: bool,
        limit: int | None = None,
    ) -> Iterator[str]:
        """The storage keys with `prefix` in [start, end), sorted by their UTF-8, page by page.

        `limit` is a hint of how many the caller will take. Python orders strings by code point,
        which is the order of their UTF-8 too. What is deleted under way is left out from then on.
        """
        entries = self.entries.copy()  # the loop may commit while the lane reads
        local = [
            key
            for key in entries
            if key[0] == ITEM
            and key.startswith(prefix)
            and (start is None or key >= start)
            and (end is None or key < end)
        ]
        local.sort(reverse=reverse)
        keys = iter(local)
        if not self.whole:
            gone = {key for key in local if entries[key][0] == DELETED}
            pages = self._pages(prefix, start, end, reverse, limit)
            keys = self._merged(local, gone, pages, reverse)
        for key in keys:
            if not self._is_gone(key):
                yield key

    def _is_gone(self, key: str) -> bool:
        """Whether a key that was there is not any more, as far as memory knows."""
        whole = self.whole  # before the entries: a clear changes it after them
        entry = self.entries.get(key)
        return whole if entry is None else entry[0] == DELETED

    @staticmethod
    def _merged(
        local: list[str], gone: set[str], pages: Iterator[str], reverse: bool
    ) -> Iterator[str]:
        """Merges two sorted rows of keys without those of memory that are `gone`."""
        position = 0
        for key in pages:
            while position < len(local) and (
                local[position] > key if reverse else local[position] < key
            ):
                if local[position] not in gone:
                    yield local[position]
                position += 1
            if position < len(local) and local[position] == key:
                position += 1
                if key in gone:
                    continue
            yield key
        for key in local[position:]:
            if key not in gone:
                yield key

    def _pages(
        self, prefix: str, start: str | None, end: str | None, reverse: bool, limit: int | None
    ) -> Iterator[str]:
        """The ledger's keys, a page at a time; their entries are remembered for a while."""
        size = min(_PAGE_KEYS_FIRST if limit is None else max(limit, 1), PAGE_KEYS_MAX)
        while True:
            remembered = self._remembered
            page = self._ledger.scan(
                self._id, prefix=prefix, start=start, end=end, limit=size, reverse=reverse
            )
            page_bytes = sum(len(data) for _, _, data in page)
            if remembered is not None:
                remembered.make_room(len(page), page_bytes)
                for key, encoding, data in page:
                    remembered[key] = (encoding, data)
            for key, _, _ in page:
                yield key
            if len(page) < size:
                return
            if reverse:
                end = page[-1][0]
            else:
                start = page[-1][0] + "\0"  # the smallest key after it
            if page_bytes < _PAGE_BYTES_FEW:
                size = min(size * 4, PAGE_KEYS_MAX)
            elif page_bytes > _PAGE_BYTES_MANY:
                size = max(size // 4, 1)

    def _count(self, key: str, encoding: int, data: bytes) -> None:
        """Keeps the count of items exact, or gives it up where it is not known what was there."""
        before = self.entries.get(key)
        if before is None and self._remembered is not None:
            before = self._remembered.pop(key, _UNKNOWN)
            if before is _UNKNOWN:
                self._item_count = None
                return
        was = before is not None and before[0] != DELETED
        if self._item_count is not None:
            self._item_count += (encoding != DELETED) - was
        self._item_bytes += len(data) - (len(before[1]) if before is not None else 0)
