"""Calls to objects of the host in this process: they skip Ray and channels, so nobody else sends
them again.

A core whose storage fails drops its objects, and with them the calls that run. What came by a
channel is sent again to the core that follows; here that is done for calls from this process, which
are few: what a running call of an object makes is made again by its rerun, so these are of tasks
and threads that belong to no running call.

    the next core is there      such a call is submitted to it under the same id, as a channel
                                would: what had been committed is answered from the storage, what
                                had not is run (guarantee 5)
    a call of a running call    fails with Unavailable: the rerun makes it anew, under the same id,
                                and what may still wait here is a thread that cannot be ended
    a stream that has begun     is cut off, and not begun anew
    the storage does not open   all of them fail with its error
    the process ends its part   all of them fail with Unavailable

A late answer of the core before finds the call answered and is dropped, or answers it, which is
right too: nothing is answered before it is on disk.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rayobjects.errors import RayObjectsError, Unavailable
from rayobjects.ids import ObjectId
from rayobjects.messages import OPENED, REDIRECT, Call, Reply
from rayobjects.objects.caller_channel import Replied
from rayobjects.objects.context import CallContext
from rayobjects.objects.reading import opened
from rayobjects.objects.streams import cut_off

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore
    from rayobjects.runtime.router import Router


class LocalCalls:
    """Those of one router.

    Attributes:
        host: the name of the host in this process; "" where there is none.
        core: what runs its objects.
        under_way: those without an answer, in the order in which they came.
    """

    def __init__(self, router: Router) -> None:
        self.host = ""
        self.core: HostCore | None = None
        self.under_way: dict[LocalCall, LocalCall] = {}
        self.router = router
        self._count = 0
        self._error: RayObjectsError | None = None

    def send(
        self,
        core: HostCore,
        call: Call,
        replied: Replied,
        context: CallContext | None,
        redirects: int,
    ) -> None:
        """Sends a call to the core that there is."""
        if not call.id:
            self._count += 1
            call.id = f"{self.router.id}:local:{self._count}"
        local = LocalCall(self, call, replied, context, redirects)
        self.under_way[local] = local
        if core.failed is None:
            core.submit(call, local, True, False)
        elif self._error is not None:
            local.fail(self._error)
        # Else the next core, which is being made, takes it.

    def serve(self, host: str, core: HostCore | None) -> None:
        """From now on this core runs the host's objects; None: the process ends its part."""
        self.host, self.core, self._error = host, core, None
        lost, self.under_way = self.under_way, {}
        for each in lost:
            each.begin_again(core)

    def fail(self, error: RayObjectsError) -> None:
        """The storage could not be opened again: so it is for calls that come, until it can."""
        self._error = error
        for each in list(self.under_way):
            each.fail(error)


class LocalCall:
    """One call; takes its reply."""

    __slots__ = ("_call", "_calls", "_context", "_opened", "_redirects", "_replied")

    def __init__(
        self,
        calls: LocalCalls,
        call: Call,
        replied: Replied,
        context: CallContext | None,
        redirects: int,
    ) -> None:
        self._calls = calls
        self._call = call
        self._replied = replied
        self._context = context
        self._redirects = redirects
        self._opened = False

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        calls, call, context = self._calls, self._call, self._context
        if status >= OPENED:
            self._streamed(Reply(0, status, body, sequence))
            return
        if calls.under_way.pop(self, None) is None:
            return
        if status == REDIRECT:
            calls.router.redirected(call, self._replied, context, self._redirects)
            return
        if context is not None and sequence:
            assert calls.core is not None
            id = ObjectId(call.class_name, call.name)
            context.add_child(partial(calls.core.forgetting.add, id, call.id))
        self._replied(Reply(0, status, body, sequence))

    def _streamed(self, reply: Reply) -> None:
        if self not in self._calls.under_way:
            return
        if reply.status == OPENED:
            self._opened = True
            begins = opened(0, self._credit)
            self._replied(begins)
            self._replied = begins.take or _drop
        else:
            self._replied(reply)

    def _credit(self, upto: int) -> None:
        call, core = self._call, self._calls.core
        if core is not None:
            core.streams.credit((call.class_name, call.name, call.id), upto)

    def fail(self, error: RayObjectsError) -> None:
        """Ends it with an error, if it has no answer."""
        if self._calls.under_way.pop(self, None) is not None:
            self._replied(error)

    def begin_again(self, core: HostCore | None) -> None:
        """The core that had it is no more."""
        calls, call = self._calls, self._call
        calls.under_way[self] = self
        if core is None or call.held:
            self.fail(
                Unavailable(
                    f"the host of {call.class_name}/{call.name} has ended or lost its storage "
                    "under way: the call may have taken effect"
                )
            )
        elif self._opened:
            self.fail(cut_off(call))
        else:
            if call.expires_at:
                call.timeout_s = max(0.001, call.expires_at - core.clock.monotonic())
            core.submit(call, self, True, True)


def _drop(_: object) -> None:
    pass
