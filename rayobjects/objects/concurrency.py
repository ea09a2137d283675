"""Methods that run beside the others, without the object's turn (`@ro.concurrent`).

Such a call reads what is committed, through a face of the object that shows nothing else (`view`).
To write it takes the turn, `async with self.turn():`, and each such block is a commit of its own:
all of it when the block ends, nothing of it if the block raises. So no update is lost, though the
method waits for slow things between its blocks.

A call with several commits cannot be run again from its beginning without applying some of them
twice. So the first block's record also stores an answer for the call's id: that it was cut off.
The record with which the call ends puts the real one in its place. When the process dies

    before the first block is on disk   nothing was written; the call is sent and run again;
    after it, before the end            a repetition is answered that the call was cut off, and
                                        the blocks that were committed stay;
    after the end's record              a repetition gets the reply.

The same happens without a crash when the object moves to a new version of its class meanwhile: its
concurrent calls are cancelled, and begin again there or are told that they were cut off.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rayobjects.errors import RayObjectsError, Unavailable, from_wire, to_wire
from rayobjects.messages import ERROR, JSON, OK, PICKLE, TURN, Call
from rayobjects.objects.cancelling import withdraw
from rayobjects.objects.commit import Aborted, Respond, aborted, no_reply
from rayobjects.objects.context import CallContext, current_call
from rayobjects.objects.view import CommittedView, show, view_of
from rayobjects.storage.records import Record

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.invocation import Invocation


ENDED = "this call has ended, and its tasks cannot take the turn"


def needs_no_turn(activation: Activation, call: Call) -> bool:
    """Whether the call may run beside the one that has the turn."""
    assert activation.object_class is not None
    return (
        call.method in activation.object_class.concurrent
        and call.encoding in (PICKLE, JSON)
        and not must_take_turn(activation, call)
    )


def must_take_turn(activation: Activation, call: Call) -> bool:
    """Whether a call of a concurrent method runs like others all the same: a told message, for one
    that is cut off could not be tried again, and a rerun, whose first run had the turn."""
    if call.held and not call.chain:
        return True
    return bool(call.id) and activation.host.intents.begun(activation.id, call.id) is not None


class Concurrent:
    """One call that runs without the turn.

    Attributes:
        activation: of its object.
        blocks: how many of its blocks have written.
        stream: whether it hands out items: then it cannot begin again.
        waiter: what stands for it in the object's queue; None unless it waits for the turn.
        holds: whether it has the turn.
    """

    __slots__ = (
        "_face",
        "_view",
        "aborted",
        "activation",
        "blocks",
        "call",
        "context",
        "cut_off",
        "holds",
        "respond",
        "stream",
        "task",
        "waiter",
    )

    def __init__(
        self, activation: Activation, call: Call, context: CallContext, respond: Respond
    ) -> None:
        self.activation = activation
        self._view = CommittedView(activation.state)
        self._face = view_of(activation.instance, self._view)
        self.call = call
        self.context = context
        self.respond = respond
        self.task: asyncio.Task[None] | None = None
        self.blocks = 0
        self.stream = False
        self.waiter: _Waiter | None = None
        self.holds = False
        self.cut_off = False
        self.aborted = False
        context.concurrent = self

    def start(self, invocation: Invocation) -> None:
        """Begins to run."""
        self.stream = bool(invocation.stream)
        arguments = (self._face, *invocation.arguments[1:])
        self.task = asyncio.ensure_future(self._run(invocation._replace(arguments=arguments)))

    async def _run(self, invocation: Invocation) -> None:
        activation, context = self.activation, self.context
        current_call.set(context)
        context.started = True
        result, failure = None, None
        try:
            if context.ending is not None:
                raise asyncio.CancelledError
            result = await activation.invoke(invocation)
        except BaseException as error:
            failure = error
        context.closed = True
        if self.waiter is not None:  # a task of it, which the turn must not come to any more
            self.waiter.refuse(RuntimeError(ENDED))
        if self.holds:  # the lane was cancelled between the block and its end
            try:
                self.give(failure or asyncio.CancelledError())
            except BaseException as error:
                failure = failure or error
        if not self.cut_off:
            activation.concurrent_ended(self, invocation, result, failure)

    def cut(self) -> bool:
        """The object leaves: ends the call. Returns whether it may be run again elsewhere."""
        self.cut_off = True
        if self.task is not None:
            self.task.cancel()
        return self.blocks == 0 and not self.stream

    # -- the turn -----------------------------------------------------------------------------

    async def take(self) -> None:
        """Waits for the object's turn; the face shows the object's own state from then on.

        Raises:
            Overloaded: too many calls wait.
            RuntimeError: the call has the turn, or it ends before it comes to it.
        """
        if self.holds or self.waiter is not None:
            raise RuntimeError(
                "this call has the turn, or waits for it in another task, and cannot take it "
                "twice: do what is to be done inside the `async with self.turn():` that is open, "
                "or after its end"
            )
        if self.context.closed:
            raise RuntimeError(ENDED)
        if self.cut_off or self.activation.gone:
            raise asyncio.CancelledError
        waiter = self.waiter = _Waiter(self)
        try:
            self.activation.submit(
                Call(0, *self.activation.id, self.call.method, TURN, b"", self.call.id), waiter
            )
            await waiter.future
        except asyncio.CancelledError:
            if self.holds:  # it came at the same moment
                self.give(asyncio.CancelledError())
            raise
        finally:
            self.waiter = None
            if not self.holds:
                withdraw(self.activation, waiter)

    def granted(self) -> None:
        """The turn is this call's."""
        self.holds = True
        self.activation.state.begin(self.context)
        show(self._face, self.activation.state)

    def give(self, error: BaseException | None) -> None:
        """Ends the block: commits what it wrote, or rolls back if it raised.

        Raises:
            RayObjectsError: it cannot be committed.
        """
        if not self.holds:
            return
        activation, state = self.activation, self.activation.state
        self.holds = False
        show(self._face, self._view)
        try:
            if activation.gone:
                return
            if error is not None or state.aborted is not None:
                state.rollback()
                if state.aborted is not None:
                    activation.outdated = self.aborted = True
                    raise Aborted(state.aborted)
                return
            try:
                changes = state.changes()
                if changes:
                    activation.host.check(activation.id, changes)
                    activation.commit(self._record(changes), None, no_reply, OK, b"")
                    self.blocks += 1
            except BaseException:
                state.rollback()
                raise
            state.commit()
        finally:
            if not activation.gone:
                activation.turn_ended()

    def _record(self, changes: Any) -> Record:
        activation, call = self.activation, self.call
        record = Record(*activation.id)
        if call.id:
            record.call_id, record.status = call.id, ERROR
            record.reply = to_wire(cut_off(activation, call), with_cause=False)
            record.finished_at = activation.host.now
            record.held, record.arguments_hash = call.held, call.arguments_hash
        changes.write_into(record)
        return record


