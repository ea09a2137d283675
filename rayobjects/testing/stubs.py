"""Stubs of a host without Ray: the same calls as those of `rayobjects.runtime.stubs`, sent to the
`LocalHost` that handed the stub out, or around which it is used."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from rayobjects.errors import InvalidCall, RayObjectsError, from_wire, misuse
from rayobjects.ids import ObjectId, check_object_name
from rayobjects.limits import CALL_BYTES_MAX
from rayobjects.messages import (
    END,
    ITEMS,
    NOT_AWAITED,
    OK,
    PICKLE,
    SYSTEM,
    WHOLE,
    Call,
    Reply,
)
from rayobjects.objects import carried, tracing
from rayobjects.objects.arguments import check_timeout, id_of_key, use_key
from rayobjects.objects.context import CallContext, current_call, local_router
from rayobjects.objects.python_only import PythonOnly
from rayobjects.objects.reading import Opened, Reading, StreamReader, Unread, not_awaited
from rayobjects.storage import values


class CallRouter(Protocol):
    """What stubs need of their host."""

    loop: asyncio.AbstractEventLoop

    def runs_here(self) -> bool: ...

    def submit(
        self,
        call: Call,
        replied: Callable[[Reply | RayObjectsError], None],
        context: CallContext | None,
    ) -> None: ...

    def cancel(self, call: Call) -> None: ...

    def wake(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None: ...


class LocalResponse:
    """A call's result to come: await it, as often as you like. If the method is a generator, read
    it once: `async for item in response`."""

    rayobjects_no_json = NOT_AWAITED

    def __init__(
        self,
        router: CallRouter,
        target: str,
        encoding: int,
        caller: tuple[CallContext, str, tuple[str, str]] | None = None,
    ) -> None:
        self._caller = caller  # the running call, the id that it gave this one, and its object
        self._router = router
        self._target = target
        self._encoding = encoding
        self._outcome: Reply | RayObjectsError | Unread | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._call: Call | None = None

    def cancel(self) -> None:
        """Takes the call back, if it is not too late: it is rolled back, and the response fails
        with `Cancelled`."""
        under_way = self._outcome is None or isinstance(self._outcome, Unread)
        if under_way and self._call is not None:
            self._router.cancel(self._call)

    def done(self) -> bool:
        """Whether the result is there."""
        return self._outcome is not None

    def result(self, timeout_s: float | None = None) -> Any:
        """The result, if it is there already.

        Raises:
            InvalidCall: it is not: the host lives on this very event loop, so await it.
        """
        self._wait_blocking()
        return self._unpacked()

    def _wait_blocking(self, timeout_s: float | None = None) -> None:
        if self._outcome is None:
            raise misuse(
                f"{self._target}: .result() would wait for ever here, because it holds up the "
                "event loop that brings the answer: `await` the response instead (make the "
                "method `async def`, or mark it `@ro.blocking` to wait on a thread)"
            )

    @property
    def sequence(self) -> int:
        """Of the call's journal record; 0 if it wrote none, or has not been answered."""
        return self._outcome.sequence if isinstance(self._outcome, Reply) else 0

    def __aiter__(self) -> StreamReader[Any]:
        return StreamReader(self)

    def __await__(self) -> Generator[Any, None, Any]:
        yield from self._wait()
        return self._unpacked()

    @contextmanager
    def _awaited(self) -> Iterator[None]:
        if self._caller is None:
            yield
            return
        context, call_id, at = self._caller
        context.awaits[call_id] = at
        try:
            yield
        finally:
            context.awaits.pop(call_id, None)

    def _wait(self) -> Generator[Any, None, None]:
        if self._outcome is None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._waiters.append((loop, future))
            if self._outcome is None:  # it may have come in on another thread
                with self._awaited():
                    yield from future

    def _replied(self, outcome: Reply | RayObjectsError) -> None:
        if type(outcome) is Opened:
            if self._encoding != PICKLE:
                return  # all items come in one reply
            self._outcome = Unread(Reading(self._router, outcome))
        else:
            self._outcome = outcome
        for loop, future in self._waiters:
            self._router.wake(loop, future)

    def _unpacked(self) -> Any:
        outcome = self._outcome
        if isinstance(outcome, Reply):
            if outcome.status == END:
                raise not_awaited(self._target, None)
            if outcome.status != OK:
                raise from_wire(outcome.body)
            if self._encoding == PICKLE:
                return values.load(outcome.body)
            return json.loads(outcome.body) if outcome.body else None
        assert outcome is not None
        if isinstance(outcome, Unread):
            raise not_awaited(self._target, outcome)
        raise outcome

    def __reduce__(self) -> NoReturn:
        raise misuse(NOT_AWAITED)

    def __repr__(self) -> str:
        return f"<LocalResponse of {self._target}, {'done' if self.done() else 'under way'}>"


