"""What a call carries along beside its arguments: texts by name.

Of the user's own (`ro.request_context`), of an HTTP request (`baggage`, `x-request-id`), and of a
trace (`traceparent`). It travels with the call as `Call.context`, None where there is nothing, and
on with every call that is made on its behalf: awaited, told, planned for later, or run again after
a crash; for those it is journaled with the promise.

A block (`with ro.request_context(…)`) holds for the code that it was opened by: a client's, or one
running call of an object. A call that is run beneath it, because its object lives in the same
process, has its own.

Whoever sends a call says what it carries, so an object must believe it no more than its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from rayobjects.errors import InvalidCall
from rayobjects.limits import CONTEXT_BYTES_MAX, CONTEXT_ENTRIES_MAX

if TYPE_CHECKING:
    from rayobjects.objects.context import CallContext

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
"""As W3C's Trace Context has them."""
CALLER = "caller"
TRACE_ID = "trace_id"
REQUEST_ID = "request_id"

OURS = frozenset({CALLER, TRACE_ID})
"""Not for users to set."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Block(NamedTuple):
    """What an open block says.

    Attributes:
        running: the call that had opened it; None outside of objects.
        values: everything that holds in it.
    """

    running: CallContext | None
    values: dict[str, str]


block: ContextVar[Block | None] = ContextVar("block", default=None)

_client: dict[str, str] | None = None


def name_client(name: str) -> None:
    """The calls of this process say that they come from `name`; "" takes that back."""
    global _client
    _client = {CALLER: name} if name else None


def outgoing(running: CallContext | None) -> dict[str, str] | None:
    """What a call carries that is made now; not to be changed.

    Args:
        running: the call of an object that makes it.
    """
    opened = block.get()
    if opened is not None and opened.running is running:
        return opened.values
    return running.call.context if running is not None else _client


def trace_id(running: CallContext | None, values: Mapping[str, str] | None) -> str:
    """Names the chain of calls that `values` travels with: the trace's id, or else the id of the
    call that the chain began with; "" where there is neither."""
    if values:
        if TRACEPARENT in values:
            return values[TRACEPARENT].split("-")[1]
        if TRACE_ID in values:
            return values[TRACE_ID]
    return running.root_id if running is not None else ""


def kept(running: CallContext) -> dict[str, str] | None:
    """What a message or a schedule carries that the running call makes now. It begins a chain of
    its own, so it must say what it belongs to."""
    values = outgoing(running)
    found = trace_id(running, values)
    if not found or (values and (TRACEPARENT in values or TRACE_ID in values)):
        return values
    return {**(values or {}), TRACE_ID: found}


def check(values: Mapping[str, str]) -> None:
    """Checks what is to be carried.

    Raises:
        InvalidCall: it is not texts by names, or too large.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidCall(
                f"the request context has texts only, and {name!r} is a {type(value).__name__}: "
                "make it a str"
            )
        if name == TRACEPARENT and not _TRACEPARENT.fullmatch(value):
            raise InvalidCall(f"{value!r} is no traceparent: '00-<trace id>-<span id>-<flags>'")
    try:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in values.items())
    except UnicodeEncodeError:
        raise InvalidCall("the request context has a text that is not UTF-8") from None
    if len(values) > CONTEXT_ENTRIES_MAX or size > CONTEXT_BYTES_MAX:
        raise InvalidCall(
            f"the request context has at most {CONTEXT_ENTRIES_MAX} entries and "
            f"{CONTEXT_BYTES_MAX:,} bytes, this one {len(values)} and {size:,}: it travels with "
            "every call, so pass data as arguments",
            status=431,
        )


HEADERS = frozenset({b"traceparent", b"tracestate", b"baggage", b"x-request-id"})


def from_headers(headers: Mapping[bytes, bytes]) -> dict[str, str] | None:
    """What an HTTP request carries; None if that is nothing. What is malformed is left out, as
    W3C's Trace Context and Baggage say.

    Args:
        headers: those of HEADERS, names in lower case.

    Raises:
        InvalidCall: 431 if it is too large.
    """
    values: dict[str, str] = {}
    for member in headers.get(b"baggage", b"").decode("latin-1").split(","):
        name, equals, value = member.partition(";")[0].partition("=")
        name = name.strip()
        if equals and name and name not in OURS and not name.startswith("trace"):
            values[name] = unquote(value.strip())
    request_id = headers.get(b"x-request-id", b"").decode("latin-1").strip()
    if request_id:
        values[REQUEST_ID] = request_id
    parent = headers.get(b"traceparent", b"").decode("latin-1").strip()
    if _TRACEPARENT.fullmatch(parent):
        values[TRACEPARENT] = parent
        state = headers.get(b"tracestate", b"").decode("latin-1").strip()
        if state:
            values[TRACESTATE] = state
    if not values:
        return None
    check(values)
    return values
