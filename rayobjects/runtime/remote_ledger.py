"""The ledger of a dedicated object: its shard's host, behind Ray.

The object's actor claims an owner epoch when it opens, and every commit and confirmation names it;
the shard refuses those of an older one. Commits that are made while a request is under way go
together in the next, so there is one request at a time and their order is theirs.

If the shard's host dies with a commit under way, the outcome is unknown. Then this ledger has
failed (`details["restart"]`): the actor drops its activation, claims a new epoch once the shard is
back, and channels send again what was not answered; what had been committed is among the finished
calls that come with the claim.

A shard without room refuses a record (`Overloaded`) when the method has long returned, and others
have run on top of it. Those behind it are refused with it, those before it may be on disk. So the
ledger has failed in the same way: what ran on top is gone with the activation, what was written is
answered from the finished calls. But what was refused must not be sent for ever: its calls are
remembered (`Refusals`), come again, run again from the state that is on disk, and now `commit`
itself raises the shard's Overloaded. That is a refusal as in shared hosting: the call is rolled
back, and its caller gets the error, once, with nothing applied.

When the shard's host dies
    before it has refused             the outcome is unknown, and the calls come again, as ever;
    before the refusal has arrived    the same: the host that comes refuses them, or has room;
    after that                        nothing changes: the actor's next claim waits for it.
When the actor dies
    before the refusal has arrived    the next actor claims, which ends the epoch of what is still
                                      on its way; the calls come there, and are refused or not;
    before the calls have come again  the same: what was remembered is gone with the process;
    after it has refused them         the same if the reply was lost: nothing of them is on disk.
                                      If it was not, the caller has its Overloaded.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from rayobjects.clock import Clock
from rayobjects.errors import (
    InvalidCall,
    Overloaded,
    StorageFailed,
    Unavailable,
    from_wire,
)
from rayobjects.ids import ObjectId
from rayobjects.limits import RECORD_BYTES_MAX, UNSYNCED_BYTES_MAX
from rayobjects.objects.ledger import Done
from rayobjects.runtime import placement
from rayobjects.runtime.background import spawn
from rayobjects.runtime.configuration import Configuration
from rayobjects.runtime.link import LEDGER, Link, LocalLink, RayLink
from rayobjects.storage.finished import FinishedCalls
from rayobjects.storage.promises import Promises
from rayobjects.storage.records import (
    INTENT,
    STEP,
    Finished,
    Loaded,
    PendingSends,
    Promise,
    Record,
)

ANSWER_WITHIN_S = 15.0
"""The same as a channel's: no answer for so long means that the shard's host is lost."""

RETRY_EVERY_S = 0.1

REFUSED_FOR_S = 1.0
"""How long a call that was refused is refused again, from its first attempt on: a method that tries
to commit once more at once does not cost the activation."""

REFUSALS_MAX = 10_000
"""So many are remembered, for calls that may not come again: more than may wait (1,000) or run
beside the others (1,000) in an object, several times over."""


class LedgerRequest(msgspec.Struct, array_like=True):
    """What a dedicated object's actor asks of its shard's host.

    Attributes:
        node: with the first claim of a process, its Ray node.
    """

    operation: str
    class_name: str
    name: str
    owner_epoch: int = 0
    records: list[Record] = []
    confirm: bool = False
    forget: list[str] = []
    sent: list[tuple[int, str]] = []
    key: str = ""
    prefix: str = ""
    start: str | None = None
    end: str | None = None
    limit: int = 0
    reverse: bool = False
    node: str = ""


class LedgerAnswer(msgspec.Struct, array_like=True):
    """The answer; `error` is an `errors.ErrorInfo`, and `link`, with that to a claim, the host's
    Unix socket."""

    error: bytes = b""
    sequences: list[int] = []
    owner_epoch: int = 0
    loaded: Loaded | None = None
    finished: list[Finished] = []
    pending: list[PendingSends] = []
    sockets: list[tuple[str, str]] = []
    entries: list[tuple[str, int, bytes]] = []
    count: int = 0
    promises: list[Promise] = []
    link: str = ""


decode_request = msgspec.msgpack.Decoder(LedgerRequest).decode
_decode_answer = msgspec.msgpack.Decoder(LedgerAnswer).decode
_encode = msgspec.msgpack.Encoder().encode


class Refusals:
    """What the shard had no room for: outlives the ledger that was refused, in the same process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # By whose record it was (`_whose`): the error, and until when it is refused once more,
        # None as long as it has not come again.
        self._found: dict[str, tuple[Overloaded, float | None]] = {}

    def remember(self, records: list[Record], error: Overloaded) -> None:
        """The shard has refused these, or some of them and those have been written."""
        for record in records:
            whose = _whose(record)
            self._found.pop(whose, None)
            self._found[whose] = error, None
        while len(self._found) > REFUSALS_MAX:
            del self._found[next(iter(self._found))]

    def written(self, call_id: str) -> None:
        """The call turns out to be finished."""
        self._found.pop(call_id, None)

    def check(self, record: Record) -> None:
        """Raises Overloaded if the shard has refused the same before."""
        if record.ends_begun:  # others have been called by it: such a record always has room
            return
        whose = _whose(record)
        found = self._found.get(whose)
        if found is None:
            return
        error, until = found
        now = self._clock.monotonic()
        if until is None:
            self._found[whose] = error, now + REFUSED_FOR_S
        elif now > until:
            del self._found[whose]
            return
        raise Overloaded(error.message, details=error.details)


