"""Namespaces and stubs: what callers hold. They name objects, wake nothing, can be pickled and
never go stale.

Ray is imported with the first call that needs it, which takes a second: objects under test, in a
host without Ray, use stubs as well.
"""

from __future__ import annotations

import asyncio
import builtins
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rayobjects.errors import InvalidCall, misuse
from rayobjects.ids import ObjectId, check_object_name
from rayobjects.limits import CALL_BYTES_MAX, PAGE_KEYS_MAX
from rayobjects.messages import ITEMS, PICKLE, SYSTEM, WHOLE, Call
from rayobjects.objects import carried, tracing
from rayobjects.objects.arguments import check_timeout, id_of_key, pickled, use_key
from rayobjects.objects.context import current_call, local_router
from rayobjects.objects.python_only import PythonOnly
from rayobjects.objects.response import Response

if TYPE_CHECKING:
    from rayobjects.objects.model import DurableObject
    from rayobjects.runtime.router import Router

T = TypeVar("T")

_process: Any = None
"""The module of this name, once it is needed."""


class Namespace(Generic[T]):
    """All objects of one class: those that exist and those that could."""

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name

    def get(self, name: str) -> Stub:
        """A stub of the object of this name. Costs nothing; the object wakes with the first call.

        Raises:
            InvalidCall: an object cannot have this name (empty, over 1,024 bytes, not UTF-8).
        """
        return Stub(self.class_name, check_object_name(name))

    def create(self) -> Stub:
        """A stub of an object under a new random name, which no other object has. Costs nothing;
        like any other, the object exists from its first write on. In a method the name follows
        from the running call, so that a repetition of the call makes the same one."""
        context = current_call.get()
        name = context.new_name() if context is not None else ""
        return Stub(self.class_name, name or uuid.uuid4().hex)

    def list(self, prefix: str = "", after: str = "", limit: int = 100) -> list[str]:
        """Names of the objects that exist, sorted.

        Args:
            prefix: only names that begin with it.
            after: only names behind this one: the last of the page before.
            limit: at most so many, 1 to 1,000.

        Raises:
            InvalidCall: unknown class, or a limit out of bounds; also if called on the event loop
                of a method (use `list_async` there).
        """
        router = _router()
        if router.must_not_wait():
            raise misuse("use `await namespace.list_async(…)` in a method")
        limit = _checked_limit(limit)
        return router.question(
            lambda: router.list_objects(self.class_name, prefix, after, limit)
        ).result()

    async def list_async(
        self, prefix: str = "", after: str = "", limit: int = 100
    ) -> builtins.list[str]:
        """The same as `list`, for async code."""
        router = _router()
        limit = _checked_limit(limit)
        if router.runs_here():
            return await router.list_objects(self.class_name, prefix, after, limit)
        return await asyncio.wrap_future(
            router.question(lambda: router.list_objects(self.class_name, prefix, after, limit))
        )

    def exists(self, name: str) -> bool:
        """Whether the object of this name exists: something is stored for it. Wakes nothing.

        Raises:
            InvalidCall: unknown class, or a name that no object can have; also if called on the
                event loop of a method (use `exists_async` there).
        """
        router = _router()
        if router.must_not_wait():
            raise misuse("use `await namespace.exists_async(…)` in a method")
        check_object_name(name)
        return router.question(lambda: router.object_exists(self.class_name, name)).result()

    async def exists_async(self, name: str) -> bool:
        """The same as `exists`, for async code."""
        router = _router()
        check_object_name(name)
        if router.runs_here():
            return await router.object_exists(self.class_name, name)
        return await asyncio.wrap_future(
            router.question(lambda: router.object_exists(self.class_name, name))
        )

    def __repr__(self) -> str:
        return f"<Namespace {self.class_name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Namespace, (self.class_name,))


class Stub(PythonOnly):
    """One object, from afar: `stub.method.remote(…)` calls it."""

    __slots__ = ("_call_id", "_class_name", "_name", "_timeout_s")

    def __init__(
        self, class_name: str, name: str, timeout_s: float = 0.0, call_id: str = ""
    ) -> None:
        self._class_name = class_name
        self._name = name
        self._timeout_s = timeout_s
        self._call_id = call_id

    def options(
        self, *, timeout_s: float | None = None, idempotency_key: str | None = None
    ) -> Stub:
        """A stub of the same object with other options.

        Args:
            timeout_s: calls end after so many seconds: one that waits for its turn is not run, one
                that runs is cancelled where it awaits something, and rolled back. The calls that it
                makes have what is left. Then the caller gets DeadlineExceeded.
            idempotency_key: of one call, as over HTTP: whoever makes the same call with the same
                key again, from any process and within ten minutes, gets its reply, and it is
                applied once. For a caller that repeats a call which it does not know the outcome
                of, and not for the calls of a method, which are applied once as they are.

        Raises:
            InvalidCall: the timeout is no positive number, or the key no printable ASCII.
        """
        return Stub(
            self._class_name,
            self._name,
            self._timeout_s if timeout_s is None else check_timeout(timeout_s),
            self._call_id if idempotency_key is None else id_of_key(idempotency_key),
        )

    @property
    def id(self) -> ObjectId:
        """The object's id."""
        return ObjectId(self._class_name, self._name)

    def __getattr__(self, method: str) -> RemoteMethod:
        if method.startswith("_"):
            raise AttributeError(
                f"{self._class_name}.{method} cannot be called from outside: its name begins with _"
            )
        return RemoteMethod(self, method)

    def delete(self) -> Response[bool]:
        """Deletes the object with all that it has; the result says whether it existed."""
        return send(self._class_name, self._name, "delete", SYSTEM, b"")

    def __repr__(self) -> str:
        return f"<stub of {self._class_name}/{self._name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stub) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Stub, (self._class_name, self._name, self._timeout_s, self._call_id))


