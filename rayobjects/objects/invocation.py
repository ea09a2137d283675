"""From a call to the function that it runs, and from the result to the reply.

Five encodings arrive here (see `messages`): calls of stubs, of HTTP, of WebSockets, raw requests,
and the runtime's own. Whatever came in over HTTP or a WebSocket is checked against the method's
signature and never unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rayobjects import messages
from rayobjects.errors import InvalidCall, miscalled, to_wire
from rayobjects.messages import ERROR, JSON, OK, PICKLE, REQUEST, SCHEDULED, SOCKET, TEXT, Call
from rayobjects.objects import failures, scheduling
from rayobjects.objects.filters import Around
from rayobjects.objects.http import Request, Response
from rayobjects.objects.marks import BLOCKING, is_marked, stream_of
from rayobjects.storage import values

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation


class Invocation(NamedTuple):
    """A function with its arguments.

    Attributes:
        is_async: it must run in a task.
        concurrent: it runs without the object's turn.
        blocking: it runs on a thread.
        stream: it returns a generator: `marks.LOOP` or `marks.THREAD`; else "".
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    is_async: bool
    concurrent: bool = False
    blocking: bool = False
    stream: str = ""


def invocation_of(call: Call, activation: Activation) -> Invocation:
    """Finds what a call runs.

    Raises:
        InvalidCall: there is no such method, or the arguments are not of its kind.
    """
    encoding = call.encoding
    if encoding in (PICKLE, JSON):
        method = activation.object_class.methods.get(call.method)  # type: ignore[union-attr]
        if method is None or (encoding == JSON and method.internal):
            raise _unknown_method(call, activation)
        if encoding == PICKLE:
            try:
                arguments, keywords = values.load(call.args)
            except Exception as error:
                called = f"{call.class_name}/{call.name}.{call.method}"
                raise miscalled(
                    called,
                    f"the arguments of {called} could not be unpickled on its host "
                    f"({type(error).__name__}: {error}): pass plain data, or classes that are "
                    "there: those of your own to which the deployed class refers, in an annotation "
                    "(value: Point) or inside a method, and those of packages that are installed "
                    "there",
                ) from error
            arguments = (activation.instance, *arguments)
        else:
            arguments, keywords = (activation.instance,), method.parse_json(call.args)
        return Invocation(
            method.function,
            arguments,
            keywords,
            method.is_async or method.blocking,
            method.concurrent,
            method.blocking,
            method.stream,
        )
    if encoding == SOCKET:
        return _socket_invocation(call, activation)
    if encoding == SCHEDULED:
        return _scheduled_invocation(call, activation)
    if encoding == REQUEST:
        return _request_invocation(call, activation)
    return _system_invocation(call, activation)


def encode_result(call: Call, invocation: Invocation, result: Any) -> tuple[int, bytes]:
    """Encodes what a method returned, the way its caller wants it; returns (status, body).

    Raises:
        InvalidCall: it cannot be encoded.
    """
    encoding = call.encoding
    if invocation.stream:  # it has encoded its items and its end
        status, body = result
        return status, body
    if encoding == PICKLE:
        return OK, values.dump(result)
    if encoding == SOCKET:
        if isinstance(result, messages.SocketOpened):
            return OK, messages.encode(result)
        return (OK, b"") if result is None else (ERROR, result)
    if encoding == REQUEST:
        return OK, _encode_response(call, result)
    if encoding == SCHEDULED:
        return OK, b""  # nobody asks for it
    try:
        return OK, messages.encode_json(result)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidCall(
            f"the result of {call.class_name}/{call.name}.{call.method} has no JSON form "
            f"({error}): return plain data, a dataclass or a pydantic model, or call it by stub",
            status=500,
        ) from error


def _unknown_method(call: Call, activation: Activation) -> InvalidCall:
    object_class = activation.object_class
    assert object_class is not None
    known = sorted(name for name, method in object_class.methods.items() if not method.internal)
    return miscalled(
        f"{call.class_name}/{call.name}.{call.method}",
        f"{call.class_name} has no method {call.method!r}; it has: {', '.join(known) or 'none'}",
        status=404,
    )


# -- WebSockets ---------------------------------------------------------------------------------


def _socket_invocation(call: Call, activation: Activation) -> Invocation:
    assert activation.object_class is not None
    if not activation.object_class.info.sockets:
        raise InvalidCall(
            f"{call.class_name} takes no WebSockets: define on_connect or on_message", status=404
        )
    event = messages.decode_socket_event(call.args)
    return Invocation(_run_socket_event, (activation, call, event), {}, True)


async def _run_socket_event(
    activation: Activation, call: Call, event: messages.SocketEvent
) -> bytes | messages.SocketOpened | None:
    """Runs on_connect, on_message or on_close; returns an encoded refusal, what on_connect has
    agreed on with the client, or None."""
    method, object_class, sockets = call.method, activation.object_class, activation.sockets
    assert object_class is not None
    if method == "on_connect":
        socket = sockets.opened(event)
        arguments: tuple[Any, ...] = (socket,)
    else:
        known = sockets.get(event.socket)
        if known is None:
            return to_wire(socket_gone(activation), with_cause=False)
        socket = known
        text: str | bytes = (
            event.data.decode("utf-8", "replace") if event.kind == TEXT else event.data
        )
        if method == "on_message":
            arguments = (socket, text)
        else:
            sockets.closed(event.socket)
            arguments = (socket, event.code, event.data.decode("utf-8", "replace"))
    hook = object_class.hook(method)
    if activation.host.filters is not None:
        whole = Invocation(getattr(object_class.cls, method), (), {}, True)
        hook = Around(activation, call, whole)
    if hook is not None:
        result = hook(activation.instance, *arguments)
        if hasattr(result, "__await__"):
            await result
    if method == "on_connect" and socket.refused is not None:
        code, reason = socket.refused
        sockets.closed(event.socket)
        return to_wire(
            InvalidCall(
                f"{activation.id} refused the connection: {reason or code}",
                status=403,
                details={"close": [code, reason]},
            ),
            with_cause=False,
        )
    if method == "on_connect" and socket.subprotocol:
        return messages.SocketOpened(socket.subprotocol)
    return None


