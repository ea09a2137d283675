"""What a router does with the reply to a call before the caller has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rayobjects.errors import RayObjectsError
from rayobjects.messages import OPENED, REDIRECT, Call, Reply
from rayobjects.objects.caller_channel import Replied
from rayobjects.objects.context import CallContext
from rayobjects.objects.reading import Opened
from rayobjects.runtime.channel import Channel

if TYPE_CHECKING:
    from rayobjects.runtime.router import Router


class Follow:
    """Takes a call's reply: follows redirections and acknowledges a child's reply in time."""

    __slots__ = ("_call", "_channel", "_context", "_redirects", "_replied", "_router", "number")

    def __init__(
        self,
        router: Router,
        channel: Channel,
        call: Call,
        replied: Replied,
        context: CallContext | None,
        redirects: int,
    ) -> None:
        self._redirects = redirects
        self._router = router
        self._channel = channel
        self._call = call
        self._replied = replied
        self._context = context
        self.number = 0

    def __call__(self, outcome: Reply | RayObjectsError) -> None:
        if isinstance(outcome, Reply):
            if outcome.status == REDIRECT:
                call = self._call
                if self._context is not None:  # it was kept, and another host's reply is awaited
                    self._channel.acknowledge(self.number)
                if not call.id:  # the id stays when the number changes
                    call.id = f"{self._router.id}:{self.number}"
                self._router.redirected(call, self._replied, self._context, self._redirects)
                return
            if outcome.status >= OPENED:
                self._replied(outcome)
                if isinstance(outcome, Opened):  # from now on to whoever reads, but by way of this
                    self._replied, outcome.take = outcome.take or self._replied, None
                return
            if self._context is not None:
                call = self._call
                # A reply that is in no record is not held, and its call may come under the same id.
                held = call.held and outcome.sequence
                said = (call.id, call.class_name, call.name) if held else None  # not the arguments
                acknowledge = partial(self._channel.acknowledge_child, self.number, said)
                self._context.add_child(partial(_when_none_is_late, self._context, acknowledge))
        self._replied(outcome)


def _when_none_is_late(context: CallContext, acknowledge: Callable[[], None]) -> None:
    """Acknowledges, as soon as no process that has died can have sent the same call: what comes
    after that would be taken for a new one."""
    late_s = context.late_s
    if late_s:
        asyncio.get_running_loop().call_later(late_s, acknowledge)
    else:
        acknowledge()
