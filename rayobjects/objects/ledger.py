"""The seam between activations and their shard.

An activation loads and commits through a ledger and does not know whether the shard is in its own
process (shared hosting: `storage.shard.Shard` behind a thin adapter) or behind Ray (dedicated
hosting: `runtime.remote_ledger`). The contract, as numbered guarantees:

    1. Commits take effect in the order in which they were given, all of a record or nothing.
    2. `done(None, sequence)` is called only after the record is on disk and the epoch was seen to
       hold after that; `done(error, 0)` means that the outcome is unknown and that this ledger
       will take no further commit.
    3. Callbacks come on the event loop, in the order of their commits; a `confirm` comes after
       the callbacks of the commits before it.
    4. `confirm` succeeds only if the epoch held at some time after it was asked.
    5. `load` sees every commit that was acknowledged before it was asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.storage.records import Finished, Loaded, PendingSends, Promise, Record

Done = Callable[[StorageFailed | None, int], None]


class Ledger(Protocol):
    """What an activation's host needs of a shard."""

    failed: StorageFailed | None
    """Set for good once a commit failed or the epoch was lost."""

    @property
    def busy(self) -> bool:
        """Whether commits are on their way to the disk."""
        ...

    async def load(self, id: ObjectId) -> Loaded:
        """Loads an object. Loads that are asked for together are one query."""
        ...

    def commit(self, record: Record, done: Done) -> None:
        """Writes a record; returns at once, `done(error, sequence)` follows.

        Raises:
            Overloaded: too much waits for the disk; nothing was written.
        """
        ...

    def confirm(self, done: Done) -> None:
        """Shows that the epoch still holds; `done(error, 0)` follows. For reads."""
        ...

    def read(self, id: ObjectId, key: str) -> tuple[int, bytes] | None:
        """One entry of an object that is not loaded whole. Blocks for a query (about 1 ms)."""
        ...

    def scan(
        self,
        id: ObjectId,
        *,
        prefix: str,
        start: str | None,
        end: str | None,
        limit: int,
        reverse: bool,
    ) -> list[tuple[str, int, bytes]]:
        """Entries whose key (with its ITEM prefix) has `prefix` and lies in [start, end), sorted
        by the key's UTF-8 bytes, at most `limit`: one page, blocks for a query."""
        ...

    def count(self, id: ObjectId) -> int:
        """How many storage keys the object has. Blocks for a query."""
        ...

    def finished(self, id: ObjectId, call_id: str) -> Finished | None:
        """The stored reply of a finished call within its window."""
        ...

    def forget(self, call_id: str, id: ObjectId | None = None) -> None:
        """The caller has the reply and will not ask again: its window may end now. `id` is needed
        where other objects may have a call of the same id."""
        ...

    def sent(self, id: ObjectId, sequence: int, gateway: str) -> None:
        """The gateway has acknowledged the record's messages: they need not be kept."""
        ...

    def pending(self) -> list[PendingSends]:
        """Messages that were found unacknowledged when the ledger was opened."""
        ...

    def promises(self) -> list[tuple[ObjectId, Promise]]:
        """What the objects have promised and not done, each object's in order, as on disk."""
        ...

    def promises_of(self, id: ObjectId) -> list[Promise]:
        """The same for one object."""
        ...

    def promise(self, id: ObjectId, kind: int, key: str) -> Promise | None:
        """One of them."""
        ...

    def sockets(self) -> list[tuple[ObjectId, str, str]]:
        """(object, socket id, gateway) of every open socket, as found when it was opened."""
        ...