def _whose(record: Record) -> str:
    """The id of the call that writes a record, the same when it runs again. "" for records of no
    call: what hooks write and hosts note, which is tried again, too."""
    if record.call_id:
        return record.call_id
    first = record.promises[0] if record.promises else None
    return first.key if first is not None and first.kind in (INTENT, STEP) else ""


class RemoteLedger:
    """Implements `objects.ledger.Ledger` for one object.

    Args:
        refusals: of this process.
    """

    def __init__(
        self, id: ObjectId, configuration: Configuration, clock: Clock, refusals: Refusals
    ) -> None:
        self.failed: StorageFailed | None = None
        self._refusals = refusals
        self._id = id
        self._configuration = configuration
        self._clock = clock
        self._shard = placement.shard_host(placement.shard_of(id, configuration.shards))
        self._handle: Any = None
        self._link: Link = RayLink(None)
        self._owner_epoch = 0
        self._claimed: LedgerAnswer | None = None
        self._loaded: Loaded | None = None
        self._finished = FinishedCalls()
        self._promises = Promises()
        self._key = (id[0], id[1])
        self._queue: list[tuple[Record | None, Done]] = []
        self._queue_bytes = 0
        self._under_way = False
        self._forget: list[str] = []
        self._sent: list[tuple[int, str]] = []

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._under_way

    async def open(self, last: int = 0) -> int:
        """Claims the object, waiting for its shard's host as long as a channel would; returns the
        owner epoch.

        Args:
            last: the owner epoch that this process had before, 0 if none.

        Raises:
            StorageFailed: the shard cannot be opened, or was not found in time; with
                `details["lost"]`, another process has claimed the object since `last`.
        """
        deadline = self._clock.monotonic() + self._configuration.unavailable_after_s
        node = "" if last else ray.get_runtime_context().get_node_id()
        while True:
            try:
                self._handle = await placement.locate(self._shard, None)
                self._link.close()
                self._link = RayLink(self._handle)
                answer = await self._ask(LedgerRequest("claim", *self._id, last, node=node))
                break
            except Unavailable as error:  # the cluster's objects have been stopped
                raise StorageFailed(error.message) from error
            except (TimeoutError, RayError, OSError, Overloaded) as error:
                # Overloaded: the shard has no room for the claim. That cannot be the answer to the
                # calls that wait, for some may come again and be on disk.
                if self._clock.monotonic() > deadline:
                    raise StorageFailed(
                        f"{self._id} could not reach its shard's host {self._shard} "
                        f"({type(error).__name__}): try again"
                    ) from error
            await asyncio.sleep(RETRY_EVERY_S)
        if answer.link:
            self._link = await LocalLink.connect(answer.link) or self._link
        self._owner_epoch = answer.owner_epoch
        self._claimed, self._loaded = answer, answer.loaded
        self._finished = FinishedCalls()
        for each in answer.finished:
            self._finished.add(each)
            self._refusals.written(each.call_id)
        self._promises = Promises()
        for promise in answer.promises:
            self._promises.add(self._key, promise)
        return self._owner_epoch

    async def load(self, id: ObjectId) -> Loaded:
        loaded, self._loaded = self._loaded, None
        if loaded is None:  # a later activation in the same process
            loaded = (await self._retried(LedgerRequest("load", *self._id))).loaded
        assert loaded is not None
        return loaded

    def commit(self, record: Record, done: Done) -> None:
        self._refusals.check(record)
        size = len(record.reply) + sum(len(data) for _, _, data in record.writes)
        size += sum(len(send.data) for send in record.sends)
        size += sum(len(promise.key) + len(promise.body) + 32 for promise in record.promises)
        if size > RECORD_BYTES_MAX:  # the shard would refuse it, when others have run on top of it
            raise InvalidCall(
                f"what a call writes, sends and returns has at most {RECORD_BYTES_MAX:,} bytes "
                f"together, here it has {size:,}: split it over several calls"
            )
        if self._queue_bytes + size > UNSYNCED_BYTES_MAX and self._queue:
            raise Overloaded("too much waits for the disk: back off")
        self._queue_bytes += size
        record.owner_epoch = self._owner_epoch
        self._ask_for(record, done)

    def confirm(self, done: Done) -> None:
        self._ask_for(None, done)

    def _ask_for(self, record: Record | None, done: Done) -> None:
        if self.failed is not None:
            error = self.failed
            asyncio.get_running_loop().call_soon(lambda: done(error, 0))
            return
        self._queue.append((record, done))
        if not self._under_way:
            self._under_way = True
            spawn(self._send_all())

    async def _send_all(self) -> None:
        while self._queue:
            queue, self._queue, self._queue_bytes = self._queue, [], 0
            request = LedgerRequest("commit", *self._id, self._owner_epoch)
            request.records = [record for record, _ in queue if record is not None]
            request.confirm = any(record is None for record, _ in queue)
            request.forget, self._forget = self._forget, []
            request.sent, self._sent = self._sent, []
            try:
                answer = await self._ask(request)
            except StorageFailed as error:
                self._fail(queue, error)
                return
            except Overloaded as error:  # some records may be written, some not
                # Those that have not left ran on top of them: they would be refused next.
                on_top = [record for record, _ in self._queue if record is not None]
                self._refusals.remember(request.records + on_top, error)
                self._fail(
                    queue,
                    StorageFailed(
                        f"{self._id} begins anew, because its shard has refused what it wrote: "
                        f"{error.message}",
                        details={"restart": True},
                    ),
                )
                return
            except Exception as error:
                self._fail(
                    queue,
                    StorageFailed(
                        f"{self._id} lost its shard's host {self._shard} ({type(error).__name__})",
                        details={"restart": True},
                    ),
                )
                return
            sequences = iter(answer.sequences)
            for record, done in queue:
                sequence = next(sequences) if record is not None else 0
                if record is not None and record.call_id:
                    finished = Finished(
                        *self._id,
                        record.call_id,
                        record.status,
                        record.reply,
                        record.finished_at,
                        sequence,
                        record.held,
                        record.arguments_hash,
                    )
                    self._finished.add(finished)
                if record is not None and record.delete:
                    self._promises.drop_schedules(self._key)
                if record is not None and record.promises:
                    self._promises.apply(self._key, record.promises)
                done(None, sequence)
        self._under_way = False

    def _fail(self, queue: list[tuple[Record | None, Done]], error: StorageFailed) -> None:
        self.failed = error
        queue, self._queue = queue + self._queue, []
        for _, done in queue:
            done(error, 0)

    async def _ask(self, request: LedgerRequest) -> LedgerAnswer:
        return _checked(await self._link.request(LEDGER, _encode(request), ANSWER_WITHIN_S))

    async def _retried(self, request: LedgerRequest) -> LedgerAnswer:
        """Asks something that changes nothing, again if the shard's host is restarting."""
        deadline = self._clock.monotonic() + self._configuration.unavailable_after_s
        while True:
            try:
                return await self._ask(request)
            except (TimeoutError, RayError, OSError) as error:
                self._link = RayLink(self._handle)  # which finds the host that comes
                if self._clock.monotonic() > deadline:
                    raise StorageFailed(f"{self._shard} could not be reached: try again") from error
            await asyncio.sleep(RETRY_EVERY_S)

    # -- large objects: called on the host's lane, where blocking holds up nobody ---------------

    def _ask_blocking(self, request: LedgerRequest) -> LedgerAnswer:
        deadline = self._clock.monotonic() + self._configuration.unavailable_after_s
        while True:
            try:
                reference = self._handle.ledger.remote(_encode(request))
                return _checked(ray.get(reference, timeout=ANSWER_WITHIN_S))
            except (RayError, OSError) as error:
                if self._clock.monotonic() > deadline:
                    raise StorageFailed(f"{self._shard} could not be reached: try again") from error

    def read(self, id: ObjectId, key: str) -> tuple[int, bytes] | None:
        answer = self._ask_blocking(LedgerRequest("read", *self._id, key=key))
        return answer.entries[0][1:] if answer.entries else None

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
        request = LedgerRequest(
            "scan",
            *self._id,
            prefix=prefix,
            start=start,
            end=end,
            limit=limit,
            reverse=reverse,
        )
        return self._ask_blocking(request).entries

    def count(self, id: ObjectId) -> int:
        return self._ask_blocking(LedgerRequest("count", *self._id)).count

    # -- finished calls and socket messages -----------------------------------------------------

    def finished(self, id: ObjectId, call_id: str) -> Finished | None:
        return self._finished.get(self._id, call_id)

    def forget(self, call_id: str, id: ObjectId | None = None) -> None:
        if self._finished.forget(call_id):
            self._forget.append(call_id)

    def expire(self) -> None:
        """Forgets finished calls whose window is over; the shard does so by itself."""
        self._finished.take_forgotten(0)  # what a fold would tell the checkpoint: there is none
        self._promises.take_changes()
        self._finished.expire(self._clock.now())

    def sent(self, id: ObjectId, sequence: int, gateway: str) -> None:
        self._sent.append((sequence, gateway))

    def pending(self) -> list[PendingSends]:
        return self._claimed.pending if self._claimed is not None else []

    def promises(self) -> list[tuple[ObjectId, Promise]]:
        return [(self._id, promise) for promise in self._promises.of(self._key)]

    def promises_of(self, id: ObjectId) -> list[Promise]:
        return self._promises.of(self._key)

    def promise(self, id: ObjectId, kind: int, key: str) -> Promise | None:
        return self._promises.get(self._key, kind, key)

    def sockets(self) -> list[tuple[ObjectId, str, str]]:
        found = self._claimed.sockets if self._claimed is not None else []
        return [(self._id, socket, gateway) for socket, gateway in found]


def _checked(body: bytes) -> LedgerAnswer:
    answer = _decode_answer(body)
    if answer.error:
        raise from_wire(answer.error)
    return answer