def socket_gone(activation: Activation) -> InvalidCall:
    """The object does not know the socket (any more): its gateway closes it."""
    return InvalidCall(
        f"{activation.id} does not know this socket any more: connect again",
        status=404,
        details={"socket": "gone"},
    )


# -- schedules ----------------------------------------------------------------------------------


def _scheduled_invocation(call: Call, activation: Activation) -> Invocation:
    found = scheduling.due(activation, call)
    if found is None:
        return Invocation(_nothing, (), {}, False)
    _, plan = found
    call.context = plan.context
    function = getattr(type(activation.instance), plan.method, None)
    if not callable(function):
        function = _gone(activation, plan.method)
    try:
        arguments, keywords = values.load(plan.args)
    except Exception as error:
        function = _gone(activation, plan.method, f"its arguments could not be unpickled: {error}")
        arguments, keywords = (), {}
    blocking = is_marked(function, BLOCKING)
    return Invocation(
        function,
        (activation.instance, *arguments),
        keywords,
        True,
        blocking=blocking,
        stream=stream_of(function),
    )


def _nothing() -> None:
    """What is left of a schedule that was taken back while its call was on its way."""


def _gone(activation: Activation, method: str, why: str = "") -> Callable[..., Any]:
    def gone(*_: Any, **__: Any) -> None:
        raise InvalidCall(
            f"{activation.shown}.{method} is scheduled, but {why or 'there is no such method'}: "
            "deploy a version of the class that has it, then retry"
        )

    return gone


# -- raw requests -------------------------------------------------------------------------------


def _request_invocation(call: Call, activation: Activation) -> Invocation:
    assert activation.object_class is not None
    hook = activation.object_class.hook("on_request")
    if hook is None:
        raise InvalidCall(f"{call.class_name} takes no raw requests: define on_request", status=404)
    request = Request.from_message(messages.decode_request(call.args))
    return Invocation(hook, (activation.instance, request), {}, True)


def _encode_response(call: Call, result: Any) -> bytes:
    if not isinstance(result, Response):
        result = Response(result)
    return messages.encode(result.to_message())


# -- the runtime's own methods ------------------------------------------------------------------


class _StateArguments(msgspec.Struct):
    limit: int = 1_000


def _system_invocation(call: Call, activation: Activation) -> Invocation:
    if call.method == "state":
        limit = msgspec.json.decode(call.args, type=_StateArguments).limit
        return Invocation(activation.state.to_json, (), {"limit": limit}, False)
    if call.method == "unknown_sockets":
        asked = msgspec.json.decode(call.args, type=list[str])
        return Invocation(_unknown_sockets, (activation, asked), {}, False)
    if call.method in ("retry", "discard"):
        chosen = msgspec.json.decode(call.args, type=failures.Chosen)
        return Invocation(failures.settle, (activation, call.method, chosen), {}, False)
    if call.method == "delete":
        return Invocation(_delete, (activation,), {}, False)
    raise InvalidCall(f"there is no system method {call.method!r}", status=404)


def _unknown_sockets(activation: Activation, ids: list[str]) -> list[str]:
    """Those of a gateway's sockets that the object does not have: it took the gateway for dead."""
    return [id for id in ids if id not in activation.sockets]


def _delete(activation: Activation) -> bool:
    """Deletes the object: returns whether there was one. The activation leaves after the call."""
    existed = activation.state.exists
    activation.state.delete()
    activation.outdated = activation.deleted = True
    return existed


# -- calling ------------------------------------------------------------------------------------


async def called(invocation: Invocation) -> Any:
    """Calls the function, and awaits what it returns if that is a coroutine."""
    result = invocation.function(*invocation.arguments, **invocation.keywords)
    if type(result) is CoroutineType:
        return await result
    return result


def itself(awaitable: Any) -> Any:
    """For a coroutine that has been made already."""
    return awaitable


def is_binding_error(error: BaseException) -> bool:
    """Whether a TypeError came from binding the arguments: then no frame of the method is in its
    traceback, only those of the modules that call it."""
    trace = error.__traceback__
    if not isinstance(error, TypeError) or trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__") in _CALLERS


def is_raised_in_method(error: BaseException) -> bool:
    """Whether a frame of the user's is in its traceback."""
    trace = error.__traceback__
    while trace is not None:
        if not trace.tb_frame.f_globals.get("__name__", "").startswith("rayobjects."):
            return True
        trace = trace.tb_next
    return False


_CALLING = ("activation", "filters", "streams", "threads")

_CALLERS = frozenset({__name__, *(f"rayobjects.objects.{name}" for name in _CALLING)})
