"""The way of a record from the loop to the disk and back.

    add      on the loop: gives the sequence, encodes into the batch of this tick
    flush    once a tick: hands the batch over
    pump     on the commit thread: takes all that waits as one group, writes it, syncs it, looks at
             the epoch
    drain    on the loop again: applies the group, then runs its callbacks in order

Everything takes this way, confirmations and refusals too, so callbacks have one order. Only
confirmations that find nothing under way are answered at once, by one look at the epoch.

A record costs no lock and wakes no thread; a tick does. The first failure is final: whatever comes
after it, or was under way, fails with the same error, in order. Records of a failed group may be
on the disk or not; the next owner decides that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import msgspec

from rayobjects.errors import InvalidCall, Overloaded, StorageFailed
from rayobjects.limits import (
    GROUP_BYTES_MAX,
    GROUP_RECORDS_MAX,
    RECORD_BYTES_MAX,
    UNSYNCED_BYTES_MAX,
)
from rayobjects.storage.journal import Journal
from rayobjects.storage.ownership import Ownership
from rayobjects.storage.records import Record
from rayobjects.storage.worker import Worker

Done = Callable[[StorageFailed | None, int], None]
"""`objects.ledger.Done`."""

_encode_into = msgspec.msgpack.Encoder().encode_into
_log = logging.getLogger("rayobjects.storage")


class Batch:
    """What one tick brought; at most one group's worth.

    Attributes:
        records, dones: in the same order; None for what writes nothing.
        body: the records, encoded one after the other.
        count, first: how many they are, and the first one's sequence.
        handed_over: whether the commit thread has, or had it.
    """

    __slots__ = ("body", "count", "dones", "first", "handed_over", "records")

    def __init__(self) -> None:
        self.records: list[Record | None] = []
        self.dones: list[Done] = []
        self.body = bytearray()
        self.count = 0
        self.first = 0
        self.handed_over = False


class Commits:
    """Used on the loop's thread, except for `_pump`.

    Attributes:
        last: the last sequence that was given out.
        failed: the error that ended it.
    """

    def __init__(
        self,
        journal: Journal,
        ownership: Ownership,
        worker: Worker,
        *,
        last: int,
        soon: Callable[[Callable[[], None]], object],
        post: Callable[[Callable[[], None]], object],
        apply: Callable[[list[Record | None], int], None],
        fail: Callable[[StorageFailed], None],
    ) -> None:
        self.last = last
        self.failed: StorageFailed | None = None
        self._journal = journal
        self._ownership = ownership
        self._worker = worker
        self._epoch = ownership.epoch
        self._soon = soon
        self._post = post
        self._apply = apply
        self._fail = fail
        self._batch = Batch()
        self._scheduled = False
        self._under_way = 0
        self._unsynced_bytes = 0
        self._waiting: deque[Batch] = deque()
        self._completed: deque[tuple[list[Batch], StorageFailed | None]] = deque()
        self._abandoned = False

    def check_room(self) -> None:
        """Raises Overloaded if too much waits for the disk. A failed journal says so to each record
        that it is given."""
        if self.failed is None and (
            self._unsynced_bytes + len(self._batch.body) > UNSYNCED_BYTES_MAX
        ):
            raise Overloaded(
                f"more than {UNSYNCED_BYTES_MAX:,} bytes wait for the disk: back off, then try "
                "again"
            )

    def add(self, record: Record, done: Done) -> None:
        """Takes a record, whether there is room or not (`check_room`).

        Raises:
            InvalidCall: the record is larger than a record may be.
        """
        if self.failed is not None:
            self.add_nothing(done)
            return
        batch = self._batch
        body = batch.body
        before = len(body)
        sequence = self.last + 1
        record.sequence = sequence
        record.epoch = self._epoch
        try:
            _encode_into(record, body, -1)
        except BaseException:
            del body[before:]
            raise
        size = len(body)
        if size - before > RECORD_BYTES_MAX:
            del body[before:]
            raise InvalidCall(
                f"what a call writes, sends and returns has at most {RECORD_BYTES_MAX:,} bytes "
                f"together, here it has {size - before:,}: split it over several calls"
            )
        self.last = sequence
        if not batch.count:
            batch.first = sequence
        batch.count += 1
        batch.records.append(record)
        batch.dones.append(done)
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._tick)
        if size >= GROUP_BYTES_MAX or batch.count >= GROUP_RECORDS_MAX:
            self.flush()

    def add_nothing(self, done: Done) -> None:
        """`done(error, 0)` comes after the callbacks of what was added before, and after a look
        at the epoch."""
        self._batch.records.append(None)
        self._batch.dones.append(done)
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hands over what was added."""
        batch = self._batch
        if not batch.dones or self._abandoned:
            return
        self._batch = Batch()
        if not batch.count and not self._under_way:
            self._completed.append(([batch], self._look()))
            self.drain()
            return
        batch.handed_over = True
        self._under_way += 1
        self._unsynced_bytes += len(batch.body)
        self._waiting.append(batch)
        self._worker.submit(self._pump)

    def _look(self) -> StorageFailed | None:
        if self.failed is None:
            try:
                self._ownership.check()
            except StorageFailed as error:
                return error
        return self.failed

    def _pump(self) -> None:
        """On the commit thread: writes all that waits."""
        while self._waiting and not self._abandoned:
            group = [self._waiting.popleft()]
            count, size = group[0].count, len(group[0].body)
            while self._waiting:
                following = self._waiting[0]
                count += following.count
                size += len(following.body)
                if count > GROUP_RECORDS_MAX or size > GROUP_BYTES_MAX:
                    break
                group.append(self._waiting.popleft())
            error = self._write(group)
            self._completed.append((group, error))
            try:
                self._post(self.drain)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

    def _write(self, group: list[Batch]) -> StorageFailed | None:
        if self.failed is not None:
            return self.failed
        written = [batch for batch in group if batch.count]
        try:
            if written:
                self._journal.write_group(
                    written[0].first,
                    sum(batch.count for batch in written),
                    [batch.body for batch in written],
                )
            self._ownership.check()
        except StorageFailed as error:
            self.failed = error
        except Exception as error:  # would otherwise end the thread, and nobody would be answered
            _log.exception("the journal's writer failed")
            self.failed = StorageFailed(f"the journal's writer failed ({error}): report this")
        return self.failed

    def drain(self) -> None:
        """Applies the groups that are done, and answers."""
        while self._completed and not self._abandoned:
            group, error = self._completed.popleft()
            for batch in group:
                if batch.handed_over:
                    self._under_way -= 1
                    self._unsynced_bytes -= len(batch.body)
            if error is not None:
                self.failed = error
                self._fail(error)
            else:
                for batch in group:
                    if batch.count:
                        self._apply(batch.records, len(batch.body))
            for batch in group:
                for record, done in zip(batch.records, batch.dones, strict=True):
                    try:
                        done(error, record.sequence if record is not None and not error else 0)
                    except Exception:
                        _log.exception("a commit's callback failed")

    def fail(self, error: StorageFailed) -> None:
        """Ends it from outside: what is under way and what comes fails with this error."""
        if self.failed is None:
            self.failed = error

    def stop(self) -> None:
        """Waits for what was handed over; `drain` then brings its end."""
        self._worker.stop()

    def abandon(self) -> None:
        """Forgets everything, answers nobody."""
        self._abandoned = True
        self._waiting.clear()
        self._completed.clear()
        self._batch = Batch()

    @property
    def waiting_bytes(self) -> int:
        return self._unsynced_bytes + len(self._batch.body)
