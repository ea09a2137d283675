"""Owner epochs of dedicated objects: which actor may write for its object.

A claim counts from the moment it is asked for, before it is on disk: what the owner before commits
from then on is refused, and what it had committed until then comes before the claim in the journal.

An actor that had to give up its ledger and claims again in the same process names the epoch that it
had. If that is not the present one, another actor has taken over, and this one is the stale one. If
its own claim was written and the answer got lost on the way, it cannot tell the two apart: it is
refused too, and a new process takes its place.
"""

from __future__ import annotations

from rayobjects.errors import StorageFailed
from rayobjects.storage.indexes import Indexes
from rayobjects.storage.memtable import Key
from rayobjects.storage.records import Record


class DedicatedOwners:
    """Used on the loop's thread."""

    def __init__(self, indexes: Indexes) -> None:
        self._indexes = indexes
        self._claimed: dict[Key, int] = {}  # claims that are not on disk yet

    def current(self, key: Key) -> int:
        """The object's present epoch, 0 if it never had one."""
        return self._claimed.get(key) or self._indexes.owner(key)

    def claim(self, key: Key, epoch: int) -> None:
        """Makes an epoch the present one; its record is under way."""
        self._claimed[key] = epoch

    def claimed(self, record: Record) -> None:
        """The record of a claim is on disk, and in the indexes."""
        key = (record.class_name, record.name)
        if self._claimed.get(key) == record.owner_epoch:
            del self._claimed[key]

    def refusal(self, key: Key, owner_epoch: int) -> StorageFailed | None:
        """Why that epoch may not write: None if it is the present one."""
        if owner_epoch == self.current(key):
            return None
        return StorageFailed(
            f"{key[0]}/{key[1]} was taken over by another process (its owner epoch {owner_epoch} "
            "has ended): try again, the call then goes to the new one",
            details={"lost": "epoch"},
        )
