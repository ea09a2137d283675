"""A ledger in memory, and calls on objects without a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rayobjects.ids import ObjectId
from rayobjects.objects.changes import Changes
from rayobjects.objects.fields import fields_of
from rayobjects.objects.model import DurableObject, create
from rayobjects.objects.state import State
from rayobjects.storage.records import DELETED, ITEM, Loaded, Record, SocketChange

T = TypeVar("T", bound=DurableObject)


class MemoryLedger:
    """Holds objects as a shard would; commits are synced by `sync()`, or at once."""

    def __init__(self) -> None:
        self.objects: dict[ObjectId, dict[str, tuple[int, bytes]]] = {}
        self.open: dict[ObjectId, dict[str, SocketChange]] = {}
        self.unsynced: list[tuple[ObjectId, Changes]] = []
        self.queries = 0

    def commit(self, id: ObjectId, changes: Changes) -> None:
        Record(*id, writes=changes.writes, clear=changes.clear, sockets=changes.sockets)
        self.unsynced.append((id, changes))

    def sync(self) -> None:
        for id, changes in self.unsynced:
            entries = self.objects.setdefault(id, {})
            sockets = self.open.setdefault(id, {})
            if changes.delete:
                entries.clear()
                sockets.clear()
            if changes.clear:
                for key in [key for key in entries if key[0] == ITEM]:
                    del entries[key]
            for key, encoding, data in changes.writes:
                if encoding == DELETED:
                    entries.pop(key, None)
                else:
                    entries[key] = (encoding, data)
            for change in changes.sockets:
                if change.open:
                    sockets[change.socket] = change
                else:
                    sockets.pop(change.socket, None)
        self.unsynced.clear()

    def load(self, id: ObjectId, *, whole: bool = True) -> Loaded:
        self.sync()
        entries = self.objects.get(id, {})
        items = sum(key[0] == ITEM for key in entries)
        if not whole:
            entries = {key: entry for key, entry in entries.items() if key[0] != ITEM}
        sockets = list(self.open.get(id, {}).values())
        return Loaded(id in self.objects, whole, dict(entries), items, sockets)

    def read(self, id: ObjectId, key: str) -> tuple[int, bytes] | None:
        self.queries += 1
        return self.objects.get(id, {}).get(key)

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
        self.queries += 1
        keys = [
            key
            for key in self.objects.get(id, {})
            if key.startswith(prefix)
            and (start is None or key.encode() >= start.encode())
            and (end is None or key.encode() < end.encode())
        ]
        keys.sort(key=str.encode, reverse=reverse)
        return [(key, *self.objects[id][key]) for key in keys[:limit]]

    def count(self, id: ObjectId) -> int:
        self.queries += 1
        return sum(key[0] == ITEM for key in self.objects.get(id, {}))


class Live:
    """An activation without its host: runs functions as calls on the instance."""

    def __init__(
        self, cls: type[T], ledger: MemoryLedger, name: str = "one", *, whole: bool = True
    ) -> None:
        self.ledger = ledger
        self.id = ObjectId(cls.__name__, name)
        loaded = ledger.load(self.id, whole=whole)
        self.state = State(self.id, ledger, loaded, fields_of(cls))  # type: ignore[arg-type]
        self.instance: Any = create(cls, self.id, self.state, self.state.sockets)

    def call(self, function: Callable[[Any], Any], *, sync: bool = True) -> Any:
        """Runs the function as a call: it commits, or rolls back if it raises."""
        self.state.begin()
        try:
            result = function(self.instance)
            self.changes = self.state.changes()
        except BaseException:
            self.state.rollback()
            raise
        if self.changes:
            self.ledger.commit(self.id, self.changes)
        self.state.commit()
        if sync:
            self.ledger.sync()
            self.state.trim()
        return result

    def reloaded(self, *, whole: bool = True) -> Live:
        """The object after it has slept."""
        return Live(type(self.instance), self.ledger, self.id.name, whole=whole)
