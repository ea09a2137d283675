"""What a fold does to the checkpoint's tables: a generation of the memtable, brought in.

Rows that change are deleted by their hashes and inserted anew. They come in as numpy columns, which
DuckDB scans in place: 12 ms for 10,000 rows, where JSON text took 27 ms and lists as parameters
67 ms. A column is all strings, all bytes or all numbers, never None: DuckDB guesses the type of a
column of objects from a sample.

Nothing here begins or ends a transaction: all of it is one, or none of it happened (`checkpoint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rayobjects.ids import ObjectId, key_hash, object_hash
from rayobjects.storage.memtable import Delta, Key
from rayobjects.storage.records import (
    ITEM,
    JSON,
    PICKLE,
    Finished,
    PendingSends,
    SocketChange,
)

ROWS_AT_ONCE = 2_000
"""Rows of one insert. While DuckDB takes Python's strings in, no other thread runs: 2 to 3 ms."""

_encode = msgspec.msgpack.Encoder().encode


@dataclass
class FoldInput:
    """What a fold brings into the database.

    Attributes:
        folded: the sequence up to which the database is complete after it.
        deltas: the generation's objects.
        owners: epochs of dedicated objects that changed.
        sockets: (object, socket id, the open socket or None) of all that changed.
        finished: calls to keep; `finished_since` deletes those that ended before it.
        forgotten: ids of calls to delete.
        sends: unacknowledged messages to keep; `sent` are (object, sequence) to delete.
    """

    folded: int
    deltas: dict[Key, Delta] = field(default_factory=dict)
    owners: dict[Key, int] = field(default_factory=dict)
    sockets: list[tuple[Key, str, SocketChange | None]] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    finished_since: float = 0.0
    forgotten: list[str] = field(default_factory=list)
    sends: list[PendingSends] = field(default_factory=list)
    sent: list[tuple[Key, int]] = field(default_factory=list)


def merge(cursor: Any, fold: FoldInput) -> None:
    """Brings the generation and the folded sequence in, within the cursor's transaction."""
    _merge_state(cursor, fold)
    _merge_objects(cursor, fold)
    _merge_rest(cursor, fold)
    cursor.execute("UPDATE meta SET value = ? WHERE key = 'folded'", [str(fold.folded)])


def _merge_state(cursor: Any, fold: FoldInput) -> None:
    gone: list[int] = []  # objects all of whose rows go
    without_items: list[int] = []
    hashes: list[int] = []  # rows that go or are replaced
    keys: list[int] = []
    # (object hash, key hash, class, name, key, value)
    json: list[tuple[int, int, str, str, str, str]] = []
    blobs: list[tuple[int, int, str, str, str, bytes]] = []
    for key, delta in fold.deltas.items():
        id = ObjectId(*key)
        hashed = object_hash(id)
        if delta.deleted:
            gone.append(hashed)
        elif delta.cleared:
            without_items.append(hashed)
        for name, (encoding, data) in delta.entries.items():
            hashed_key = key_hash(id, name)
            hashes.append(hashed)
            keys.append(hashed_key)
            if encoding == JSON:
                json.append((hashed, hashed_key, *key, name, data.decode()))
            elif encoding == PICKLE:
                blobs.append((hashed, hashed_key, *key, name, data))
    same = "DELETE FROM state USING rows WHERE object_hash = rows.c0"
    _delete(cursor, same, gone)
    _delete(cursor, f"{same} AND starts_with(key, '{ITEM}')", without_items)
    _delete(cursor, f"{same} AND key_hash = rows.c1", hashes, keys)
    into = "INSERT INTO state SELECT c0 >> 52, c0, c1, c2, c3, c4, "
    _insert(cursor, f"{into} c5, NULL FROM rows", "UUSSSS", json)
    _insert(cursor, f"{into} NULL, c5 FROM rows", "UUSSSS", blobs)


def _merge_objects(cursor: Any, fold: FoldInput) -> None:
    changed = [
        (object_hash(ObjectId(*key)), *key, delta.exists)
        for key, delta in fold.deltas.items()
        if delta.exists is not None
    ]
    _delete(
        cursor,
        "DELETE FROM objects USING rows WHERE object_hash = rows.c0",
        [row[0] for row in changed],
    )
    _insert(
        cursor,
        "INSERT INTO objects SELECT c0 >> 52, c0, c1, c2 FROM rows",
        "USS",
        [row[:3] for row in changed if row[3]],
    )


def _merge_rest(cursor: Any, fold: FoldInput) -> None:
    query = cursor.execute
    owners = [(object_hash(ObjectId(*key)), *key, epoch) for key, epoch in fold.owners.items()]
    _delete(
        cursor,
        "DELETE FROM owners USING rows WHERE object_hash = rows.c0",
        [row[0] for row in owners],
    )
    _insert(cursor, "INSERT INTO owners SELECT * FROM rows", "USSU", owners)
    if fold.sockets:
        query(
            "DELETE FROM sockets WHERE socket IN (SELECT unnest(?::VARCHAR[]))",
            [[socket for _, socket, _ in fold.sockets]],
        )
    opened = [
        (object_hash(ObjectId(*key)), *key, socket, _encode(change))
        for key, socket, change in fold.sockets
        if change is not None
    ]
    _insert(cursor, "INSERT INTO sockets SELECT * FROM rows", "USSSS", opened)
    query("DELETE FROM replies WHERE finished_at < ?", [fold.finished_since])
    if fold.forgotten:
        query(
            "DELETE FROM replies WHERE call_id IN (SELECT unnest(?::VARCHAR[]))",
            [fold.forgotten],
        )
    replies = [(each.call_id, each.finished_at, _encode(each)) for each in fold.finished]
    _insert(cursor, "INSERT INTO replies SELECT * FROM rows", "SFS", replies)
    sends = [
        (each.class_name, each.name, each.sequence, _encode(each.sends)) for each in fold.sends
    ]
    _delete(
        cursor,
        "DELETE FROM sends USING rows WHERE sequence = rows.c0",
        [sequence for _, sequence in fold.sent] + [row[2] for row in sends],
    )
    _insert(cursor, "INSERT INTO sends SELECT * FROM rows", "SSUS", sends)


def _delete(cursor: Any, statement: str, *columns: list[int]) -> None:
    """Runs a statement over columns of hashes, which it knows as `rows(c0, c1, …)`."""
    if columns[0]:
        _run(cursor, statement, "U" * len(columns), columns)


def _insert(cursor: Any, statement: str, kinds: str, rows: Sequence[Sequence[Any]]) -> None:
    """Runs a statement over rows, which it knows as `rows(c0, c1, …)`, a part of them at a time.

    Args:
        kinds: a letter a column: U for UBIGINT, F for DOUBLE, S for strings or bytes.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        _run(cursor, statement, kinds, list(zip(*part, strict=True)))


def _run(cursor: Any, statement: str, kinds: str, columns: Sequence[Sequence[Any]]) -> None:
    import numpy

    arrays = {}
    for number, (kind, values) in enumerate(zip(kinds, columns, strict=True)):
        if kind == "S":
            array = numpy.empty(len(values), dtype=object)
            array[:] = values
        else:
            array = numpy.array(values, dtype=numpy.uint64 if kind == "U" else numpy.float64)
        arrays[f"c{number}"] = array
    cursor.register("rows", arrays)
    try:
        cursor.execute(statement)
    finally:
        cursor.unregister("rows")
