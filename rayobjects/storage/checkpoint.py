"""The checkpoint: the shard's DuckDB database, the journal folded.

One transaction a fold brings a whole generation of the memtable in, with the sequence up to which
the database is now complete; so after a crash it is at the fold before or at this one, and the
journal has everything beyond. Rows are found by 64-bit hashes and there are no keys and no
indexes: a PRIMARY KEY made folds several times slower and no look-up faster (DuckDB prunes and
scans one integer column at about 3 ms a million rows).

    state     one row a key: `json` for what JSON gives back exactly, else `blob` (cloudpickle)
    objects   the objects that exist, with the class's version that last wrote each
    sockets   open sockets
    replies   finished calls within their window
    sends     socket messages that their gateways have not acknowledged
    owners    epochs of dedicated objects
    promises  schedules, messages to deliver, calls to end
    meta      the format, the shard, the folded sequence

DuckDB lets one process at a time open the file, and is trusted for its own commits. This is the one
place where its errors become StorageFailed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId, key_hash, object_hash
from rayobjects.messages import Send
from rayobjects.storage.files import Files
from rayobjects.storage.finished import FinishedCalls
from rayobjects.storage.memtable import Key
from rayobjects.storage.merge import FoldInput, merge
from rayobjects.storage.records import (
    ITEM,
    JSON,
    PICKLE,
    Finished,
    PendingSends,
    Promise,
    SocketChange,
)

FORMAT = 1
NAME = "checkpoint.duckdb"
BLOCK_BYTES = 16_384
"""DuckDB's smallest block: a tiny database has 61 KB with it, 799 KB with the default 256 KiB."""

MEMORY_BYTES = 256 * 1024 * 1024
"""What DuckDB may use for a fold or a query, in each host."""

_HELD = ("Could not set lock on file", "Unique file handle conflict")
"""How DuckDB says that another process has the file open, or that this one has."""

OPEN_WITHIN_S = 15.0
OPEN_AGAIN_S = 0.1
"""A stale owner that still holds the file notices within a second that its epoch is over."""

_TABLES = """
CREATE TABLE state (slot USMALLINT, object_hash UBIGINT, key_hash UBIGINT, class VARCHAR,
    name VARCHAR, key VARCHAR, json VARCHAR, blob BLOB);
CREATE TABLE objects (slot USMALLINT, object_hash UBIGINT, class VARCHAR, name VARCHAR,
    version UBIGINT);
CREATE TABLE sockets (object_hash UBIGINT, class VARCHAR, name VARCHAR, socket VARCHAR, body BLOB);
CREATE TABLE replies (call_id VARCHAR, finished_at DOUBLE, body BLOB);
CREATE TABLE sends (class VARCHAR, name VARCHAR, sequence UBIGINT, body BLOB);
CREATE TABLE owners (object_hash UBIGINT, class VARCHAR, name VARCHAR, epoch UBIGINT);
CREATE TABLE promises (object_hash UBIGINT, class VARCHAR, name VARCHAR, kind UBIGINT,
    key VARCHAR, body BLOB);
CREATE TABLE meta (key VARCHAR, value VARCHAR);
"""

_SIZE = "coalesce(strlen(json), octet_length(blob))"

_decode_socket = msgspec.msgpack.Decoder(SocketChange).decode
_decode_finished = msgspec.msgpack.Decoder(Finished).decode
_decode_promise = msgspec.msgpack.Decoder(Promise).decode
_decode_sends = msgspec.msgpack.Decoder(list[Send]).decode


@dataclass
class Rest:
    """What an owner keeps in memory from the opening on."""

    folded: int
    owners: dict[Key, int]
    sockets: list[tuple[Key, SocketChange]]
    finished: FinishedCalls
    sends: list[PendingSends]
    promises: list[tuple[Key, Promise]]


