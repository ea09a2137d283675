"""Finding a call that an object has, by its id, and ending it before its end.

A call that waits is taken out of the queue. One that runs is cancelled where it awaits something,
be it its turn; it is rolled back, and answered with the error for which it was ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rayobjects.errors import RayObjectsError, to_wire
from rayobjects.messages import ERROR, Call
from rayobjects.objects.commit import Respond
from rayobjects.objects.context import CallContext

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation


def waiting_call(activation: Activation, call_id: str) -> Call | None:
    """The call of this id that waits for the turn."""
    for call, _ in activation.queue or ():
        if call.id == call_id:
            return call
    return None


def running_call(activation: Activation, call_id: str) -> CallContext | None:
    """The call of this id that runs."""
    for context, _ in _running(activation):
        if context.call.id == call_id:
            return context
    return None


def cancel(activation: Activation, call_id: str, error: RayObjectsError) -> bool:
    """Ends a call that waits, or whose method awaits something. Returns whether there is one."""
    # One that runs may have something in the queue, too: it waits for the turn.
    running = running_call(activation, call_id)
    call = running.call if running is not None else waiting_call(activation, call_id)
    return call is not None and give_up(activation, call, error)


def give_up(activation: Activation, call: Call, error: RayObjectsError) -> bool:
    """Ends just this call. Returns whether it waits, or runs and can be ended."""
    for entry in activation.queue or ():
        if entry[0] is call:
            assert activation.queue is not None
            activation.queue.remove(entry)
            entry[1](ERROR, to_wire(error, with_cause=False), 0)
            return True
    for context, task in _running(activation):
        if context.call is call and task is not None:
            context.ending = error
            if context.started:  # else it sees that it is to end when it begins
                task.cancel()
            return True
    return False


def withdraw(activation: Activation, respond: Respond) -> None:
    """Takes out of the queue what waits with this, without an answer."""
    for entry in activation.queue or ():
        if entry[1] is respond:
            assert activation.queue is not None
            activation.queue.remove(entry)
            return


def _running(activation: Activation) -> list[tuple[CallContext, asyncio.Task[None] | None]]:
    """The calls that run and can be waited for, that with the turn first."""
    turn = [] if activation.running is None else [(activation.running, activation.task)]
    return turn + [(each.context, each.task) for each in activation.concurrent or ()]
