"""What the shard's objects have promised to do: schedules, messages that were told, calls that
were begun. They are few and small beside the state and must be found by their time, so they are
held whole; the journal and the checkpoint bring them back, in the order in which they were made.

The storage does not look into a promise: it keeps it until a record takes it back.
"""

from __future__ import annotations

from collections.abc import Iterable

from rayobjects.storage.memtable import Key
from rayobjects.storage.records import SCHEDULE, Promise


class Promises:
    """Changed on the loop's thread only.

    Attributes:
        count: how many there are.
        size: the bytes of their bodies.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self._of: dict[Key, dict[tuple[int, str], Promise]] = {}
        self._order = 0
        # What the next fold must tell the checkpoint.
        self._changed: dict[tuple[Key, int, str], None] = {}

    def add(self, key: Key, promise: Promise) -> None:
        """Adds one that the checkpoint has; to be called in their order."""
        self._of.setdefault(key, {})[promise.kind, promise.key] = promise
        self._order = max(self._order, promise.order)
        self.count += 1
        self.size += len(promise.body)

    def growth(self, key: Key, changes: Iterable[Promise]) -> tuple[int, int]:
        """How many more promises, and bytes of them, there are after some changes."""
        kept = self._of.get(key, {})
        count = size = 0
        for promise in changes:
            known = kept.get((promise.kind, promise.key))
            if known is not None:
                count -= 1
                size -= len(known.body)
            if promise.open:
                count += 1
                size += len(promise.body)
        return count, size

    def apply(self, key: Key, changes: Iterable[Promise]) -> None:
        """Takes over what a record makes, changes and takes back."""
        kept = self._of.setdefault(key, {})
        before = len(kept)
        for promise in changes:
            self._changed[key, promise.kind, promise.key] = None
            known = kept.get((promise.kind, promise.key))
            if known is not None:
                self.size -= len(known.body)
            if promise.open:
                if known is None:
                    self._order += 1
                promise.order = self._order if known is None else known.order
                kept[promise.kind, promise.key] = promise
                self.size += len(promise.body)
            elif known is not None:
                del kept[promise.kind, promise.key]
        self.count += len(kept) - before
        if not kept:
            del self._of[key]

    def drop_schedules(self, key: Key) -> None:
        """The object is deleted: it plans nothing any more. What it had told and begun stays."""
        self.apply(
            key,
            [
                Promise(SCHEDULE, name, open=False)
                for kind, name in self._of.get(key, {})
                if kind == SCHEDULE
            ],
        )

    def of(self, key: Key, kind: int | None = None) -> list[Promise]:
        """An object's, in their order."""
        kept = self._of.get(key)
        if kept is None:
            return []
        return [each for each in kept.values() if kind is None or each.kind == kind]

    def get(self, key: Key, kind: int, name: str) -> Promise | None:
        kept = self._of.get(key)
        return kept.get((kind, name)) if kept is not None else None

    def all(self) -> list[tuple[Key, Promise]]:
        """Every one, those of one object in their order."""
        return [(key, promise) for key, kept in self._of.items() for promise in kept.values()]

    def take_changes(self) -> list[tuple[Key, int, str, Promise | None]]:
        """What a fold writes: the present one, or None where there is none any more."""
        changed, self._changed = self._changed, {}
        return [(*each, self.get(*each)) for each in changed]