class RemoteMethod:
    """A method of an object that is elsewhere."""

    __slots__ = ("_method", "_stub")

    def __init__(self, stub: Stub, method: str) -> None:
        self._stub = stub
        self._method = method

    @property
    def _called(self) -> str:
        """For people."""
        return f"{self._stub._class_name}.{self._method}"

    def remote(self, *args: Any, **kwargs: Any) -> Response[Any]:
        """Calls the method; returns at once. The response is awaited, or, if the method is a
        generator, read: `async for item in stub.method.remote(…)`.

        Calls that one caller sends to one object run in the order in which they were sent.

        Raises:
            InvalidCall: an argument cannot be pickled, or all of them have over 64 MiB.
        """
        body = self._pickled(args, kwargs)
        stub = self._stub
        return send(
            stub._class_name,
            stub._name,
            self._method,
            PICKLE,
            body,
            lambda: (args, kwargs),
            stub._timeout_s,
            stub._call_id,
        )

    def tell(self, *args: Any, **kwargs: Any) -> None:
        """Tells the object something, from a method of another: a call without an answer that
        belongs to the running call's transaction. It is sent only if that call takes effect, and
        then the method is called exactly once, and in order with whatever else the one object
        tells the other, whoever crashes.

        Raises:
            InvalidCall: not inside a method of a durable object, or the arguments cannot be
                pickled or are too large.
        """
        stub, context = self._stub, current_call.get()
        if context is None:
            raise misuse(
                f"{self._called}.tell(…) belongs to the running call of a durable object, and "
                "none is running here: use .remote(…)"
            )
        body = self._pickled(args, kwargs)
        context.tell(stub._class_name, stub._name, self._method, body, (args, kwargs))

    def _pickled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        body = pickled(self._called, args, kwargs)
        if len(body) > CALL_BYTES_MAX:
            raise InvalidCall(
                f"the arguments of {self._called} have {len(body):,} bytes; at most "
                f"{CALL_BYTES_MAX:,} are allowed: put large data into an object store and pass its "
                "address"
            )
        return body

    def __repr__(self) -> str:
        stub = self._stub
        return (
            f"<remote method {stub._class_name}/{stub._name}.{self._method}: call it with "
            ".remote(…)>"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise misuse(
            f"{self._called} runs elsewhere: call .{self._method}.remote(…) and await the "
            "response, or ask for its .result()"
        )


def namespace(class_: str | type[DurableObject]) -> Namespace[Any]:
    """The namespace of a deployed class, by its name; the class itself need not be at hand."""
    return Namespace(class_ if isinstance(class_, str) else class_.__name__)


def _router() -> Router:
    """What brings the calls of this place to objects."""
    global _process
    local: Router | None = local_router.get()
    if local is not None:
        return local
    if _process is None:
        from rayobjects.runtime import process

        _process = process
    router: Router = _process.router()
    return router


def send(
    class_name: str,
    name: str,
    method: str,
    encoding: int,
    args: bytes,
    values_of: Callable[[], Any] = lambda: None,
    timeout_s: float = 0.0,
    call_id: str = "",
) -> Response[Any]:
    """Sends a call, on behalf of the running call if there is one.

    Args:
        values_of: gives the arguments themselves.
        timeout_s: the host ends the call after so many seconds; 0: it does not.
        call_id: chosen by the caller.
    """
    router = _router()
    takes = ITEMS if encoding == PICKLE else WHOLE
    call = Call(
        0, class_name, name, method, encoding, args, call_id, timeout_s=timeout_s, takes=takes
    )
    context = current_call.get()
    if call_id:
        use_key(call, values_of(), context)
    caller = None
    if context is not None:
        context.adopt(call, values_of())
        caller = (context, call.id) if call.id else None
    else:
        call.context = carried.outgoing(None)
    response: Response[Any] = Response(router, (class_name, name, method), encoding, caller)
    response._call = call
    if call.timeout_s:
        router.loop.call_soon_threadsafe(response._expire, call.timeout_s)
    router.submit(call, tracing.calling(call, response._replied), context)
    return response


def _checked_limit(limit: int) -> int:
    if not isinstance(limit, int) or not 1 <= limit <= PAGE_KEYS_MAX:
        raise InvalidCall(f"limit is a whole number from 1 to {PAGE_KEYS_MAX:,}, not {limit!r}")
    return limit
