"""The request context, as users see it: `ro.context()` reads it, `ro.request_context(…)` sets it.

with ro.request_context(tenant="acme"):
    room.say.remote("hello").result()      # the method, and all that it calls, sees

ro.context()["tenant"]                     # "acme"
ro.context().caller                        # who called: "Room/lobby", or a client's name
ro.context().trace_id                      # the same in the whole chain of calls
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rayobjects.errors import InvalidCall
from rayobjects.messages import SCHEDULED
from rayobjects.objects import carried
from rayobjects.objects.carried import CALLER, OURS, Block
from rayobjects.objects.context import CallContext, current_call


class RequestContext(Mapping[str, str]):
    """What the running call carries, at the moment when this was made: texts by name.

    Attributes:
        caller: who called: an object's id (`Class/name`), or the name that a client gave itself
            with `ro.init(client=…)`; "" if that is not known, for example over HTTP. A schedule's
            caller is the object itself.
        trace_id: the same in a whole chain of calls, told messages and schedules: that of the trace
            (`traceparent`), or of the call that the chain began with. "" outside of calls and
            traces.
    """

    __slots__ = ("_values", "caller", "trace_id")

    def __init__(self, values: Mapping[str, str], caller: str, trace_id: str) -> None:
        self._values = {name: value for name, value in values.items() if name not in OURS}
        self.caller = caller
        self.trace_id = trace_id

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<context {self._values}, caller={self.caller!r}, trace_id={self.trace_id!r}>"


def context() -> RequestContext:
    """The request context that holds here: in a method that of its call, else that of the block
    around. It does not change; ask again for what holds then."""
    running = current_call.get()
    values = carried.outgoing(running) or {}
    return RequestContext(values, caller_of(running, values), carried.trace_id(running, values))


@contextmanager
def request_context(
    values: Mapping[str, str] | None = None, /, **more: str
) -> Iterator[RequestContext]:
    """Sets entries of the request context, for the calls that are made in the block; those that
    it had before stay.

    Args:
        values: entries whose names are no Python names.
        more: the others.

    Raises:
        InvalidCall: an entry is no text, or is `caller` or `trace_id`, which are not for you to
            set; or all of them have more than 64 entries or 8 KiB.
    """
    added = {**(values or {}), **more}
    taken = OURS & added.keys()
    if taken:
        raise InvalidCall(f"{min(taken)} is known by itself: choose another name")
    running = current_call.get()
    entries = {**(carried.outgoing(running) or {}), **added}
    carried.check(entries)
    token = carried.block.set(Block(running, entries))
    try:
        yield context()
    finally:
        carried.block.reset(token)


def caller_of(running: CallContext | None, values: Mapping[str, str]) -> str:
    """Who has made a call."""
    if running is not None:
        if running.call.chain:
            return running.call.chain[-1]
        if running.call.encoding == SCHEDULED:
            return str(running.activation.shown)
    return values.get(CALLER, "")
