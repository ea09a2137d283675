"""The end of a call: its overlay becomes one journal record with the reply, or is rolled back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rayobjects import messages
from rayobjects.errors import (
    InvalidCall,
    MethodError,
    RayObjectsError,
    is_mistake,
    miscalled,
    misuse,
    to_wire,
)
from rayobjects.limits import CALL_BYTES_MAX
from rayobjects.messages import ERROR, OK, PICKLE, SCHEDULED, SOCKET, Call
from rayobjects.objects import scheduling
from rayobjects.objects.commit import Aborted, Respond, aborted
from rayobjects.objects.context import CallContext
from rayobjects.objects.invocation import (
    Invocation,
    encode_result,
    is_binding_error,
    is_raised_in_method,
)
from rayobjects.storage.records import Record

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.concurrency import Concurrent


def returned(
    activation: Activation,
    invocation: Invocation,
    context: CallContext,
    respond: Respond,
    result: Any,
) -> None:
    """The method has returned: commits what it wrote, with the reply."""
    if activation.gone:
        return  # the journal failed meanwhile; the call was answered
    call, state = context.call, activation.state
    context.closed = True
    try:
        if state.aborted is not None:
            raise Aborted(state.aborted)  # whoever has caught it
        if context.begun is not None:
            context.begun.check_end()
        if call.encoding == SCHEDULED:
            scheduling.ended(activation, call)
        changes = state.changes()
        status, body = _encoded(activation, call, invocation, result)
        if changes:
            activation.host.check(activation.id, changes)
            record = Record(*activation.id, call.id, status, body, activation.host.now)
            changes.write_into(record)
            activation.commit_end(record, context, respond)
    except BaseException as error:  # also a __reduce__ or model_dump of the user's that raises
        failed(activation, context, respond, error)
        return
    state.commit()
    if changes:
        return
    _reply(activation, status, body, context, respond)


def failed(
    activation: Activation, context: CallContext, respond: Respond, error: BaseException
) -> None:
    """The method has raised, or what it did cannot be committed: nothing of it is left. Comes again
    where the record of that is refused for good, with `context.begun` stopped."""
    if activation.gone:
        return
    call = context.call
    context.closed = True
    activation.state.rollback()
    activation.deleted = False  # if this was to delete it
    if context.begun is not None:
        try:
            context.begun.check_end()
        except InvalidCall as stopped:
            error = stopped
    wrapped = wrap(activation, context, error)
    if call.encoding == SOCKET and call.method == "on_close":
        _close_alone(activation, context, respond, wrapped)
        return
    if call.encoding == SCHEDULED and scheduling.raised(activation, context, respond, wrapped):
        return
    body = to_wire(wrapped, with_cause=call.encoding == PICKLE)
    _reply(activation, ERROR, body, context, respond)


def concurrent_ended(
    activation: Activation,
    concurrent: Concurrent,
    invocation: Invocation,
    result: Any,
    error: BaseException | None,
) -> None:
    """A call without the turn has ended; its blocks have their commits."""
    if activation.gone:
        return
    call, context = concurrent.call, concurrent.context
    status, body = OK, b""
    if error is None:
        try:
            status, body = _encoded(activation, call, invocation, result)
        except BaseException as failure:
            error = failure
    if error is not None:
        wrapped = wrap(activation, context, error)
        status, body = ERROR, to_wire(wrapped, with_cause=call.encoding == PICKLE)
    if concurrent.blocks and call.id:  # takes the place of the answer that it was cut off
        record = Record(*activation.id, call.id, status, body, activation.host.now)
        try:
            activation.commit_end(record, context, concurrent.respond)
        except RayObjectsError:  # what it did is committed, and this answer is the right one
            activation.reply_unwritten(status, body, concurrent.respond)
        return
    _reply(activation, status, body, context, concurrent.respond)


def wrap(activation: Activation, context: CallContext, error: BaseException) -> RayObjectsError:
    """The error of our tree for whatever ended a method."""
    target = f"{activation.shown}.{context.call.method}"
    beside = context.concurrent
    if activation.state.aborted is not None and (beside is None or beside.aborted):
        activation.outdated = True
        return aborted(activation, context.call)
    if context.ending is not None and isinstance(error, asyncio.CancelledError):
        return context.ending
    if is_binding_error(error):
        return miscalled(target, f"{target}: {error}")
    if isinstance(error, RayObjectsError):
        return mistaken(activation, target, error) if is_mistake(error, target) else error
    return activation.host.raised(target, error)


def mistaken(activation: Activation, target: str, error: RayObjectsError) -> RayObjectsError:
    """The error for a mistake of a method's or hook's own: raised in it, or by what it left behind,
    of which no line is known."""
    if is_raised_in_method(error):
        return activation.host.raised(target, error)
    activation.host.report(error.message)
    return error


def _encoded(
    activation: Activation, call: Call, invocation: Invocation, result: Any
) -> tuple[int, bytes]:
    status, body = encode_result(call, invocation, result)
    if len(body) > CALL_BYTES_MAX:
        raise misuse(
            f"{activation.shown}.{call.method} returned {len(body):,} bytes; a reply has at most "
            f"{CALL_BYTES_MAX:,}: return less, or page by page"
        )
    return status, body


def _close_alone(
    activation: Activation, context: CallContext, respond: Respond, error: RayObjectsError
) -> None:
    """on_close raised, so what it wrote is rolled back; but the socket is gone all the same."""
    if not isinstance(error, MethodError):  # that one has been logged
        activation.host.report(error.message)
    call, state = context.call, activation.state
    state.begin(context)
    activation.sockets.closed(messages.decode_socket_event(call.args).socket)
    record = Record(*activation.id, call.id, OK, b"", activation.host.now)
    record.sockets = state.changes().sockets
    try:
        activation.commit_end(record, context, respond)
    except RayObjectsError as failure:
        if context.begun is not None and context.begun.stop(failure):
            failed(activation, context, respond, failure)
            return
        state.rollback()
        activation.reply_unwritten(ERROR, to_wire(failure, with_cause=False), respond)
    else:
        state.commit()


def _reply(
    activation: Activation, status: int, body: bytes, context: CallContext, respond: Respond
) -> None:
    """Replies to a call that changed nothing here. If it called others, its reply is journaled
    all the same: a repetition must not call them again once their replies are forgotten."""
    call = context.call
    if not (context.made_calls and call.id):
        activation.reply_unwritten(status, body, respond)
        return
    try:
        record = Record(*activation.id, call.id, status, body, activation.host.now)
        activation.commit_end(record, context, respond)
    except RayObjectsError as error:
        if context.begun is not None and context.begun.stop(error):
            failed(activation, context, respond, error)
            return
        activation.reply_unwritten(ERROR, to_wire(error, with_cause=False), respond)
        if context.begun is not None and context.begun.intent is not None:
            activation.host.intents.later(activation.id, call.id)
