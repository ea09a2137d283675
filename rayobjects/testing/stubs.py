"""Stubs of a host without Ray: the same calls as those of `rayobjects.runtime.stubs`, sent to the
`LocalHost` that handed the stub out, or around which it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayobjects.errors import InvalidCall, misuse
from rayobjects.ids import ObjectId, check_object_name
from rayobjects.limits import CALL_BYTES_MAX
from rayobjects.messages import (
    ITEMS,
    PICKLE,
    SYSTEM,
    WHOLE,
    Call,
    Reply,
)
from rayobjects.objects import carried, tracing
from rayobjects.objects.arguments import check_timeout, id_of_key, pickled, use_key
from rayobjects.objects.context import current_call, local_router
from rayobjects.objects.python_only import PythonOnly
from rayobjects.objects.response import CallRouter, Response


class LocalResponse(Response[Any]):
    """A call's result to come: await it, as often as you like. If the method is a generator, read
    it once: `async for item in response`."""

    __slots__ = ()

    @property
    def sequence(self) -> int:
        """Of the call's journal record; 0 if it wrote none, or has not been answered."""
        return self._outcome.sequence if isinstance(self._outcome, Reply) else 0


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
        called = f"{self._stub.id.class_name}.{self._method}"
        body = pickled(called, args, kwargs)
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
        caller = (context, call.id) if call.id else None
    else:
        call.context = carried.outgoing(None)
    response = LocalResponse(router, (*stub.id, method), encoding, caller)
    response._call = call
    router.submit(call, tracing.calling(call, response._replied), context)
    return response
