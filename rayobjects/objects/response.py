"""The answer to a call that is still under way, in the manner of Ray Serve's DeploymentResponse."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from rayobjects.errors import DeadlineExceeded, InvalidCall, RayObjectsError, from_wire, misuse
from rayobjects.messages import END, NOT_AWAITED, OK, PICKLE, Call, Reply
from rayobjects.objects.reading import Opened, Reading, StreamReader, Unread, not_awaited
from rayobjects.storage import values

if TYPE_CHECKING:
    from rayobjects.objects.context import CallContext

T = TypeVar("T")


class CallRouter(Protocol):
    """What stubs and responses need of whatever brings their calls to objects."""

    loop: asyncio.AbstractEventLoop

    def runs_here(self) -> bool:
        """Whether the caller is on the router's own loop."""
        ...

    def must_not_wait(self) -> bool:
        """Whether the caller is on a loop that must not wait for an answer."""
        ...

    def submit(
        self,
        call: Call,
        replied: Callable[[Reply | RayObjectsError], None],
        context: CallContext | None,
    ) -> None:
        """Sends a call, from any thread."""
        ...

    def cancel(self, call: Call) -> None:
        """Has a call ended if it still can be, from any thread."""
        ...

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Resolves a future of any loop."""
        ...


EXPIRED_GRACE_S = 1.0
"""The host ends a call at its deadline; for so long its answer may be on its way."""


class Response(Generic[T]):
    """A call's result to come: `await response`, or `response.result(timeout_s=)` from plain code.

    It may be asked several times, from several threads and loops. Giving up on it does not stop
    the call.

    If the method is a generator, its items come as a stream, which can be read once: `async for
    item in response`, or `for` in plain code. Whoever stops reading before its end, or drops the
    response unread, closes the stream.
    """

    __slots__ = (
        "_call",
        "_called",
        "_caller",
        "_encoding",
        "_outcome",
        "_router",
        "_timer",
        "_waiters",
    )

    rayobjects_no_json = NOT_AWAITED

    def __init__(
        self,
        router: CallRouter,
        called: tuple[str, str, str],
        encoding: int,
        caller: tuple[CallContext, str] | None = None,
    ) -> None:
        self._router = router
        self._called = called
        self._encoding = encoding
        self._outcome: Reply | RayObjectsError | Unread | None = None
        self._waiters: list[Any] = []
        self._call: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._caller = caller  # the running call that made it, and the id that it gave it

    @contextmanager
    def _awaited(self) -> Iterator[None]:
        """While somebody waits for it: the running call waits for that object (`deadlocks`)."""
        if self._caller is None:
            yield
            return
        context, call_id = self._caller
        context.awaits[call_id] = self._called[:2]
        try:
            yield
        finally:
            context.awaits.pop(call_id, None)

    @property
    def _target(self) -> str:
        return "{}/{}.{}".format(*self._called)

    def done(self) -> bool:
        """Whether the result is there."""
        return self._outcome is not None

    def cancel(self) -> None:
        """Takes the call back: if it still waits for its turn it is not run, if it runs it is
        cancelled where it awaits something, and rolled back; then the response fails with
        `Cancelled`. Where it is too late for that the response brings what it would have. What the
        method had asked of other objects is not undone. Returns at once.
        """
        under_way = self._outcome is None or isinstance(self._outcome, Unread)
        if under_way and self._call is not None:
            self._router.cancel(self._call)

    def result(self, timeout_s: float | None = None) -> T:
        """Waits for the result and returns it.

        Args:
            timeout_s: for how many seconds; None waits as long as it takes.

        Raises:
            DeadlineExceeded: it took longer. The call goes on, and may be asked for again.
            InvalidCall: asked on an event loop that the answer needs: await it instead. Or the
                method is a generator.
            RayObjectsError: the call failed.
        """
        self._wait_blocking(timeout_s)
        return self._unpacked()

    def _wait_blocking(self, timeout_s: float | None) -> None:
        if self._outcome is None:
            if self._router.must_not_wait():
                raise misuse(
                    f"{self._target}: .result() would wait for ever here, because it holds up the "
                    "event loop that brings the answer: `await` the response instead (make the "
                    "method `async def`, or mark it `@ro.blocking` to wait on a thread)"
                )
            event = threading.Event()
            self._waiters.append(event)
            with self._awaited():
                if self._outcome is None and not event.wait(timeout_s):
                    raise DeadlineExceeded(
                        f"{self._target} has not answered within {timeout_s:g} s; it may still "
                        "take effect: ask this response again"
                    )

    def __await__(self) -> Generator[Any, None, T]:
        yield from self._wait()
        return self._unpacked()

    def _wait(self) -> Generator[Any, None, None]:
        if self._outcome is None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._waiters.append((loop, future))
            # The other thread sets the outcome first and looks at the waiters second, this one
            # adds the waiter first and looks at the outcome second: one of them sees the other.
            if self._outcome is None:
                if self._caller is None:  # the common case, without the cost of a `with`
                    yield from future
                else:
                    with self._awaited():
                        yield from future

    def __aiter__(self) -> StreamReader[Any]:
        return StreamReader(self)

    def __iter__(self) -> StreamReader[Any]:
        return StreamReader(self)

    def _expire(self, timeout_s: float) -> None:
        """On the router's loop: gives up if the host has not done so some time after it should."""
        error = DeadlineExceeded(
            f"{self._target} has not answered within {timeout_s:g} s, nor said that it was rolled "
            "back: it may have taken effect"
        )
        after_s = timeout_s + EXPIRED_GRACE_S
        self._timer = self._router.loop.call_later(after_s, self._replied, error)

    def _replied(self, outcome: Reply | RayObjectsError) -> None:
        if self._outcome is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if type(outcome) is Opened:
            if self._encoding != PICKLE:
                return  # all items come in one reply
            self._outcome = Unread(Reading(self._router, outcome))
        else:
            self._outcome = outcome
        for waiter in self._waiters:
            if type(waiter) is tuple:
                self._router.wake(*waiter)
            else:
                waiter.set()

    def _unpacked(self) -> T:
        outcome = self._outcome
        if isinstance(outcome, Reply):
            if outcome.status == OK:
                try:
                    load = values.load if self._encoding == PICKLE else json.loads
                    result: T = load(outcome.body)
                except Exception as error:
                    raise InvalidCall(
                        f"the result of {self._target} could not be unpickled here "
                        f"({type(error).__name__}: {error}): install the same packages as on the "
                        "hosts, or return plain data"
                    ) from error
                return result
            if outcome.status == END:
                raise not_awaited(self._target, None)
            raise from_wire(outcome.body)
        assert outcome is not None
        if isinstance(outcome, Unread):
            raise not_awaited(self._target, outcome)
        raise outcome

    def __reduce__(self) -> NoReturn:
        raise misuse(NOT_AWAITED)

    def __repr__(self) -> str:
        return f"<Response of {self._target}, {'done' if self.done() else 'under way'}>"
