"""A shard: the objects of a range of slots, with one journal and one checkpoint.

Opening claims the shard (`ownership`), then opens the checkpoint, then reads the journal and makes
of it what `recovery` says. From then on the journal is the truth, the memtable has what the
checkpoint lacks, and folding moves one into the other in the background.

Implements `objects.ledger.Ledger`: the guarantees are numbered there. Everything is called on the
event loop's thread, except `open`, `close` and `abandon`, which block, and `read`, `scan` and
`count`, which other threads may call. Nothing here takes the time or a callback from the air, and
with `threads=False` nothing runs but in the calls and in `soon`: that is what simulations use.

When the process dies

    in `open`      nothing is acknowledged yet; the next owner finds the old journal or the
                   rewritten one, and perhaps both: the same records
    in a commit    the group is in the journal whole, or it is not in it
    in a fold      the checkpoint is before it or after it; what of the journal is folded is
                   ignored when it is found again
    in `close`     like in a fold
"""

from __future__ import annotations

from collections.abc import Callable

from rayobjects.clock import Clock
from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.limits import (
    FOLD_AFTER_S,
    FOLD_BYTES,
    FOLD_RECORDS,
    PAGE_KEYS_MAX,
    SEGMENT_BYTES_MAX,
)
from rayobjects.storage.commits import Commits, Done
from rayobjects.storage.dedicated import DedicatedOwners
from rayobjects.storage.files import Files, RealFiles, parse_root
from rayobjects.storage.folding import Folding
from rayobjects.storage.indexes import Indexes
from rayobjects.storage.journal import Journal
from rayobjects.storage.memtable import Memtable
from rayobjects.storage.opening import recover, restore
from rayobjects.storage.ownership import Claims, Ownership
from rayobjects.storage.reading import Reading
from rayobjects.storage.records import (
    Finished,
    Loaded,
    PendingSends,
    Promise,
    Record,
    SocketChange,
)
from rayobjects.storage.room import check_room
from rayobjects.storage.worker import InlineWorker, ThreadWorker, Worker, on_loop

_HERE = "."
"""The shard's directory, seen from its files."""

Soon = Callable[[Callable[[], None]], object]


