"""An activation's state: what is committed, and the running call's overlay over it.

Keys carry their prefix everywhere in here: `@count` is a durable attribute, `/count` a key of
`self.storage`. For each key there may be

    an entry     the committed value, encoded (see `committed`)
    a live value the decoded one, which methods see and may change inside
    a mark       what the running call did to it: READ (mutable, so maybe changed), SET or GONE

`changes()` encodes every marked value and compares it with its entry; `commit()` makes the
overlay the committed view; `rollback()` forgets the marked live values, so that they are decoded
afresh. The invariants:

    1. A live value without a mark equals its entry (or its default).
    2. A mutable live value belongs to its own key only: what a call stored or changed is decoded
       afresh for the next one. So `self.storage["copy"] = self.items` is a copy in the next call,
       as it will be after the object has slept.
    3. Nothing is written outside of a call: what a forgotten task changes inside a value between
       two calls is dropped when the next one begins.

Nothing in here survives the process, and nothing needs to: what `changes()` gives goes into the
journal, and an activation that is lost is loaded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from rayobjects.errors import InvalidCall, StorageFailed, misuse
from rayobjects.ids import ObjectId
from rayobjects.limits import CHANGES_BYTES_MAX, PAGE_KEYS_MAX
from rayobjects.objects.changes import NO_CHANGES, Changes
from rayobjects.objects.commit import Aborted
from rayobjects.objects.committed import Committed
from rayobjects.objects.context import current_call
from rayobjects.objects.fields import IMMUTABLE, Entry, Field, is_immutable
from rayobjects.objects.ledger import Ledger
from rayobjects.objects.promised import Promised
from rayobjects.objects.shown import state_json
from rayobjects.objects.sockets import Sockets
from rayobjects.objects.storage_map import MISSING, StorageMap
from rayobjects.storage.records import (
    DELETED,
    INTENT,
    ITEM,
    PICKLE,
    Loaded,
    Write,
)
from rayobjects.storage.values import decode_value, encode_value

if TYPE_CHECKING:
    from rayobjects.objects.context import CallContext

READ = 0
SET = 1
GONE = 2


class State:
    """The state of one activation. Calls run one after another: `begin`, the method, `changes`,
    then `commit` or `rollback`.

    Attributes:
        id: the object's id.
        live: decoded values, by key with prefix.
        running: whether a call is under way; only then can anything be written.
        exists: something has been committed for it.
        aborted: why the object has given itself up; its activation ends with the call.
        sockets: the object's sockets.
        promised: its schedules and told messages.
        storage: what methods see as `self.storage`.
    """

    __slots__ = (
        "_baselines",
        "_clearing",
        "_committed",
        "_deleting",
        "_fields",
        "_owner",
        "_prepared",
        "_touched",
        "aborted",
        "exists",
        "id",
        "live",
        "promised",
        "running",
        "sockets",
        "storage",
    )

    def __init__(
        self, id: ObjectId, ledger: Ledger, loaded: Loaded, fields: Mapping[str, Field]
    ) -> None:
        self.id = id
        self.live: dict[str, Any] = {}
        self.running = False
        self.exists = loaded.exists
        self.aborted: str | None = None
        self.sockets = Sockets(self, loaded.sockets)
        self.promised = Promised(loaded.schedules)
        self.storage = StorageMap(self)
        self._committed = Committed(id, ledger, loaded)
        self._fields = fields
        self._owner: CallContext | None = None
        self._touched: dict[str, int] = {}
        self._baselines: dict[str, Entry] = {}
        """What a mutable live value was when it was made, where that is not its entry: defaults,
        and pickles that would be pickled a little differently today."""
        self._clearing = False
        self._deleting = False
        self._prepared: Changes | None = None

    # The call's frame.

    def begin(self, context: CallContext | None = None) -> None:
        """Begins a call.

        Args:
            context: of the call: only what runs on its behalf may write.
        """
        self._owner = context
        if self._touched or self._clearing or self.sockets.touched or self.promised.touched:
            self.rollback()
        self.running = True

    def changes(self) -> Changes:
        """What the call has changed so far. Has no effect; `commit()` takes it over.

        Raises:
            InvalidCall: a value cannot be pickled or is too large, or all of them together are.
                `rollback()` must follow.
        """
        if not (self._touched or self._clearing or self.sockets.touched or self.promised.touched):
            self._prepared = NO_CHANGES
            return NO_CHANGES
        self._prepared = None
        if self._deleting:
            closing = self.sockets.closing()
            self._prepared = Changes([], False, [], closing, True)
            return self._prepared
        writes: list[Write] = []
        size = 0
        live = self.live
        for key, mark in self._touched.items():
            before = self._before(key)
            if mark == GONE and key not in live:
                # A large object does not remember all that it has read: then the key may be there.
                unknown = before is None and not (self._clearing or self._committed.whole)
                if (unknown and key[0] == ITEM) or (before is not None and before[0] != DELETED):
                    writes.append((key, DELETED, b""))
                continue
            try:
                entry = encode_value(live[key])
            except InvalidCall as error:
                raise misuse(f"{self._called(key)} cannot be stored: {error}") from error
            if mark == SET:
                if entry == before:
                    continue
            else:
                baseline = self._baselines.get(key)
                if entry == (before if baseline is None else baseline):
                    if mark == GONE and before is not None:
                        writes.append((key, DELETED, b""))
                    continue
            size += len(key) + len(entry[1])
            writes.append((key, entry[0], entry[1]))
        # What a large object has is not asked for: the loop must not wait for a query, and a clear
        # of nothing costs less than one that is missing.
        clear = self._clearing and not (self._committed.whole and self._committed.count() == 0)
        opened, sends, sent_bytes = self.sockets.changes()
        promises = self.promised.changes()
        # Not an intent that is retried: it has the arguments of its call, which may be larger. A
        # record has room for them, as it had the first time, and for all that is counted here.
        size += sent_bytes + sum(len(each.body) for each in promises if each.kind != INTENT)
        if size > CHANGES_BYTES_MAX:
            raise misuse(
                f"one call may write and send {CHANGES_BYTES_MAX:,} bytes, this one has {size:,}: "
                "spread it over several calls"
            )
        self._prepared = Changes(writes, clear, opened, sends, False, promises)
        return self._prepared

    def commit(self) -> None:
        """Ends the call: what `changes()` gave is now the committed view."""
        changes = self._prepared
        if changes is None:
            changes = self.changes()
        self._prepared = None
        self.running = False
        if changes is NO_CHANGES:
            return
        if changes.delete:
            self._delete()
            return
        committed = self._committed
        if self._touched:
            for key in self._touched:
                if key[0] == ITEM and not committed.whole:
                    self.live.pop(key, None)  # a large object's items do not stay
                elif type(self.live.get(key)) not in IMMUTABLE:
                    self.live.pop(key, None)  # invariant 2
                else:
                    continue
                self._baselines.pop(key, None)
            self._touched.clear()
        if changes.writes or changes.clear:
            committed.apply(changes.writes, changes.clear)
            self.exists = True
        self._clearing = False
        if self.sockets.touched:
            self.sockets.commit()
            self.exists = self.exists or bool(changes.sockets)
        if self.promised.touched:
            self.promised.commit()
            self.exists = True

    def rollback(self) -> None:
        """Ends the call as if it had not run."""
        self._prepared = None
        self.running = False
        if self._touched:
            for key in self._touched:
                self.live.pop(key, None)
                self._baselines.pop(key, None)
            self._touched.clear()
        self._clearing = False
        self._deleting = False
        if self.sockets.touched:
            self.sockets.rollback()
        if self.promised.touched:
            self.promised.rollback()

    def delete(self) -> None:
        """For the runtime's own delete, in place of a method: when the call commits, everything
        is back to its default, nothing is left, and the sockets are closed."""
        if not self.running or current_call.get() not in (None, self._owner):
            self._refuse()
        self._deleting = True
        self._clearing = True  # so that changes() looks

    def abort(self, reason: str) -> NoReturn:
        """Gives the activation up: the call is rolled back, and nothing that is in memory stays.

        Raises:
            RuntimeError: no call is under way.
            Aborted: always, else.
        """
        if not self.running or current_call.get() not in (None, self._owner):
            self._refuse()
        self.aborted = reason
        raise Aborted(reason)

    def trim(self) -> None:
        """Drops what the ledger has too: for the host, when none of this object's commits waits
        for the disk. Only a large object keeps such things."""
        if not self.running:
            self._committed.trim()

    @property
    def whole(self) -> bool:
        """Whether all of the object is in memory, so that reading never waits for a query."""
        return self._committed.whole

    @property
    def grown(self) -> bool:
        """Whether the object was loaded whole and has become too large for that: drop the
        activation, and load it again."""
        return self._committed.grown

    # Attributes.

    def read_attribute(self, field: Field) -> Any:
        """An attribute that has no live value yet: decodes its entry, or makes its default."""
        key = field.key
        gone = self._touched.get(key) == GONE
        entry = None if gone else self._committed.entries.get(key)
        if entry is not None:
            return self._decode(key, entry)
        value, baseline = field.make()
        self.live[key] = value
        if baseline is None:
            self._touched[key] = SET
        elif gone or not is_immutable(value):
            self._baselines[key] = baseline
            self._touched.setdefault(key, READ)
        return value

    def touch(self, key: str, value: Any) -> None:
        """Marks a value that was handed out and may be changed inside."""
        if key not in self._touched and not is_immutable(value):
            self._touched[key] = READ

    # Attributes and items.

    def assign(self, key: str, value: Any) -> None:
        """Gives a key a value.

        Raises:
            RuntimeError: no call is under way.
        """
        if not self.running or current_call.get() not in (None, self._owner):
            self._refuse()
        self.live[key] = value
        self._touched[key] = SET

    def remove(self, key: str) -> None:
        """Takes a key's value away; an attribute has its default again.

        Raises:
            RuntimeError: no call is under way.
        """
        if not self.running or current_call.get() not in (None, self._owner):
            self._refuse()
        self.live.pop(key, None)
        self._baselines.pop(key, None)
        self._touched[key] = GONE

    # Items.

    def read_item(self, key: str) -> Any:
        """The value of a storage key.

        Raises:
            KeyError: it is not there.
        """
        value = self.find_item(key)
        if value is MISSING:
            raise KeyError(key[1:])
        return value

    def find_item(self, key: str) -> Any:
        """The value of a storage key, or MISSING."""
        try:
            value = self.live[key]
        except KeyError:
            pass
        else:
            if type(value) not in IMMUTABLE:
                self.touch(key, value)
            return value
        entry = self._item_entry(key)
        return self._decode(key, entry) if entry is not None else MISSING

    def has_item(self, key: str) -> bool:
        """Whether the storage key is there."""
        return key in self.live or self._item_entry(key) is not None

    def clear_items(self) -> None:
        """Takes all storage keys away.

        Raises:
            RuntimeError: no call is under way.
        """
        if not self.running or current_call.get() not in (None, self._owner):
            self._refuse()
        self._clearing = True
        for values in (self.live, self._touched, self._baselines):
            for key in [key for key in values if key[0] == ITEM]:
                del values[key]

    def count_items(self) -> int:
        """How many storage keys there are."""
        count = 0 if self._clearing else self._committed.count()
        for key, mark in self._touched.items():
            if mark != READ and key[0] == ITEM:
                there = not self._clearing and self._committed.get(key) is not None
                count += (mark == SET) - there
        return count

    def walk_items(
        self,
        prefix: str,
        start: str | None = None,
        end: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        """The storage keys with `prefix` in [start, end) in the order of their UTF-8, a page at a
        time. Keys that are deleted under way are left out, keys that are added may be."""
        added = [
            key
            for key, mark in self._touched.items()
            if mark == SET
            and key.startswith(prefix)
            and (start is None or key >= start)
            and (end is None or key < end)
        ]
        added.sort(reverse=reverse)
        known = set(added)
        position = 0
        committed: Iterator[str] = iter(())
        if not self._clearing:
            committed = self._committed.walk(prefix, start, end, reverse, limit)
        for key in committed:
            if key in known:
                continue
            while position < len(added) and (
                added[position] > key if reverse else added[position] < key
            ):
                if self._touched.get(added[position]) != GONE:
                    yield added[position]
                position += 1
            if self._touched.get(key) != GONE and not self._clearing:
                yield key
        for key in added[position:]:
            if self._touched.get(key) != GONE:
                yield key

    # For people.

    def to_json(self, limit: int = PAGE_KEYS_MAX) -> dict[str, Any]:
        """The committed state in JSON types, see `shown.state_json`.

        Args:
            limit: at most so many storage keys.
        """
        return state_json(self._fields, self._committed, limit)

    # Inside.

    def _delete(self) -> None:
        self._committed.apply([], True)
        self._committed.entries.clear()
        self.live.clear()
        self._baselines.clear()
        self._touched.clear()
        self._clearing = False
        self._deleting = False
        self.exists = False
        self.sockets.forget()
        self.promised.forget()

    def _before(self, key: str) -> Entry | None:
        """What the call's write of a key replaces, as far as that is at hand."""
        if key[0] != ITEM:
            return self._committed.entries.get(key)
        return None if self._clearing else self._committed.known(key)

    def _item_entry(self, key: str) -> Entry | None:
        if self._clearing or self._touched.get(key) == GONE:
            return None
        return self._committed.get(key)

    def _decode(self, key: str, entry: Entry) -> Any:
        value = self._value_of(key, entry)
        if type(value) in IMMUTABLE or is_immutable(value):
            if key[0] != ITEM or self._committed.whole:
                self.live[key] = value
            return value
        self.live[key] = value
        self._touched[key] = READ
        if entry[0] == PICKLE or key not in self._committed.entries:
            # To be compared with at the end: a pickle need not be the same byte for byte when the
            # value is pickled again, and what the ledger gave may be forgotten by then.
            self._baselines[key] = encode_value(value)
        return value

    def _value_of(self, key: str, entry: Entry) -> Any:
        try:
            return decode_value(*entry)
        except Exception as error:
            raise StorageFailed(
                f"{self._called(key)} cannot be read ({type(error).__name__}: {error}): deploy a "
                "version of the class that has what the value needs, or install the missing "
                "package on every node"
            ) from error

    def _called(self, key: str) -> str:
        """A key as people call it."""
        if key[0] == ITEM:
            return f"the storage key {key[1:]!r} of {self.id}"
        return f"the durable attribute {key[1:]!r} of {self.id}"

    def check_running(self) -> None:
        """Raises RuntimeError unless a call is under way."""
        if not self.running or current_call.get() not in (None, self._owner):
            self._refuse()

    def _refuse(self) -> None:
        raise RuntimeError(
            f"{self.id} can only be written while one of its calls runs: not in __init__ (give "
            "the attribute a default, or use on_start), and not in a task that outlives its call"
        )
