"""When the memtable is folded into the checkpoint, and how.

A fold freezes the active generation on the loop, writes it on the fold thread, and drops it on the
loop. One is under way at a time. It also lets the journal begin a new segment, so that the present
one can be removed by the next fold: the journal on disk is about two folds long.

Before it writes, a fold looks at the epoch. Before it removes segments, it syncs the directory:
DuckDB syncs what is in its files and not that they are there, neither the database nor its log,
which is a new file after each of DuckDB's own checkpoints. A power loss could else take the new
file and the old segments. A fold that fails ends the shard: the journal has
everything, and the next owner begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rayobjects.clock import Clock
from rayobjects.errors import StorageFailed
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.storage.checkpoint import Checkpoint
from rayobjects.storage.files import Files
from rayobjects.storage.indexes import Indexes
from rayobjects.storage.journal import Journal
from rayobjects.storage.memtable import Generation, Memtable
from rayobjects.storage.merge import FoldInput
from rayobjects.storage.ownership import Ownership
from rayobjects.storage.worker import Worker

_log = logging.getLogger("rayobjects.storage")


class Folding:
    """Used on the loop's thread, except for `_write`.

    Attributes:
        checkpoint: None until the first fold of a new shard.
        folded: the last sequence in it.
    """

    def __init__(
        self,
        memtable: Memtable,
        indexes: Indexes,
        journal: Journal,
        ownership: Ownership,
        worker: Worker,
        *,
        files: Files,
        directory: str,
        shard: str,
        post: Callable[[Callable[[], None]], object],
        fail: Callable[[StorageFailed], None],
        records: int | None,
        size: int,
        after_s: float,
    ) -> None:
        self.checkpoint: Checkpoint | None = None
        self.folded = 0
        self._memtable = memtable
        self._indexes = indexes
        self._journal = journal
        self._ownership = ownership
        self._worker = worker
        self._files = files
        self._directory = directory
        self._shard = shard
        self._post = post
        self._fail = fail
        self._records = records
        self._size = size
        self._after_s = after_s
        self._frozen: Generation | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._ended: StorageFailed | None = None
        self._error: StorageFailed | None = None

    def open_checkpoint(self) -> Checkpoint:
        """Opens the checkpoint; makes it if need be."""
        self.checkpoint = Checkpoint.open(self._files, self._directory, self._shard)
        return self.checkpoint

    def consider(self, clock: Clock) -> None:
        """Begins a fold if there is enough to fold, or it has waited long enough."""
        active = self._memtable.active
        if self._frozen is not None or self._ended is not None or self._records is None:
            return
        if (
            active.records >= self._records
            or active.size >= self._size
            or (active.records and clock.monotonic() - active.first_at >= self._after_s)
        ):
            self._begin(clock)

    async def fold(self, clock: Clock) -> None:
        """Folds what is in the memtable now.

        Raises:
            StorageFailed: it failed.
        """
        for _ in range(2):  # what is under way, then the rest
            if self._frozen is None and self._memtable.active.records and self._ended is None:
                self._begin(clock)
            if self._frozen is not None and self._ended is None:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
            if self._ended is not None:
                raise self._ended

    def _begin(self, clock: Clock) -> None:
        frozen = self._frozen = self._memtable.freeze()
        fold = self._fold_of(frozen, clock)
        self._journal.rotate()

        def task() -> None:
            self._error = self._write(fold)
            try:
                self._post(self._end_of_fold)
            except RuntimeError:
                pass  # the loop is closed: `close` or nobody goes on from here

        self._worker.submit(task)

    def _fold_of(self, frozen: Generation, clock: Clock) -> FoldInput:
        sends, sent, sockets = self._indexes.take_changes(self.folded)
        return FoldInput(
            folded=max(frozen.last, self.folded),
            deltas=frozen.deltas,
            owners=frozen.owners,
            sockets=sockets,
            finished=self._indexes.calls.still(frozen.finished),
            finished_since=clock.now() - FINISHED_WINDOW_S,
            sends=sends,
            sent=sent,
            promises=self._indexes.promises.take_changes(),
            forgotten=self._indexes.calls.take_forgotten(self.folded),
        )

    def _write(self, fold: FoldInput) -> StorageFailed | None:
        """On the fold thread."""
        try:
            self._ownership.check()
            checkpoint = self.checkpoint or self.open_checkpoint()
            checkpoint.fold(fold)
            self._files.sync_directory(self._directory)
            self._journal.remove_folded(fold.folded)
        except StorageFailed as error:
            return error
        except Exception as error:  # would otherwise end the thread without a word
            _log.exception("a fold failed")
            return StorageFailed(f"{self._shard}: a fold failed ({error}): report this")
        return None

    def _end_of_fold(self) -> None:
        frozen = self._frozen
        if frozen is None:
            return
        self._frozen = None
        if self._error is not None:
            self._fail(self._error)
            return
        self.folded = max(frozen.last, self.folded)
        self._memtable.drop(frozen)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self, error: StorageFailed) -> None:
        """The shard has failed or is closed."""
        if self._ended is not None:
            return
        self._ended = error
        waiters, self._waiters = self._waiters, []

        def wake() -> None:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

        if waiters:
            try:
                self._post(wake)
            except RuntimeError:
                pass  # the loop is closed

    def close(self, clock: Clock) -> None:
        """Folds everything and removes the journal, unless the shard has failed.

        Raises:
            StorageFailed: the fold failed.
        """
        self._worker.stop()
        if self._ended is not None:
            return
        self._end_of_fold()
        if self._memtable.active.records or self._indexes.acknowledged:
            frozen = self._memtable.freeze()
            error = self._write(self._fold_of(frozen, clock))
            if error is not None:
                raise error
            self.folded = max(frozen.last, self.folded)
            self._memtable.drop(frozen)
        self._journal.close()
        if self.checkpoint is not None:
            self._journal.remove_folded(self.folded)

    def release(self) -> None:
        """Waits for a fold that is under way, and closes the database."""
        self._worker.stop()
        if self.checkpoint is not None:
            self.checkpoint.abandon()