class Checkpoint:
    """An open checkpoint. Reading is safe from any thread; folding from one at a time."""

    def __init__(self, connection: Any, path: str) -> None:
        self._connection = connection
        self._path = path
        self._local = threading.local()

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def open(cls, files: Files, directory: str, shard: str) -> Checkpoint:
        """Opens the shard's checkpoint, making an empty one where there is none.

        Raises:
            StorageFailed: the file is damaged, foreign, of another version, or in use elsewhere
                for over 15 s.
        """
        import duckdb  # 41 MB: only in processes that own a shard

        path = files.path(f"{directory}/{NAME}")
        connection = cls._connected(duckdb, path)
        checkpoint = cls(connection, path)
        try:
            checkpoint._prepare(shard)
        except BaseException:
            connection.close()
            raise
        return checkpoint

    @staticmethod
    def _connected(duckdb: Any, path: str) -> Any:
        pause = threading.Event()
        for _ in range(int(OPEN_WITHIN_S / OPEN_AGAIN_S)):
            try:
                connection = duckdb.connect(
                    ":memory:",
                    config={
                        "threads": 1,
                        "memory_limit": f"{MEMORY_BYTES}B",
                        "temp_directory": f"{path}.tmp",
                    },
                )
                connection.execute(
                    f"ATTACH '{_quoted(path)}' AS shard (BLOCK_SIZE {BLOCK_BYTES}); USE shard"
                )
                return connection
            except duckdb.Error as error:
                if not any(each in str(error) for each in _HELD):
                    raise _unusable(path, error) from error
                problem = error
                connection.close()
            pause.wait(OPEN_AGAIN_S)
        raise StorageFailed(
            f"{path} is in use, by another process or by this one ({problem}): end the host that "
            "has it, then try again"
        ) from problem

    def _prepare(self, shard: str) -> None:
        with self._translated():
            tables = self._connection.execute(
                "SELECT count(*) FROM information_schema.tables WHERE table_catalog = 'shard'"
            ).fetchone()[0]
            if not tables:
                self._connection.execute(f"BEGIN; {_TABLES}")
                self._connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [("format", str(FORMAT)), ("shard", shard), ("folded", "0")],
                )
                self._connection.execute("COMMIT")
            try:
                meta = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
            except Exception as error:
                raise StorageFailed(
                    f"{self._path} is no checkpoint of rayobjects: move it away, or point the "
                    "storage at another directory"
                ) from error
        if meta.get("format") != str(FORMAT):
            raise StorageFailed(
                f"{self._path} has the format {meta.get('format')}, this version knows {FORMAT}: "
                "open it with the version that wrote it"
            )
        if meta.get("shard") != shard:
            raise StorageFailed(
                f"{self._path} belongs to the shard {meta.get('shard')}, not to {shard}: put the "
                "files back to where they came from"
            )
        with self._translated():
            self._upgrade()

    def _upgrade(self) -> None:
        """Adds what an earlier release of the same format did not have."""
        columns = self._connection.execute(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_catalog = 'shard' AND table_name = 'objects'"
        ).fetchall()
        if ("version",) not in columns:
            self._connection.execute("ALTER TABLE objects ADD COLUMN version UBIGINT")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS promises (object_hash UBIGINT, class VARCHAR, "
            "name VARCHAR, kind UBIGINT, key VARCHAR, body BLOB)"
        )

    def rest(self) -> Rest:
        """Everything besides the state, for the owner's memory."""
        with self._translated():
            query = self._connection.execute
            (folded,) = query("SELECT value FROM meta WHERE key = 'folded'").fetchone()
            owners = query("SELECT class, name, epoch FROM owners").fetchall()
            sockets = query("SELECT class, name, body FROM sockets").fetchall()
            # One by one: all of them may be more than the memory should hold. A concurrent call has
            # two rows if a fold came between its first block and its end. Their times need not tell
            # which is the younger one, for they are coarse and may go back: sequences do.
            finished = FinishedCalls()
            replies = query("SELECT body FROM replies ORDER BY finished_at")
            while rows := replies.fetchmany(100):
                for (body,) in rows:
                    each = _decode_finished(body)
                    known = finished.get((each.class_name, each.name), each.call_id)
                    if known is None or known.sequence < each.sequence:
                        finished.add(each)
            finished.take_forgotten(0)  # a fold would delete the younger row together with it
            sends = query(
                "SELECT class, name, sequence, body FROM sends ORDER BY sequence"
            ).fetchall()
            promises = query("SELECT class, name, body FROM promises").fetchall()
        return Rest(
            int(folded),
            {(kind, name): epoch for kind, name, epoch in owners},
            [((kind, name), _decode_socket(body)) for kind, name, body in sockets],
            finished,
            [PendingSends(kind, name, seq, _decode_sends(body)) for kind, name, seq, body in sends],
            [((kind, name), _decode_promise(body)) for kind, name, body in promises],
        )

    # -- folding ------------------------------------------------------------------------------

    def fold(self, fold: FoldInput) -> None:
        """Brings a generation in, in one transaction.

        Raises:
            StorageFailed: nothing of it is in the database.
        """
        with self._translated():
            cursor = self._cursor()
            query = cursor.execute
            query("BEGIN")
            try:
                merge(cursor, fold)
                query("COMMIT")
            except BaseException:
                try:
                    query("ROLLBACK")
                except Exception:
                    pass  # the first error is the one that counts
                raise

    # -- reading -------------------------------------------------------------------------------

    def sizes(self, ids: Sequence[ObjectId], keys_max: int) -> dict[Key, tuple[int, int, int]]:
        """(number of items, their bytes, version) of those of the objects that exist; an object
        with more than `keys_max` items may be reported with some of them only, but more than
        `keys_max`."""
        if len(ids) == 1:
            return self._size(ids[0], keys_max)
        hashes = [object_hash(id) for id in ids]
        with self._translated():
            query = self._cursor().execute
            existing = query(
                "SELECT class, name, version FROM objects WHERE object_hash IN "
                "(SELECT unnest(?::UBIGINT[]))",
                [hashes],
            ).fetchall()
            rows = query(
                f"SELECT class, name, count(*), sum({_SIZE}) FROM state WHERE object_hash IN "
                "(SELECT unnest(?::UBIGINT[])) AND starts_with(key, ?) GROUP BY class, name",
                [hashes, ITEM],
            ).fetchall()
        result = {(kind, name): (0, 0, version or 0) for kind, name, version in existing}
        result |= {row[:2]: (*row[2:], result[row[:2]][2]) for row in rows if row[:2] in result}
        return result

    def _size(self, id: ObjectId, keys_max: int) -> dict[Key, tuple[int, int, int]]:
        """The same for one object, in one query that is planned in a third of the time."""
        with self._translated():
            rows = (
                self._cursor()
                .execute(
                    "SELECT class, name, NULL, version FROM objects WHERE object_hash = $1 "
                    f"UNION ALL (SELECT class, name, {_SIZE}, NULL FROM state "
                    "WHERE object_hash = $1 AND "
                    f"starts_with(key, '{ITEM}') LIMIT {int(keys_max) + 1})",
                    [object_hash(id)],
                )
                .fetchall()
            )
        # Namesakes have the same hash. If they have filled the page, it may be theirs alone.
        sizes = [size for _, _, size, _ in rows if size is not None]
        if len(sizes) <= keys_max:
            sizes = [row[2] for row in rows if row[2] is not None and row[:2] == id]
        versions = [row[3] or 0 for row in rows if row[2] is None and row[:2] == id]
        return {(id[0], id[1]): (len(sizes), sum(sizes), versions[0])} if versions else {}

    def entries(
        self, ids: Sequence[ObjectId], *, attributes_only: bool
    ) -> dict[Key, dict[str, tuple[int, bytes]]]:
        """The entries of the objects: key → (encoding, data)."""
        result: dict[Key, dict[str, tuple[int, bytes]]] = {}
        hashes: Any = [object_hash(id) for id in ids]
        found = "IN (SELECT unnest(?::UBIGINT[]))"
        if len(ids) == 1:
            found, hashes = "= ?", hashes[0]  # half the time
        condition = f"AND NOT starts_with(key, '{ITEM}')" if attributes_only else ""
        with self._translated():
            rows = (
                self._cursor()
                .execute(
                    "SELECT class, name, key, json, blob FROM state "
                    f"WHERE object_hash {found} {condition}",
                    [hashes],
                )
                .fetchall()
            )
        for kind, name, key, json, blob in rows:
            result.setdefault((kind, name), {})[key] = _entry(json, blob)
        return result

    def read(self, id: ObjectId, key: str) -> tuple[int, bytes] | None:
        """One entry."""
        with self._translated():
            row = (
                self._cursor()
                .execute(
                    "SELECT json, blob FROM state WHERE key_hash = ? AND key = ? AND class = ? "
                    "AND name = ?",
                    [key_hash(id, key), key, *id],
                )
                .fetchone()
            )
        return None if row is None else _entry(*row)

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
        """Entries with the prefix in [start, end), sorted by the bytes of the key, one page."""
        conditions, arguments = "", [object_hash(id), *id, prefix]
        if start is not None:
            conditions += " AND key >= ?"
            arguments.append(start)
        if end is not None:
            conditions += " AND key < ?"
            arguments.append(end)
        with self._translated():
            rows = (
                self._cursor()
                .execute(
                    "SELECT key, json, blob FROM state WHERE object_hash = ? AND class = ? "
                    f"AND name = ? AND starts_with(key, ?){conditions} "
                    f"ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT {int(limit)}",
                    arguments,
                )
                .fetchall()
            )
        return [(key, *_entry(json, blob)) for key, json, blob in rows]

    def count(self, id: ObjectId, shadowed: Sequence[str]) -> int:
        """How many items the object has, not counting the keys `shadowed`."""
        with self._translated():
            row = (
                self._cursor()
                .execute(
                    "SELECT count(*) FROM state WHERE object_hash = ? AND class = ? AND name = ? "
                    "AND starts_with(key, ?) AND key NOT IN (SELECT unnest(?::VARCHAR[]))",
                    [object_hash(id), *id, ITEM, list(shadowed)],
                )
                .fetchone()
            )
        return int(row[0])

    def names(self, class_name: str, prefix: str, after: str, limit: int) -> list[str]:
        """Names of the class's objects, sorted, those behind `after`."""
        with self._translated():
            rows = (
                self._cursor()
                .execute(
                    "SELECT name FROM objects WHERE class = ? AND name > ? "
                    f"AND starts_with(name, ?) ORDER BY name LIMIT {int(limit)}",
                    [class_name, after, prefix],
                )
                .fetchall()
            )
        return [name for (name,) in rows]

    def close(self) -> None:
        """Folds DuckDB's own log in and closes the file."""
        with self._translated():
            self._connection.execute("CHECKPOINT shard")
        self.abandon()

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._connection.close()

    def _cursor(self) -> Any:
        """A cursor of this thread's own: DuckDB's are not safe to share."""
        cursor = getattr(self._local, "cursor", None)
        if cursor is None:
            cursor = self._local.cursor = self._connection.cursor()
            cursor.execute("USE shard")
        return cursor

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            raise _unusable(self._path, error) from error


def _entry(json: str | None, blob: bytes | None) -> tuple[int, bytes]:
    if json is not None:
        return JSON, json.encode()
    assert blob is not None
    return PICKLE, blob


def _quoted(path: str) -> str:
    return path.replace("'", "''")


def _unusable(path: str, error: Exception) -> StorageFailed:
    text = str(error).strip().splitlines()[0]
    if "no space" in text.lower() or "disk full" in text.lower():
        return StorageFailed(
            f"cannot write to {path}: the disk is full. Free some space, then try again: nothing "
            "that was acknowledged is lost"
        )
    return StorageFailed(
        f"{path} cannot be used ({text}). The shard stays closed, so that nothing acknowledged is "
        "lost: restore the shard's directory from a copy, or open it with the version that wrote it"
    )
