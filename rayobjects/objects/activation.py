"""An activation: one object while it is live, its turn and its output gate.

Life: LOADING (class, state, on_start) → idle ⇄ running one call → retiring (on_stop) → gone. While
it is not idle, calls wait in its queue, in the order in which they came.

A call runs on an overlay over the state. When it returns, the overlay becomes one journal record
and the next call may run at once, ahead of the disk; its reply is held until the record is synced.
A call that wrote nothing may have seen what is not on disk yet, so its reply waits for the
commits before it; if there are none, the ledger must confirm that the epoch still holds.

When the process dies
    before the commit is given   nothing was written; the caller sends the call again;
    before the sync              the record is there wholly or not at all; no reply has left;
    after the sync, before the   the record has the reply; a repetition of the call id gets it.
    reply arrives
When the journal fails, the host drops every activation (`HostCore.fail`), and whatever they had
run ahead of it is gone with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from rayobjects.errors import (
    Overloaded,
    RayObjectsError,
    StorageFailed,
    to_wire,
)
from rayobjects.ids import ObjectId
from rayobjects.limits import CONCURRENT_CALLS_MAX, WAITING_CALLS_MAX
from rayobjects.messages import ERROR, PICKLE, REDIRECT, SCHEDULED, SOCKET, TURN, Call
from rayobjects.objects import ending, streams
from rayobjects.objects.chains import chain_error
from rayobjects.objects.commit import Commit, Redirected, Respond
from rayobjects.objects.concurrency import (
    Concurrent,
    cut_all,
    cut_off,
    must_take_turn,
    needs_no_turn,
)
from rayobjects.objects.context import CallContext, current_call
from rayobjects.objects.filters import filtered
from rayobjects.objects.hooks import run_hook, start
from rayobjects.objects.invocation import (
    Invocation,
    called,
    invocation_of,
    itself,
)
from rayobjects.objects.model import create
from rayobjects.objects.sockets import Sockets
from rayobjects.objects.state import State
from rayobjects.storage.records import Record

if TYPE_CHECKING:
    from rayobjects.objects.catalog import ObjectClass
    from rayobjects.objects.host_core import HostCore


class Activation:
    """One live object. Made by the host core only."""

    __slots__ = (
        "busy",
        "concurrent",
        "deleted",
        "gone",
        "hook",
        "host",
        "id",
        "instance",
        "object_class",
        "outdated",
        "pending",
        "queue",
        "ready",
        "running",
        "sockets",
        "state",
        "tail",
        "task",
        "used_at",
    )

    instance: Any
    state: State
    sockets: Sockets

    def __init__(self, host: HostCore, id: ObjectId) -> None:
        self.host = host
        self.id = id
        self.object_class: ObjectClass | None = None
        self.busy = True
        self.gone = False
        self.outdated = False
        self.deleted = False
        self.ready = False
        self.running: CallContext | None = None
        self.hook: CallContext | None = None
        self.concurrent: dict[Concurrent, None] | None = None
        self.pending = 0
        self.tail: Commit | None = None
        self.used_at = host.now
        self.queue: deque[tuple[Call, Respond]] | None = None
        self.task: asyncio.Task[None] | None = asyncio.ensure_future(self._start())

    # -- the turn ---------------------------------------------------------------------------

    def submit(self, call: Call, respond: Respond, again: bool = False) -> None:
        """Runs the call now if it is the object's turn to, or if it needs none; else it waits.

        Args:
            again: it has waited before, in an activation that has left.
        """
        if not self.busy:
            self.busy = True
            if self._run(call, respond):
                self._next()
            return
        if self._takes_beside() and needs_no_turn(self, call):
            self._run(call, respond)
            return
        if self.queue is None:
            self.queue = deque()
        closing = call.encoding == SOCKET and call.method == "on_close"  # bounded by its sockets
        if len(self.queue) >= WAITING_CALLS_MAX and not (closing or again):
            error = Overloaded(
                f"{self.id} has {WAITING_CALLS_MAX:,} waiting calls: back off and try again, or "
                "spread the work over more objects"
            )
            respond(ERROR, to_wire(error, with_cause=False), 0)
            return
        if call.chain:
            circle = chain_error(self.id, call)
            if circle is not None:
                respond(ERROR, to_wire(circle, with_cause=False), 0)
                return
        self.queue.append((call, respond))
        if call.chain or call.encoding == TURN:
            self.host.deadlocks.watch(self, call)

    def _next(self) -> None:
        """The turn is free: gives it to the calls that wait."""
        queue = self.queue
        while not self.outdated and queue:
            call, respond = queue.popleft()
            if not self._run(call, respond):
                return
        self.used_at = self.host.now
        if queue is not None and not queue:
            self.queue = None
        self.busy = False
        if (self.outdated or self.host.stopping) and not self.gone:
            self.retire()

    def _run(self, call: Call, respond: Respond) -> bool:
        """Runs one call; returns whether the turn is free again (else a task carries on)."""
        if call.encoding == TURN:
            return not self._grant(respond)
        invocation: Invocation | None = None
        try:
            if call.chain:
                circle = chain_error(self.id, call)
                if circle is not None:
                    raise circle
            assert self.object_class is not None
            invocation = invocation_of(call, self)
            if self.host.filters is not None:
                invocation = filtered(self, call, invocation)
            if invocation.stream:
                invocation, respond = streams.begin(self, call, invocation, respond)
        except RayObjectsError as error:
            body = to_wire(error, with_cause=call.encoding == PICKLE)
            self.reply_unwritten(ERROR, body, respond)
            return True
        if invocation.concurrent and not must_take_turn(self, call):
            self._run_beside(call, invocation, respond)
            return True
        begun = self.host.intents.begun(self.id, call.id) if call.id else None
        context = CallContext(call, self, begun)
        self.state.begin(context)
        if invocation.is_async or self.host.on_lane or not self.state.whole:
            self._begin_slowly(invocation, context, respond)
            return False
        token = current_call.set(context)
        try:
            result = invocation.function(*invocation.arguments, **invocation.keywords)
            if type(result) is CoroutineType:  # a decorator hid that it is async
                self._begin_slowly(Invocation(itself, (result,), {}, True), context, respond)
                return False
        except BaseException as error:
            ending.failed(self, context, respond, error)
        else:
            ending.returned(self, invocation, context, respond, result)
        finally:
            current_call.reset(token)
        return True

    def _begin_slowly(self, invocation: Invocation, context: CallContext, respond: Respond) -> None:
        self.running = context
        self.task = asyncio.ensure_future(self._run_slowly(invocation, context, respond))

    async def _run_slowly(
        self, invocation: Invocation, context: CallContext, respond: Respond
    ) -> None:
        current_call.set(context)
        context.started = True
        try:
            if context.ending is not None:
                raise asyncio.CancelledError
            result = await self.invoke(invocation)
        except BaseException as error:
            ending.failed(self, context, respond, error)
        else:
            ending.returned(self, invocation, context, respond, result)
        self.task = None
        self.turn_ended()

    def turn_ended(self) -> None:
        """Whoever had the turn has ended."""
        self.running = None
        if not self.gone:
            self._next()

    # -- beside the turn ------------------------------------------------------------------------

    def _takes_beside(self) -> bool:
        """Whether calls that need no turn may run: the object is there. One that is to leave does
        not wait for them, but waits for the call that has the turn, and they need not."""
        return self.ready and (not self.outdated or self.running is not None)

    def _run_beside(self, call: Call, invocation: Invocation, respond: Respond) -> None:
        if self.concurrent is None:
            self.concurrent = {}
        if len(self.concurrent) >= CONCURRENT_CALLS_MAX:
            error = Overloaded(
                f"{self.id} runs {CONCURRENT_CALLS_MAX:,} concurrent calls: back off"
            )
            respond(ERROR, to_wire(error, with_cause=False), 0)
            return
        concurrent = Concurrent(self, call, CallContext(call, self), respond)
        self.concurrent[concurrent] = None
        concurrent.start(invocation)

    def _run_all_beside(self) -> None:
        """Those that came while the object was loading wait for no turn now that it is there."""
        if self.queue and self._takes_beside():
            came, self.queue = self.queue, deque()
            beside: list[tuple[Call, Respond]] = []
            for entry in came:
                (beside if needs_no_turn(self, entry[0]) else self.queue).append(entry)
            for call, respond in beside:
                self._run(call, respond)

    def _grant(self, waiter: Any) -> bool:
        """Gives the turn to a concurrent call; returns whether that still wants it."""
        if not waiter.grant():
            return False
        self.running = waiter.concurrent.context
        return True

    def concurrent_ended(
        self,
        concurrent: Concurrent,
        invocation: Invocation,
        result: Any,
        error: BaseException | None,
    ) -> None:
        """A concurrent call has ended."""
        assert self.concurrent is not None
        self.concurrent.pop(concurrent, None)
        if not self.concurrent:
            self.concurrent = None
        self.used_at = self.host.now
        ending.concurrent_ended(self, concurrent, invocation, result, error)

    def _cut_concurrent(self) -> None:
        """The object leaves: its concurrent calls begin again elsewhere, or are cut off."""
        again = cut_all(self)
        if again and not self.host.stopping:
            self.queue = deque([*(self.queue or ()), *again])
            return
        for call, respond in again:  # others are sent again, to the host that comes
            if call.chain:  # whoever waits for it has to leave as well
                error = cut_off(self, call, committed=False)
                respond(ERROR, to_wire(error, with_cause=False), 0)

    async def invoke(self, invocation: Invocation) -> Any:
        """Runs the method here, or for an object that reads by key on the host's lane."""
        if invocation.blocking:
            return await self.host.threads.run(invocation)
        if self.state.whole and not self.host.on_lane:
            return await called(invocation)
        return await self.host.lane.run(called(invocation))

    # -- the way to the disk --------------------------------------------------------------------

    def commit_end(self, record: Record, context: CallContext, respond: Respond) -> None:
        """Commits the record with which a call ends."""
        call, begun = context.call, context.begun
        record.delete = record.delete or self.deleted  # nothing that ends late brings it back
        record.held = call.held
        record.arguments_hash = call.arguments_hash
        if begun is not None and begun.intent is not None:
            ending = begun.failed(begun.diverged) if begun.diverged else begun.taken_back()
            record.promises = [*record.promises, *ending]
        # Whatever a call that was stopped had called keeps its replies: it may be run again.
        ends = context if begun is None or not begun.diverged else None
        self.commit(record, ends, respond, record.status, record.reply)

    def reply_unwritten(self, status: int, body: bytes, respond: Respond) -> None:
        """Replies to a call that wrote nothing, when all that it may have seen is on disk."""

        def follow(error: StorageFailed | None) -> None:
            if error is None:
                respond(status, body, 0)
            else:
                respond(ERROR, to_wire(error, with_cause=False), 0)

        self.when_shown(follow)

    def when_shown(self, follow: Callable[[StorageFailed | None], None]) -> None:
        """Runs `follow` once all that was committed is on disk and the epoch still holds; with an
        error where that is not so."""
        if self.tail is None:
            self.host.confirm(follow)
        else:
            self.tail.followed_by(follow)

    def commit(
        self,
        record: Record,
        context: CallContext | None,
        respond: Respond,
        status: int,
        body: bytes,
    ) -> None:
        assert self.object_class is not None
        record.version = self.object_class.info.version
        # Before the ledger has it: one without threads may be done with it on return.
        before, self.tail = self.tail, Commit(self, record, context, respond, status, body)
        self.pending += 1
        try:
            self.host.ledger.commit(record, self.tail.done)
        except BaseException:
            self.tail = before
            self.pending -= 1
            raise

    def after_sync(
        self, send: Callable[[], None], dropped: Callable[[], None] = lambda: None
    ) -> None:
        """Runs `send` once all that was committed is on disk; `dropped` if the journal fails."""
        if self.gone or self.host.failed is not None:
            dropped()
        elif self.tail is None:
            send()
        else:
            self.tail.followed_by(lambda error: send() if error is None else dropped())

    def settled(self) -> None:
        """Everything committed is on disk."""
        if self.state.promised.settled:
            self.state.promised.settled.clear()
        if not self.busy and not self.concurrent:
            self.state.trim()
            if self.state.grown:
                self.outdated = True  # too large by now to be held whole
                self.retire()

    # -- life ---------------------------------------------------------------------------------

    async def _start(self) -> None:
        try:
            self.object_class = await self.host.class_for(self.id)
            loaded = await self.host.ledger.load(self.id)
            if self.gone:
                return
            self.state = State(self.id, self.host.ledger, loaded, self.object_class.fields)
            self.sockets = Sockets(self.state, loaded.sockets)
            self.instance = create(self.object_class.cls, self.shown, self.state, self.sockets)
            await start(self, loaded)
            self.ready = True
        except Redirected:
            self._refuse(REDIRECT, b"")
        except RayObjectsError as error:
            self._refuse(ERROR, to_wire(error, with_cause=True))
        except BaseException as error:
            if not self.gone:
                wrapped = self.host.raised(f"{self.shown}.__init__", error)
                self._refuse(ERROR, to_wire(wrapped, with_cause=True))
        else:
            self.task = None
            if not self.gone:
                self._next()
                self._run_all_beside()

    def _refuse(self, status: int, body: bytes) -> None:
        """The object cannot be activated: answers all that wait."""
        if self.gone:
            return
        self.gone = True
        self.host.dropped(self)
        waiting, self.queue = self.queue or (), None
        for _, respond in waiting:
            if status == REDIRECT:
                respond(REDIRECT, b"", 0)
            else:  # a hook may have said what it saw
                self.reply_unwritten(status, body, respond)

    def retire(self) -> None:
        """Takes the idle object out of memory; calls that come meanwhile go to its next
        activation. Does nothing while a call runs: `_next` asks again."""
        self.outdated = True
        if self.busy or self.gone:
            return
        self.busy = True
        self.after_sync(lambda: self._leave())

    def _leave(self) -> None:
        if self.gone:
            return
        self._cut_concurrent()
        stops = self.object_class is not None and self.object_class.hook("on_stop") is not None
        if stops and not self.deleted and self.state.aborted is None:  # it must not come back
            self.task = asyncio.ensure_future(self._stop())
        else:
            self._left()

    async def _stop(self) -> None:
        try:
            await run_hook(self, "on_stop")
        except BaseException as error:
            if not self.gone:
                self.host.raised(f"{self.shown}.on_stop", error)
        self.after_sync(self._left)

    def _left(self) -> None:
        if self.gone:
            return
        self.gone = True
        self.task = None
        self.host.dropped(self)
        waiting, self.queue = self.queue or (), None
        for call, respond in waiting:
            if call.encoding == TURN or (self.deleted and call.encoding == SCHEDULED):
                respond(REDIRECT, b"", 0)  # its call was cut; or its schedule is deleted, too
            else:
                self.host.resubmit(call, respond, True)

    def abandon(self) -> None:
        """The journal failed: forgets everything; whoever waits has been answered or asks again."""
        self.gone = True
        if self.task is not None:
            self.task.cancel()
            self.task = None
        running, self.concurrent = self.concurrent or {}, None
        for each in running:
            each.cut()
        queue, self.queue = self.queue, None
        for _, respond in queue or ():
            error = self.host.ledger.failed
            assert error is not None
            respond(ERROR, to_wire(error, with_cause=False), 0)

    @property
    def occupied(self) -> bool:
        """Whether any call runs."""
        return self.busy or bool(self.concurrent)

    # -- words ----------------------------------------------------------------------------------

    @property
    def shown(self) -> ObjectId:
        """The id as users know it."""
        return self.object_class.shown(self.id) if self.object_class is not None else self.id
