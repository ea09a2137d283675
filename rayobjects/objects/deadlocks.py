"""Finds calls that wait for each other, though they came from independent callers.

A call that another object makes, and that waits for its turn for long, is followed by its edges, as
in edge chasing (Chandy, Misra and Haas, "Distributed Deadlock Detection", 1983): it waits for the
call that has the turn, which may await a call to a further object, which may wait for its turn
there, and so on. Where that leads back to the call itself, none of them can ever go on, for each
edge is there until the one behind it is gone. A circle is believed when it was found twice.

Every call of the circle that waits finds it by itself. The one that the youngest of the waiting
methods awaits is given up with Deadlock, by its own host; that method raises and is rolled back,
unless it handles the error, and the others go on.

A method that awaits the first of several responses only is taken to wait for all of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from rayobjects.errors import Deadlock, RayObjectsError
from rayobjects.ids import ObjectId
from rayobjects.limits import CHAIN_DEPTH_MAX, PROBE_EVERY_S
from rayobjects.messages import OK, PROBE, Call, Reply
from rayobjects.objects.cancelling import give_up, running_call, waiting_call

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.context import CallContext
    from rayobjects.objects.host_core import HostCore

UNKNOWN = 0
"""It has ended, or has not come here."""
QUEUED = 1
"""It waits for the turn; the rest is said of the call that has it."""
RUNNING = 2


class Waits(msgspec.Struct, array_like=True):
    """What a host says of a call.

    Attributes:
        state: UNKNOWN, QUEUED or RUNNING.
        id: of the call that runs.
        began: when that first began, in seconds since the epoch.
        awaits: (call id, class, name) of the calls that it awaits.
    """

    state: int = UNKNOWN
    id: str = ""
    began: float = 0.0
    awaits: list[tuple[str, str, str]] = []


class Edge(NamedTuple):
    """A method that awaits a call which waits for its turn."""

    began: float
    run: str
    queued: str
    at: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Waits).decode


class Deadlocks:
    """A host's part."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._walks: set[asyncio.Task[None]] = set()

    def look(self, id: ObjectId, call_id: str) -> Waits:
        """What is known here of a call to an object."""
        activation = self._host.activations.get((id[0], id[1]))
        if activation is None:
            return Waits()
        context = running_call(activation, call_id)
        beside = context.concurrent if context is not None else None
        waits = beside is not None and beside.waiter is not None
        if context is not None and not waits:
            return _waits(RUNNING, context)
        if waits or waiting_call(activation, call_id) is not None:
            holder = activation.running or activation.hook
            return Waits(QUEUED) if holder is None else _waits(QUEUED, holder)
        return Waits()

    def answer(self, call: Call) -> bytes:
        """The answer to a PROBE."""
        return _encode(self.look(ObjectId(call.class_name, call.name), call.args.decode()))

    def watch(self, activation: Activation, call: Call) -> None:
        """A call of another object waits for its turn."""
        self._host.later(PROBE_EVERY_S, lambda: self._again(activation, call))

    def _again(self, activation: Activation, call: Call) -> None:
        if activation.gone or waiting_call(activation, call.id) is not call:
            return
        walk = asyncio.ensure_future(self._walk(activation, call))
        self._walks.add(walk)
        walk.add_done_callback(self._walks.discard)

    async def _walk(self, activation: Activation, call: Call) -> None:
        circle = await self._circle(activation, call)
        if circle and await self._circle(activation, call) == circle:
            youngest = max(circle)
            if youngest.queued == call.id:
                where = " → ".join([*(edge.at for edge in circle)])
                give_up(
                    activation,
                    call,
                    Deadlock(
                        f"calls to {where} wait for each other in a circle, and this is the "
                        "youngest: use tell where no answer is needed, or let a method that waits "
                        "be concurrent"
                    ),
                )
                return
        self.watch(activation, call)

    async def _circle(self, activation: Activation, call: Call) -> list[Edge] | None:
        """The edges that lead from a waiting call back to it; None if they do not."""
        holder = activation.running or activation.hook
        if waiting_call(activation, call.id) is not call or holder is None:
            return None
        seen = {call.id}

        async def follow(waits: Waits, edges: list[Edge]) -> list[Edge] | None:
            for call_id, class_name, name in waits.awaits:
                at = f"{class_name}/{name}"
                further = [*edges, Edge(waits.began, waits.id, call_id, at)]
                if call_id == call.id:
                    return further
                if call_id in seen or len(seen) > CHAIN_DEPTH_MAX:
                    continue
                seen.add(call_id)
                found = await self._ask(class_name, name, call_id)
                if found.state != UNKNOWN:
                    circle = await follow(found, further if found.state == QUEUED else edges)
                    if circle is not None:
                        return circle
            return None

        return await follow(_waits(QUEUED, holder), [])

    async def _ask(self, class_name: str, name: str, call_id: str) -> Waits:
        future: asyncio.Future[Waits] = asyncio.get_running_loop().create_future()

        def replied(outcome: Reply | RayObjectsError) -> None:
            if not future.done():
                known = isinstance(outcome, Reply) and outcome.status == OK
                future.set_result(_decode(outcome.body) if known else Waits())  # type: ignore[union-attr]

        self._host.submit_elsewhere(
            Call(0, class_name, name, "", PROBE, call_id.encode()), replied, None
        )
        try:
            return await asyncio.wait_for(future, PROBE_EVERY_S)
        except TimeoutError:
            return Waits()


def _waits(state: int, context: CallContext) -> Waits:
    return Waits(
        state, context.call.id, context.now, [(id, *at) for id, at in list(context.awaits.items())]
    )
