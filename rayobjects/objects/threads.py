"""Threads for methods that are marked `blocking`, so that they hold up their own object only.

Threads are few, and a method that has one may wait for another object whose method needs one, too:
by `.result()`, which is what such methods are told to use. So it must never come to this, that all
threads are held by methods which wait for a method that waits for a thread. Two rules see to it:

Depth.   Calls have threads by their depth, the number of objects that wait for them: BLOCKING_
         THREADS_MAX of each. Whatever a method waits for lies deeper than its own call, and those
         of the greatest depth wait for nobody: they end, and then those above them. This asks
         nobody anything, so it holds across hosts, however a method waits for its calls.
Waiting. A thread whose method waits for another object is not counted, so that another call may
         have one meanwhile, up to BLOCKING_THREADS_HELD_MAX of each depth. That is for what depth
         does not show: thirty-two methods wait for the turn of an object, and the call that has
         this turn, of an independent caller, needs a thread of the same depth. Where even these
         threads are all held, a call that has waited for BLOCKING_THREAD_WAIT_S is refused.

Considered, and not taken:

- an extra thread for a call where an object of its chain holds a thread of this host: hosts hold
  each other's threads, too, and the chain does not say on which host its objects live;
- a second rule without the first: however many threads there may be, calls that begin take them
  all, and nothing is left for what these then wait for;
- no bound: a thread is cheap while it waits, but a thousand that compute share one interpreter.

A method that waits by other means (a lock, a call by HTTP, or one made on a thread of its own) is
taken to compute, and what it waits for to be nobody's.

A call that is ended while it waits for a thread ends at once, and its method does not run. A thread
cannot be stopped: a call that has one ends no sooner than its method does, for until then the
object is being written. What a call has left to do that was ended (the `finally` blocks of a
generator) waits for no other, and is not taken back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rayobjects.errors import Overloaded
from rayobjects.limits import (
    BLOCKING_THREAD_WAIT_S,
    BLOCKING_THREADS_HELD_MAX,
    BLOCKING_THREADS_MAX,
)
from rayobjects.objects.context import current_call

if TYPE_CHECKING:
    from rayobjects.objects.invocation import Invocation

LOOK_EVERY_S = 0.05
"""How often it is looked, where calls wait for a thread, whether a method that has one has begun to
wait for another object: it does not say so itself."""

NAME = "rayobjects-blocking"

Outcome = tuple[Any, BaseException | None]


class Threads:
    """One host's, started when they are first needed. Used from its loop, and from the lane's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depths: dict[int, _Depth] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pooled: set[_Work] = set()
        """What is on the pool's threads; beyond these each has a thread of its own."""

    async def run(self, invocation: Invocation) -> Any:
        """Calls the function on a thread.

        Raises:
            Overloaded: there is none.
            CancelledError: the call was ended before it had one, or while it ran: then this ends no
                sooner than the function.
        """
        work = _Work(invocation)
        ended = asyncio.wrap_future(work.outcome)
        self._add(work, asyncio.get_running_loop())
        cancelled: asyncio.CancelledError | None = None
        while not ended.done():
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError as error:
                cancelled = error
                if not work.ends:
                    self._take_back(work)
        if work.refusal is not None:
            raise work.refusal
        if cancelled is not None:
            raise cancelled
        result, raised = ended.result()
        if raised is not None:
            raise raised
        return await result if hasattr(result, "__await__") else result

    def close(self) -> None:
        """Starts nothing more; what runs goes on."""
        with self._lock:
            pool, self._pool = self._pool, None
            for depth in self._depths.values():
                for work in [*depth.waiting, *depth.held]:
                    if work.outcome.cancel():
                        depth.held.discard(work)
                        self._pooled.discard(work)
                depth.waiting.clear()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _add(self, work: _Work, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            depth = self._depths.setdefault(work.depth, _Depth())
            work.since = loop.time()
            if work.ends:
                depth.waiting.appendleft(work)
            else:
                depth.waiting.append(work)
            self._start_waiting(depth)
            if depth.waiting and not depth.looked_at:
                depth.looked_at = True
                loop.call_later(LOOK_EVERY_S, self._look, depth, loop)

    def _look(self, depth: _Depth, loop: asyncio.AbstractEventLoop) -> None:
        """Looks again whether what waits may have a thread, for as long as something waits."""
        with self._lock:
            self._start_waiting(depth)
            if len(depth.held) >= BLOCKING_THREADS_HELD_MAX:
                came_before = loop.time() - BLOCKING_THREAD_WAIT_S
                for work in list(depth.waiting):
                    if work.since <= came_before and not work.ends:
                        depth.waiting.remove(work)
                        work.refuse(
                            f"{len(depth.held):,} blocking methods of this host, most of which "
                            "wait for other objects, have held all threads for "
                            f"{BLOCKING_THREAD_WAIT_S:g} s: back off, and let methods that wait "
                            "for others be async"
                        )
            depth.looked_at = bool(depth.waiting)
            if depth.looked_at:
                loop.call_later(LOOK_EVERY_S, self._look, depth, loop)

    def _take_back(self, work: _Work) -> None:
        """Whatever has not begun does not begin."""
        with self._lock:
            depth = self._depths[work.depth]
            if work.outcome.cancel() and work in depth.waiting:
                depth.waiting.remove(work)

    def _start_waiting(self, depth: _Depth) -> None:
        while depth.waiting and depth.has_room(depth.waiting[0]):
            work = depth.waiting.popleft()
            depth.held.add(work)
            try:
                self._start(work)
            except RuntimeError as error:  # the operating system has no more
                self._release(work)
                work.refuse(f"this host cannot start a thread more ({error}): back off")

    def _start(self, work: _Work) -> None:
        if len(self._pooled) < BLOCKING_THREADS_MAX:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(BLOCKING_THREADS_MAX, NAME)
            self._pooled.add(work)
            self._pool.submit(self._run, work)
        else:
            threading.Thread(target=self._run, args=(work,), name=NAME, daemon=True).start()

    def _release(self, work: _Work) -> None:
        self._depths[work.depth].held.discard(work)
        self._pooled.discard(work)

    def _run(self, work: _Work) -> None:
        """On a thread: does it, unless it was taken back, and gives the thread to the next."""
        outcome = work.call() if work.outcome.set_running_or_notify_cancel() else None
        with self._lock:
            self._release(work)
            self._start_waiting(self._depths[work.depth])
        if outcome is not None:
            work.outcome.set_result(outcome)


class _Depth:
    """The threads of one depth.

    Attributes:
        held: what has a thread.
        waiting: what waits for one, in order.
        looked_at: `_look` comes again.
    """

    def __init__(self) -> None:
        self.held: set[_Work] = set()
        self.waiting: deque[_Work] = deque()
        self.looked_at = False

    def has_room(self, work: _Work) -> bool:
        """Whether this may have a thread now."""
        if len(self.held) < BLOCKING_THREADS_MAX:
            return True
        if len(self.held) >= BLOCKING_THREADS_HELD_MAX:
            return False
        return work.ends or sum(not each.waits for each in self.held) < BLOCKING_THREADS_MAX


class _Work:
    """A function that is to run on a thread.

    Attributes:
        depth: the number of objects that wait for its call.
        ends: its call was ended before, and this is what is left to do.
        since: when it began to wait for a thread, by the loop's clock.
        outcome: what the function has returned or raised. Cancelled where it did not run.
        refusal: why it has got no thread.
    """

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self._variables = contextvars.copy_context()
        self._context = context = current_call.get()
        # A concurrent method is in no chain, for it holds up no object. `held` has every call that
        # another one makes, so those of a concurrent method lie below it, too.
        self.depth = 0 if context is None else len(context.call.chain) + context.call.held
        self.ends = context is not None and context.ending is not None
        self.since = 0.0
        self.outcome: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        self.refusal: Overloaded | None = None

    @property
    def waits(self) -> bool:
        """Whether its method waits for another object at this moment."""
        return self._context is not None and bool(self._context.awaits)

    def refuse(self, why: str) -> None:
        """It gets no thread."""
        self.refusal = Overloaded(why)
        self.outcome.cancel()

    def call(self) -> Outcome:
        """Calls the function. What it raises is returned: a future takes no StopIteration."""
        try:
            return self._variables.run(_call, self._invocation), None
        except BaseException as error:
            return None, error


def _call(invocation: Invocation) -> Any:
    return invocation.function(*invocation.arguments, **invocation.keywords)
