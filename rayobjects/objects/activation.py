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

from rayobjects import messages
from rayobjects.errors import (
    InvalidCall,
    MethodError,
    Overloaded,
    RayObjectsError,
    StorageFailed,
    to_wire,
)
from rayobjects.ids import ObjectId
from rayobjects.limits import CALL_BYTES_MAX, CHAIN_WAIT_S, WAITING_CALLS_MAX
from rayobjects.messages import ERROR, OK, PICKLE, REDIRECT, SCHEDULED, SOCKET, Call
from rayobjects.objects import scheduling
from rayobjects.objects.chains import chain_error, waited_too_long
from rayobjects.objects.commit import Aborted, Commit, Redirected, Respond
from rayobjects.objects.context import CallContext, current_call
from rayobjects.objects.filters import filtered
from rayobjects.objects.hooks import run_hook, start
from rayobjects.objects.invocation import (
    Invocation,
    called,
    encode_result,
    invocation_of,
    is_binding_error,
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
        "_queue",
        "_task",
        "busy",
        "deleted",
        "gone",
        "host",
        "id",
        "instance",
        "object_class",
        "outdated",
        "pending",
        "sockets",
        "state",
        "tail",
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
        self.pending = 0
        self.tail: Commit | None = None
        self.used_at = host.now
        self._queue: deque[tuple[Call, Respond]] | None = None
        self._task: asyncio.Task[None] | None = asyncio.ensure_future(self._start())

    # -- the turn ---------------------------------------------------------------------------

    def submit(self, call: Call, respond: Respond) -> None:
        """Runs the call now if it is the object's turn to, else lets it wait."""
        if not self.busy:
            self.busy = True
            if self._run(call, respond):
                self._next()
            return
        if self._queue is None:
            self._queue = deque()
        closing = call.encoding == SOCKET and call.method == "on_close"  # bounded by its sockets
        if len(self._queue) >= WAITING_CALLS_MAX and not closing:
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
        self._queue.append((call, respond))
        if call.chain:
            asyncio.get_running_loop().call_later(CHAIN_WAIT_S, self._give_up, call)

    def _give_up(self, call: Call) -> None:
        """A call from another object has waited for very long: probably for itself."""
        for entry in self._queue or ():
            if entry[0] is call:
                assert self._queue is not None
                self._queue.remove(entry)
                error = waited_too_long(self.id, call)
                entry[1](ERROR, to_wire(error, with_cause=False), 0)
                return

    def _next(self) -> None:
        """The turn is free: gives it to the calls that wait."""
        queue = self._queue
        while not self.outdated and queue:
            call, respond = queue.popleft()
            if not self._run(call, respond):
                return
        self.used_at = self.host.now
        if queue is not None and not queue:
            self._queue = None
        if self.outdated and not self.gone:
            self.busy = False
            self.retire()
        else:
            self.busy = False

    def _run(self, call: Call, respond: Respond) -> bool:
        """Runs one call; returns whether it has ended (else a task carries on)."""
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
        except RayObjectsError as error:
            body = to_wire(error, with_cause=call.encoding == PICKLE)
            self._reply_unwritten(ERROR, body, respond)
            return True
        begun = self.host.intents.begun(self.id, call.id) if call.id else None
        context = CallContext(call, self, begun)
        self.state.begin()
        if invocation.is_async or self.host.on_lane or not self.state.whole:
            self._task = asyncio.ensure_future(self._run_slowly(call, invocation, context, respond))
            return False
        token = current_call.set(context)
        try:
            result = invocation.function(*invocation.arguments, **invocation.keywords)
            if type(result) is CoroutineType:  # a decorator hid that it is async
                self._task = asyncio.ensure_future(
                    self._run_slowly(
                        call, Invocation(itself, (result,), {}, True), context, respond
                    )
                )
                return False
        except BaseException as error:
            self._failed(call, invocation, context, respond, error)
        else:
            self._returned(call, invocation, context, respond, result)
        finally:
            current_call.reset(token)
        return True

    async def _run_slowly(
        self, call: Call, invocation: Invocation, context: CallContext, respond: Respond
    ) -> None:
        current_call.set(context)
        try:
            result = await self.invoke(invocation)
        except BaseException as error:
            self._failed(call, invocation, context, respond, error)
        else:
            self._returned(call, invocation, context, respond, result)
        self._task = None
        if not self.gone:
            self._next()

    async def invoke(self, invocation: Invocation) -> Any:
        """Runs the method here, or for an object that reads by key on the host's lane."""
        if self.state.whole and not self.host.on_lane:
            return await called(invocation)
        return await asyncio.wrap_future(self.host.lane.submit(called(invocation)))

    # -- the end of a call --------------------------------------------------------------------

    def _returned(
        self,
        call: Call,
        invocation: Invocation,
        context: CallContext,
        respond: Respond,
        result: Any,
    ) -> None:
        if self.gone:
            return  # the journal failed meanwhile; the call was answered
        status = OK
        try:
            if self.state.aborted is not None:
                raise Aborted(self.state.aborted)  # whoever has caught it
            if context.begun is not None:
                context.begun.check_end()
            if call.encoding == SCHEDULED:
                scheduling.ended(self, call)
            changes = self.state.changes()
            status, body = encode_result(call, invocation, result)
            if len(body) > CALL_BYTES_MAX:
                raise InvalidCall(
                    f"{self._target(call)} returned {len(body):,} bytes; a reply has at most "
                    f"{CALL_BYTES_MAX:,}: return less, or page by page"
                )
            if changes:
                if changes.sends:
                    self.host.gateways.check_outboxes(changes.sends)
                if changes.promises:
                    self.host.check_told(self.id, changes.promises)
                record = Record(
                    self.id.class_name,
                    self.id.name,
                    call.id,
                    status,
                    body,
                    self.host.now,
                    changes.writes,
                    changes.clear,
                    changes.delete,
                    changes.sockets,
                    changes.sends,
                    promises=changes.promises,
                )
                self.commit_end(record, context, respond)
                self.state.commit()
                return
        except BaseException as error:  # also a __reduce__ or model_dump of the user's that raises
            self._failed(call, invocation, context, respond, error)
            return
        self.state.commit()
        self._reply(status, body, context, respond)

    def _failed(
        self,
        call: Call,
        invocation: Invocation,
        context: CallContext,
        respond: Respond,
        error: BaseException,
    ) -> None:
        if self.gone:
            return
        self.state.rollback()
        wrapped: RayObjectsError
        if context.begun is not None:
            try:
                context.begun.check_end()
            except InvalidCall as stopped:
                error = stopped
        if self.state.aborted is not None:
            self.outdated = True
            text = f"{self._target(call)} was ended by abort: {self.state.aborted}"
            wrapped = MethodError(text, cause_type="Aborted")
        elif is_binding_error(error):
            wrapped = InvalidCall(f"{self._target(call)}: {error}")
        elif isinstance(error, RayObjectsError):
            wrapped = error
        else:
            wrapped = self.host.raised(self._target(call), error)
        if call.encoding == SOCKET and call.method == "on_close":
            self._close_alone(call, context, respond, wrapped)
            return
        if call.encoding == SCHEDULED and scheduling.raised(self, context, respond, wrapped):
            return
        self._reply(ERROR, to_wire(wrapped, with_cause=call.encoding == PICKLE), context, respond)

    def _close_alone(
        self, call: Call, context: CallContext, respond: Respond, error: RayObjectsError
    ) -> None:
        """on_close raised, so what it wrote is rolled back; but the socket is gone all the same."""
        if not isinstance(error, MethodError):  # that one has been logged
            self.host.report(error.message)
        self.state.begin()
        self.sockets.closed(messages.decode_socket_event(call.args).socket)
        changes = self.state.changes()
        record = Record(*self.id, call.id, OK, b"", self.host.now, sockets=changes.sockets)
        try:
            self.commit_end(record, context, respond)
        except RayObjectsError as failure:
            self.state.rollback()
            self._reply_unwritten(ERROR, to_wire(failure, with_cause=False), respond)
        else:
            self.state.commit()

    def _reply(self, status: int, body: bytes, context: CallContext, respond: Respond) -> None:
        """Replies to a call that changed nothing here. If it called others, its reply is journaled
        all the same: a repetition must not call them again once their replies are forgotten."""
        if context.made_calls and context.call.id:
            record = Record(*self.id, context.call.id, status, body, self.host.now)
            try:
                self.commit_end(record, context, respond)
            except RayObjectsError as error:
                self._reply_unwritten(ERROR, to_wire(error, with_cause=False), respond)
                if context.begun is not None and context.begun.intent is not None:
                    self.host.intents.later(self.id, context.call.id)
        else:
            self._reply_unwritten(status, body, respond)

    def commit_end(self, record: Record, context: CallContext, respond: Respond) -> None:
        """Commits the record with which a call ends."""
        call, begun = context.call, context.begun
        record.held = call.held
        record.arguments_hash = call.arguments_hash
        if begun is not None and begun.intent is not None:
            ending = begun.failed(begun.diverged) if begun.diverged else begun.taken_back()
            record.promises = [*record.promises, *ending]
        self.commit(record, context, respond, record.status, record.reply)

    def _reply_unwritten(self, status: int, body: bytes, respond: Respond) -> None:
        """Replies to a call that wrote nothing, when all that it may have seen is on disk."""

        def follow(error: StorageFailed | None) -> None:
            if error is None:
                respond(status, body, 0)
            else:
                respond(ERROR, to_wire(error, with_cause=False), 0)

        if self.tail is None:
            self.host.confirm(follow)
        elif self.tail.followers is None:
            self.tail.followers = [follow]
        else:
            self.tail.followers.append(follow)

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

    def after_sync(self, send: Callable[[], None]) -> None:
        """Runs `send` once all that was committed is on disk; drops it if the journal fails."""
        if self.tail is None:
            send()
            return

        def follow(error: StorageFailed | None) -> None:
            if error is None:
                send()

        if self.tail.followers is None:
            self.tail.followers = [follow]
        else:
            self.tail.followers.append(follow)

    def settled(self) -> None:
        """Everything committed is on disk."""
        if not self.busy:
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
        except Redirected:
            self._refuse(REDIRECT, b"")
        except RayObjectsError as error:
            self._refuse(ERROR, to_wire(error, with_cause=True))
        except BaseException as error:
            wrapped = self.host.raised(f"{self.shown}.__init__", error)
            self._refuse(ERROR, to_wire(wrapped, with_cause=True))
        else:
            self._task = None
            if not self.gone:
                self._next()

    def _refuse(self, status: int, body: bytes) -> None:
        """The object cannot be activated: answers all that wait."""
        if self.gone:
            return
        self.gone = True
        self.host.dropped(self)
        for _, respond in self._queue or ():
            respond(status, body, 0)
        self._queue = None

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
        stops = self.object_class is not None and self.object_class.hook("on_stop") is not None
        if stops and not self.deleted and self.state.aborted is None:  # it must not come back
            self._task = asyncio.ensure_future(self._stop())
        else:
            self._left()

    async def _stop(self) -> None:
        try:
            await run_hook(self, "on_stop")
        except BaseException as error:
            self.host.raised(f"{self.id}.on_stop", error)
        self.after_sync(self._left)

    def _left(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._task = None
        self.host.dropped(self)
        for call, respond in self._queue or ():
            self.host.resubmit(call, respond)
        self._queue = None

    def abandon(self) -> None:
        """The journal failed: forgets everything; whoever waits has been answered or asks again."""
        self.gone = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        queue, self._queue = self._queue, None
        for _, respond in queue or ():
            error = self.host.ledger.failed
            assert error is not None
            respond(ERROR, to_wire(error, with_cause=False), 0)

    # -- words ----------------------------------------------------------------------------------

    @property
    def shown(self) -> ObjectId:
        """The id as users know it."""
        return self.object_class.shown(self.id) if self.object_class is not None else self.id

    def _target(self, call: Call) -> str:
        return f"{self.shown}.{call.method}"