class _Waiter:
    """Stands in the queue of an object for a call that runs, and wants the turn."""

    def __init__(self, concurrent: Concurrent) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.concurrent = concurrent
        self.call = concurrent.call

    def grant(self) -> bool:
        """Gives it the turn; returns whether it still wants it."""
        if self.future.done() or self.concurrent.cut_off:
            return False
        self.concurrent.granted()
        self.future.set_result(None)
        return True

    def refuse(self, error: BaseException) -> None:
        """It gets the turn no more."""
        if not self.future.done():
            self.future.set_exception(error)

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        left = cut_off(self.concurrent.activation, self.call)
        self.refuse(from_wire(body) if status == ERROR else left)


class Turn:
    """`async with self.turn():` in a method of an object."""

    def __init__(self, concurrent: Concurrent | None, loop: asyncio.AbstractEventLoop) -> None:
        self._concurrent = concurrent
        self._loop = loop

    async def __aenter__(self) -> None:
        if self._concurrent is not None:
            taking = self._concurrent.take()
            if asyncio.get_running_loop() is self._loop:
                await taking
            else:
                took = asyncio.run_coroutine_threadsafe(taking, self._loop)
                try:
                    await asyncio.wrap_future(took)
                except asyncio.CancelledError as error:  # perhaps it had just been given
                    self._loop.call_soon_threadsafe(self._concurrent.give, error)
                    raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._concurrent is None:
            return
        if asyncio.get_running_loop() is self._loop:
            self._concurrent.give(error)
        else:
            given: concurrent.futures.Future[None] = concurrent.futures.Future()

            def give() -> None:
                assert self._concurrent is not None
                try:
                    self._concurrent.give(error)
                except BaseException as failure:
                    given.set_exception(failure)
                else:
                    given.set_result(None)

            self._loop.call_soon_threadsafe(give)  # which nobody can cancel
            await asyncio.shield(asyncio.wrap_future(given))


def cut_off(activation: Activation, call: Call, committed: bool = True) -> RayObjectsError:
    """The error for a call that had committed something, or handed out items, and did not come to
    its end."""
    if not committed:
        return Unavailable(
            f"{activation.shown}.{call.method} was cut off, because its object has moved: call it "
            "again",
            details={"cut_off": True},
        )
    return Unavailable(
        f"{activation.shown}.{call.method} was cut off after it had committed a part of what it "
        "does: look at the object's state before you call it again, with another id",
        details={"cut_off": True},
    )


def cut_all(activation: Activation) -> list[tuple[Call, Respond]]:
    """The object leaves: ends its concurrent calls, answers those that are cut off, and returns
    those that may begin again elsewhere."""
    running, activation.concurrent = activation.concurrent or {}, None
    again: list[tuple[Call, Respond]] = []
    for each in running:
        if each.cut() and not each.aborted:
            again.append((each.call, each.respond))
            continue
        error: RayObjectsError = cut_off(activation, each.call, each.blocks > 0)
        if each.aborted:
            error = aborted(activation, each.call)
        each.respond(ERROR, to_wire(error, with_cause=False), 0)
        each.context.ended()
    return again