class LocalStub(PythonOnly):
    """One object of a `LocalHost`: `await stub.method.remote(…)` calls it."""

    __slots__ = ("_call_id", "_class_name", "_name", "_router", "_timeout_s")

    def __init__(
        self,
        class_name: str,
        name: str,
        router: CallRouter | None = None,
        timeout_s: float = 0.0,
        call_id: str = "",
    ) -> None:
        self._call_id = call_id
        self._class_name = class_name
        self._name = check_object_name(name)
        self._router = router
        self._timeout_s = timeout_s

    def options(
        self, *, timeout_s: float | None = None, idempotency_key: str | None = None
    ) -> LocalStub:
        """A stub of the same object with other options, as `Stub.options` has them. The timeout is
        in seconds of real time.

        Raises:
            InvalidCall: the timeout is no positive number, or the key no printable ASCII.
        """
        return LocalStub(
            self._class_name,
            self._name,
            self._router,
            self._timeout_s if timeout_s is None else check_timeout(timeout_s),
            self._call_id if idempotency_key is None else id_of_key(idempotency_key),
        )

    @property
    def id(self) -> ObjectId:
        """The object's id."""
        return ObjectId(self._class_name, self._name)

    def __getattr__(self, method: str) -> LocalMethod:
        if method.startswith("_"):
            raise AttributeError(
                f"{self._class_name}.{method} cannot be called from outside: its name begins with _"
            )
        return LocalMethod(self, method)

    def delete(self) -> LocalResponse:
        """Deletes the object with all that it has; the result says whether it existed."""
        return send(self, "delete", SYSTEM, b"")

    def __repr__(self) -> str:
        return f"<stub of {self._class_name}/{self._name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStub) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LocalStub, (self._class_name, self._name))


class LocalMethod:
    """A method of an object of a `LocalHost`."""

    __slots__ = ("_method", "_stub")

    def __init__(self, stub: LocalStub, method: str) -> None:
        self._stub = stub
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> LocalResponse:
        """Calls the method; returns at once.

        Raises:
            InvalidCall: an argument cannot be pickled, or all of them have over 64 MiB.
        """
        return send(
            self._stub,
            self._method,
            PICKLE,
            self._pickled(args, kwargs),
            self._stub._call_id,
            values_of=lambda: (args, kwargs),
        )

    def tell(self, *args: Any, **kwargs: Any) -> None:
        """Tells the object something, from a method of another: sent if the running call takes
        effect, then applied exactly once, in order.

        Raises:
            InvalidCall: not inside a method of an object, or an argument cannot be pickled.
        """
        context = current_call.get()
        if context is None:
            raise misuse(
                f"{self._stub.id}.{self._method}.tell(…) belongs to the running call of an "
                "object, and none is running here: use .remote(…)"
            )
        context.tell(*self._stub.id, self._method, self._pickled(args, kwargs), (args, kwargs))

    def _pickled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        body = values.dump((args, kwargs))
        if len(body) > CALL_BYTES_MAX:
            raise InvalidCall(
                f"the arguments of {self._stub.id}.{self._method} have {len(body):,} bytes; at "
                f"most {CALL_BYTES_MAX:,} are allowed"
            )
        return body

    def __repr__(self) -> str:
        return f"<remote method {self._stub.id}.{self._method}: call it with .remote(…)>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise misuse(
            f"{self._stub.id}.{self._method} runs elsewhere: await .{self._method}.remote(…)"
        )


def send(
    stub: LocalStub,
    method: str,
    encoding: int,
    args: bytes,
    call_id: str = "",
    values_of: Callable[[], Any] = lambda: None,
) -> LocalResponse:
    """Sends a call, on behalf of the running call if there is one.

    Args:
        call_id: given by the caller, such as an Idempotency-Key.
        values_of: gives the arguments themselves.

    Raises:
        InvalidCall: no `LocalHost` is open here.
    """
    router = stub._router or local_router.get()
    if router is None:
        raise InvalidCall("open a host first: `async with LocalHost([…]) as host:`")
    takes = ITEMS if encoding == PICKLE else WHOLE
    call = Call(
        0, *stub.id, method, encoding, args, call_id, timeout_s=stub._timeout_s, takes=takes
    )
    context = current_call.get()
    if call_id and encoding == PICKLE:  # of JSON the host makes it
        use_key(call, values_of(), context)
    caller = None
    if context is not None:
        context.adopt(call, values_of())
        caller = (context, call.id, (stub.id[0], stub.id[1])) if call.id else None
    else:
        call.context = carried.outgoing(None)
    response = LocalResponse(router, f"{stub.id}.{method}", encoding, caller)
    response._call = call
    router.submit(call, tracing.calling(call, response._replied), context)
    return response
