"""What the journal has and the checkpoint lacks, in memory.

It is a chain of generations, oldest first. Commits go into the youngest. A fold freezes it (a new
one begins), writes it into the checkpoint, and drops it from the chain:

    active ──freeze──▶ frozen ──folded──▶ dropped

A reader takes the oldest generation first and asks the checkpoint second; then it lays over the
answer every generation from that one to the youngest, which it reaches by `next`. A fold that ends
in between does no harm: the answer has some of these generations already, and laying all of them
over it again, in order, ends in the same state. Dropped generations live as long as a reader
holds them.

Groups are applied, and overlays taken, under one lock, so that another thread never sees half of
a record.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from rayobjects.storage.records import DELETED, ITEM, Finished, Record

Key = tuple[str, str]
"""(class name, object name): an ObjectId, or a plain tuple that equals it and is quicker made."""


class Delta:
    """What a generation knows of one object.

    Attributes:
        exists: True or False once a commit decided it, else None.
        deleted: everything older is gone.
        cleared: older items are gone (not older attributes).
        entries: key → (encoding, data); DELETED where the key is gone.
        sockets: ids of the sockets that changed.
        version: of the class that last wrote it, 0 if no record said so.
    """

    __slots__ = ("cleared", "deleted", "entries", "exists", "sockets", "version")

    def __init__(self) -> None:
        self.exists: bool | None = None
        self.deleted = False
        self.cleared = False
        self.entries: dict[str, tuple[int, bytes]] = {}
        self.sockets: set[str] = set()
        self.version = 0

    def apply(self, record: Record) -> None:
        """Takes over what the record did."""
        if record.delete:
            self.deleted = True
            self.entries = {}
            self.sockets = set()
        if record.clear:
            self.cleared = True
            self.entries = {
                key: entry for key, entry in self.entries.items() if not key.startswith(ITEM)
            }
        if record.writes:
            entries = self.entries
            for key, encoding, data in record.writes:
                entries[key] = (encoding, data)
        for change in record.sockets:
            self.sockets.add(change.socket)
        self.version = record.version or self.version
        if record.delete:  # does it begin anew in the same call?
            self.exists = any(map(is_live, self.entries.values())) or any(
                change.open for change in record.sockets
            )
        elif not record.claims and not _only_promises(record):
            self.exists = True

    def overlay(self, younger: Delta) -> None:
        """Lays what a younger generation knows over this."""
        if younger.deleted:
            self.deleted = True
            self.entries = {}
        if younger.cleared:
            self.cleared = True
            self.entries = {
                key: entry for key, entry in self.entries.items() if not key.startswith(ITEM)
            }
        self.entries.update(younger.entries)
        if younger.exists is not None:
            self.exists = younger.exists
        self.version = younger.version or self.version

    @property
    def hides_items(self) -> bool:
        """Whether the items of everything older do not count."""
        return self.deleted or self.cleared


class Generation:
    """One link of the chain.

    Attributes:
        records, size: how many records, and their encoded bytes.
        first_at: monotonic time of the first record, in seconds.
        last: the last sequence in it.
    """

    __slots__ = ("deltas", "finished", "first_at", "last", "next", "owners", "records", "size")

    def __init__(self) -> None:
        self.deltas: dict[Key, Delta] = {}
        self.finished: list[Finished] = []
        self.owners: dict[Key, int] = {}
        self.records = 0
        self.size = 0
        self.first_at = 0.0
        self.last = 0
        self.next: Generation | None = None


class Memtable:
    """The chain. Changed on the loop's thread only."""

    def __init__(self) -> None:
        self.active = Generation()
        self.oldest = self.active
        self._lock = threading.Lock()

    def apply(self, records: Iterable[Record], size: int, now_s: float) -> None:
        """Takes over a group that is on disk.

        Args:
            size: its encoded bytes.
            now_s: the monotonic time.
        """
        generation = self.active
        deltas = generation.deltas
        count = 0
        with self._lock:
            for record in records:
                count += 1
                key = (record.class_name, record.name)
                delta = deltas.get(key)
                if delta is None:
                    delta = deltas[key] = Delta()
                # The plain case, a few writes and nothing else, without a call.
                if record.writes and not (record.delete or record.clear or record.sockets):
                    entries = delta.entries
                    for name, encoding, data in record.writes:
                        entries[name] = (encoding, data)
                    delta.exists = True
                    delta.version = record.version or delta.version
                else:
                    delta.apply(record)
                if record.claims:
                    generation.owners[key] = record.owner_epoch
                generation.last = record.sequence
        if count and not generation.records:
            generation.first_at = now_s
        generation.records += count
        generation.size += size

    @property
    def size(self) -> int:
        """Encoded bytes of the records in all generations."""
        total, generation = 0, self.oldest
        while True:
            total += generation.size
            if generation.next is None:
                return total
            generation = generation.next

    def freeze(self) -> Generation:
        """Ends the active generation and begins another; returns the ended one."""
        frozen = self.active
        self.active = frozen.next = Generation()
        return frozen

    def drop(self, frozen: Generation) -> None:
        """Forgets the oldest generation: the checkpoint has it."""
        assert self.oldest is frozen
        assert frozen.next is not None
        self.oldest = frozen.next

    def overlay(self, key: Key, oldest: Generation) -> Delta:
        """What the generations from `oldest` on know of an object, in one delta of the caller's
        own."""
        result = Delta()
        generation: Generation | None = oldest
        with self._lock:
            while generation is not None:
                delta = generation.deltas.get(key)
                if delta is not None:
                    result.overlay(delta)
                generation = generation.next
        return result

    def entry(
        self, key: Key, name: str, oldest: Generation
    ) -> tuple[bool, tuple[int, bytes] | None]:
        """One entry, as (whether the generations decide it, the entry if it lives)."""
        decided, found = False, None
        generation: Generation | None = oldest
        with self._lock:
            while generation is not None:
                delta = generation.deltas.get(key)
                if delta is not None:
                    entry = delta.entries.get(name)
                    if entry is not None:
                        decided, found = True, entry if is_live(entry) else None
                    elif delta.deleted or (delta.cleared and name.startswith(ITEM)):
                        decided, found = True, None
                generation = generation.next
        return decided, found

    def names(
        self, class_name: str, prefix: str, after: str, oldest: Generation
    ) -> dict[str, bool]:
        """The class's objects that the generations from `oldest` on know to exist, or not to."""
        result: dict[str, bool] = {}
        generation: Generation | None = oldest
        while generation is not None:
            # The copy is one step for the interpreter: no lock for what may take milliseconds.
            for (kind, name), delta in list(generation.deltas.items()):
                if kind == class_name and name > after and name.startswith(prefix):
                    exists = delta.exists
                    if exists is not None:
                        result[name] = exists
            generation = generation.next
        return result


def _only_promises(record: Record) -> bool:
    """Whether it only takes note of what is done or tried again; the object may be deleted."""
    return bool(record.promises) and not (record.call_id or record.writes or record.sockets)


def is_live(entry: tuple[int, bytes]) -> bool:
    """Whether an entry of a delta holds a value."""
    return entry[0] != DELETED