class Shard:
    """An open shard; made by `open`.

    Attributes:
        name: such as `default-0003`.
        epoch: of this ownership.
        failed: set for good once a commit or a fold failed, or the epoch was lost.
    """

    def __init__(
        self,
        files: Files,
        name: str,
        ownership: Ownership,
        *,
        clock: Clock,
        soon: Soon,
        post: Soon,
        threads: bool,
        segment_bytes_max: int,
        fold_records: int,
        fold_bytes: int,
        fold_after_s: float,
    ) -> None:
        self.name = name
        self.epoch = ownership.epoch
        self.failed: StorageFailed | None = None
        self._files = files
        self._ownership = ownership
        self._clock = clock
        self._post = post if threads else _now
        self._soon = soon
        self._threads = threads
        self._memtable = Memtable()
        self._indexes = Indexes()
        self._owners = DedicatedOwners(self._indexes)
        self._closed = False
        self._memtable_bytes = 0
        self._journal = Journal(files, _HERE, name, ownership, segment_bytes_max=segment_bytes_max)
        self._folding = Folding(
            self._memtable,
            self._indexes,
            self._journal,
            ownership,
            self._worker("fold"),
            files=files,
            directory=_HERE,
            shard=name,
            post=self._post,
            fail=self._fail,
            records=fold_records if threads else None,
            size=fold_bytes,
            after_s=fold_after_s,
        )
        self._commits: Commits  # made by _recover
        self._reading = Reading(
            self._memtable,
            self._indexes,
            self._folding,
            self._worker("load"),
            soon=soon,
            post=self._post,
            inline=not threads,
        )

    @classmethod
    def open(
        cls,
        directory: str | Files,
        name: str,
        *,
        clock: Clock,
        soon: Soon,
        post: Soon,
        claims: Claims | None = None,
        threads: bool = True,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        fold_records: int = FOLD_RECORDS,
        fold_bytes: int = FOLD_BYTES,
        fold_after_s: float = FOLD_AFTER_S,
    ) -> Shard:
        """Claims the shard and recovers it. Blocks: about 1 ms if it is new, 50 ms and 1 µs a
        record if it is not.

        Args:
            directory: the shard's own (`Manifest.shard_root`), or its files.
            soon: runs a callback on the loop, later (`loop.call_soon`).
            post: the same, from any thread (`loop.call_soon_threadsafe`).
            claims: of a process that may open the shard more than once: then only if no other has
                claimed it in between.
            threads: False: everything happens in the calls and in `soon`; folds only when asked.

        Raises:
            StorageFailed: the shard is damaged, of another version or in use, or the disk refuses;
                with `details["lost"]`, another process has taken it over (see `claims`).
        """
        files = RealFiles(parse_root(directory)) if isinstance(directory, str) else directory
        files.make_directory("")
        ownership = Ownership.claim(files, _HERE, claims)
        shard = cls(
            files,
            name,
            ownership,
            clock=clock,
            soon=soon,
            post=post,
            threads=threads,
            segment_bytes_max=segment_bytes_max,
            fold_records=fold_records,
            fold_bytes=fold_bytes,
            fold_after_s=fold_after_s,
        )
        try:
            shard._recover()
        except BaseException:
            shard._release()
            raise
        return shard

    def _worker(self, what: str) -> Worker:
        return ThreadWorker(f"{self.name}-{what}") if self._threads else InlineWorker()

    def _recover(self) -> None:
        found = recover(self._files, _HERE, self.name, self.epoch, self._folding, self._journal)
        if found.rest is not None:
            restore(self._indexes, found.rest)
        if found.plan.records:
            self._apply(list(found.plan.records), found.journal_bytes)
        self._indexes.calls.expire(self._clock.now())
        self._commits = Commits(
            self._journal,
            self._ownership,
            self._worker("commit"),
            last=found.plan.last,
            soon=self._soon,
            post=self._post,
            apply=self._apply,
            fail=self._fail,
        )

    # -- commits ------------------------------------------------------------------------------

    def commit(self, record: Record, done: Done) -> None:
        """Writes a record; returns at once, `done(error, sequence)` follows on the loop.

        A record that names an owner epoch which is not the object's present one is refused, alone.
        One that ends a call which others were called by (`Record.ends_begun`) always has room.

        Raises:
            Overloaded: too much waits for the disk or to be folded, or too many finished calls
                are kept. Nothing was written.
        """
        if record.owner_epoch:
            key = (record.class_name, record.name)
            refusal = None if record.claims else self._owners.refusal(key, record.owner_epoch)
            if refusal is not None:
                self._commits.add_nothing(lambda error, _: done(error or refusal, 0))
                return
        if not record.promises or not record.ends_begun:
            self._commits.check_room()
            check_room(self.name, record, self._memtable_bytes, self._indexes)
        self._commits.add(record, done)

    @property
    def busy(self) -> bool:
        """Whether commits are on their way to the disk."""
        return self._commits.waiting_bytes > 0

    def confirm(self, done: Done) -> None:
        """Shows that the epoch still holds; `done(error, 0)` follows, after the callbacks of the
        commits before it."""
        self._commits.add_nothing(done)

    def claim_object(self, id: ObjectId, done: Done, *, last: int = 0) -> None:
        """Makes a new owner epoch for a dedicated object; `done(error, owner_epoch)` follows. What
        the owner before had committed until now is on disk before that, the rest is refused.

        Args:
            last: the epoch that this very claimant had before; if it is not the present one any
                more, the claim is refused. 0 for a new process.
        """
        key = (id[0], id[1])
        refusal = self._owners.refusal(key, last) if last else None
        if refusal is not None:
            self._commits.add_nothing(lambda error, _: done(error or refusal, 0))
            return
        epoch = self._owners.current(key) + 1
        record = Record(key[0], key[1], owner_epoch=epoch, claims=True)

        def claimed(error: StorageFailed | None, sequence: int) -> None:
            done(error, 0 if error is not None else epoch)

        self.commit(record, claimed)
        self._owners.claim(key, epoch)

    def confirm_object(self, id: ObjectId, owner_epoch: int, done: Done) -> None:
        """`confirm` for a dedicated object: fails too if that epoch is not its present one."""
        key = (id[0], id[1])

        def confirmed(error: StorageFailed | None, _: int) -> None:
            done(error or self._owners.refusal(key, owner_epoch), 0)

        self._commits.add_nothing(confirmed)

    def _apply(self, records: list[Record | None], size: int) -> None:
        """Takes over a group that is on disk."""
        written = [record for record in records if record is not None]
        self._memtable.apply(written, size, self._clock.monotonic())
        active, apply = self._memtable.active, self._indexes.apply
        for record in written:
            finished = apply(record)
            if finished is not None:
                active.finished.append(finished)
            if record.claims:
                self._owners.claimed(record)
        self._memtable_bytes = self._memtable.size
        self._folding.consider(self._clock)

    def _fail(self, error: StorageFailed) -> None:
        if self.failed is None:
            self.failed = error
        self._commits.fail(error)
        self._reading.fail(error)
        self._folding.end(error)

    # -- loading ------------------------------------------------------------------------------

    async def load(self, id: ObjectId) -> Loaded:
        """Loads an object. Loads that are asked for together are one query.

        Raises:
            StorageFailed: the shard has failed or is closed, or the checkpoint is damaged.
        """
        return await self._reading.load((id[0], id[1]))

    def read(self, id: ObjectId, key: str) -> tuple[int, bytes] | None:
        """One entry, from any thread. Blocks for a query (about 1 ms)."""
        return self._reading.read((id[0], id[1]), key)

    def scan(
        self,
        id: ObjectId,
        *,
        prefix: str,
        start: str | None = None,
        end: str | None = None,
        limit: int = PAGE_KEYS_MAX,
        reverse: bool = False,
    ) -> list[tuple[str, int, bytes]]:
        """Entries whose key has `prefix` and lies in [start, end), sorted by the key's UTF-8, at
        most `limit`; from any thread. Blocks for a query."""
        return self._reading.scan((id[0], id[1]), prefix, start, end, limit, reverse)

    def count(self, id: ObjectId) -> int:
        """How many storage keys the object has, from any thread. Blocks for a query."""
        return self._reading.count((id[0], id[1]))

    async def exists(self, id: ObjectId) -> bool:
        """Whether the object exists: something was committed for it, and not deleted since."""
        return (await self.load(id)).exists

    async def list_objects(
        self, class_name: str, prefix: str = "", after: str = "", limit: int = PAGE_KEYS_MAX
    ) -> list[str]:
        """The names of a class's objects that have `prefix` and come after `after`, sorted by
        their UTF-8, at most `limit`."""
        return await self._reading.names(class_name, prefix, after, limit)

    # -- what is kept in memory ---------------------------------------------------------------

    def finished(self, id: ObjectId, call_id: str) -> Finished | None:
        """The stored reply of a finished call within its window."""
        return self._indexes.calls.get((id[0], id[1]), call_id)

    def finished_of(self, id: ObjectId) -> list[Finished]:
        """All stored replies of an object. Looks through all of the shard's: for rare use."""
        return self._indexes.calls.of((id[0], id[1]))

    @property
    def finished_count(self) -> int:
        """How many finished calls are kept."""
        return len(self._indexes.calls)

    def forget(self, call_id: str, id: ObjectId | None = None) -> None:
        """The caller has the reply and will not ask again. `id` is needed where other objects may
        have a call of the same id."""
        self._indexes.calls.forget(call_id, None if id is None else (id[0], id[1]))

    def sent(self, id: ObjectId, sequence: int, gateway: str) -> None:
        """The gateway has acknowledged the record's messages."""
        self._indexes.sent((id[0], id[1]), sequence, gateway)

    def pending(self) -> list[PendingSends]:
        """Records with messages that a gateway has not acknowledged, in order; each with all of
        its messages, so that they keep their indexes."""
        return self._indexes.pending()

    def pending_of(self, id: ObjectId) -> list[PendingSends]:
        """The same for one object."""
        return self._indexes.pending_of((id[0], id[1]))

    def promises(self) -> list[tuple[ObjectId, Promise]]:
        """What the objects have yet to do; each object's in the order in which it was promised."""
        return [(ObjectId(*key), promise) for key, promise in self._indexes.promises.all()]

    def promises_of(self, id: ObjectId) -> list[Promise]:
        """The same for one object."""
        return self._indexes.promises.of((id[0], id[1]))

    def promise(self, id: ObjectId, kind: int, key: str) -> Promise | None:
        """One of them, as it is on disk."""
        return self._indexes.promises.get((id[0], id[1]), kind, key)

    def sockets(self) -> list[tuple[ObjectId, str, str]]:
        """(object, socket id, gateway) of every open socket."""
        return self._indexes.sockets()

    def sockets_of(self, id: ObjectId) -> list[SocketChange]:
        """An object's open sockets."""
        return self._indexes.sockets_of((id[0], id[1]))

    def owned_objects(self, class_name: str) -> list[ObjectId]:
        """Those of a class's objects, existing or not, that ever had an owner epoch. Looks through
        all of the shard's: for rare use."""
        return [ObjectId(*key) for key in self._indexes.owned_by(class_name)]

    # -- housekeeping -------------------------------------------------------------------------

    def expire(self) -> None:
        """Forgets calls that have left their window, folds what has waited long enough, and looks
        whether the shard is still ours, so that an idle owner lets go too. For every few seconds.
        """
        if self._closed:
            return
        self._indexes.calls.expire(self._clock.now())
        self._memtable_bytes = self._memtable.size
        if self.failed is not None:
            return
        try:
            self._ownership.check()
        except StorageFailed as error:
            self._fail(error)
            return
        self._folding.consider(self._clock)

    async def fold(self) -> None:
        """Folds what is in the memtable now; returns when the checkpoint has it.

        Raises:
            StorageFailed: the fold failed, and the shard with it.
        """
        if self.failed is not None:
            raise self.failed
        await self._folding.fold(self._clock)
        self._memtable_bytes = self._memtable.size

    def stats(self) -> dict[str, int]:
        """Figures for people."""
        indexes, active = self._indexes, self._memtable.active
        return {
            "epoch": self.epoch,
            "records": self._commits.last,
            "folded_records": self._folding.folded,
            "memtable_records": active.records,
            "memtable_bytes": self._memtable.size,
            "journal_bytes": self._journal.size,
            "unsynced_bytes": self._commits.waiting_bytes,
            "finished_calls": len(indexes.calls),
            "finished_bytes": indexes.calls.reply_bytes,
            "pending_sends": indexes.pending_count,
            "open_sockets": indexes.socket_count,
            "promises": indexes.promises.count,
        }

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Writes what was committed, runs its callbacks, folds everything, and lets go. Blocks;
        may be called on the loop's thread or on another while the loop runs. May be called twice.

        Raises:
            StorageFailed: the last fold failed; the journal has everything.
        """
        if self._closed:
            return
        self._closed = True
        try:
            on_loop(self._post, self._commits.flush, inline=not self._threads)
            self._commits.stop()
            on_loop(self._post, self._commits.drain, inline=not self._threads)
            self._folding.close(self._clock)
        finally:
            error = StorageFailed(
                f"{self.name} is closed: try again, the call goes to the next host"
            )
            self._fail(error)
            self._release()

    def abandon(self) -> None:
        """Lets go of everything and writes nothing more, as if the process had died; callbacks of
        commits that are under way are not called. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._commits.abandon()
        self._commits.stop()
        self._fail(StorageFailed(f"{self.name} was abandoned: try again"))
        self._release()

    def _release(self) -> None:
        self._reading.stop()
        self._folding.release()
        self._journal.close()
        self._ownership.release()


def _now(task: Callable[[], None]) -> None:
    task()
