"""Filters: functions around each call of a method, on the object's host (`ro.init(filters=…)`).

    async def audit(call, proceed):
        if call.context.get("tenant") != "acme":
            raise PermissionError("not yours")
        return await proceed()

The first filter of the list is the outermost. What they do belongs to the call: they run in its
turn and in its transaction, so what they write to the object is committed with it, and what they
raise rolls it back and goes to the caller, like what the method raises. A repetition of a finished
call is answered from the journal and runs neither. A call that is run again after a crash runs its
filters again: like a method, a filter must make the same calls to other objects in a rerun.

Around which calls: those of stubs, told messages, HTTP, WebSockets (on_connect, on_message,
on_close), raw requests and schedules. Not around the runtime's own (`stub.delete()`, reading state
for people) nor on_start, on_stop and on_upgrade.

Where there are no filters, a call costs one test of an attribute more. Where one of them does not
load on a host, every call there fails and says why: a filter may be what keeps people out.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rayobjects.errors import InvalidCall, miscalled
from rayobjects.ids import ObjectId
from rayobjects.messages import JSON, PICKLE, REQUEST, SCHEDULED, SOCKET, SYSTEM, Call
from rayobjects.objects import carried
from rayobjects.objects.request_context import context

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.invocation import Invocation

Proceed: TypeAlias = Callable[[], Awaitable[Any]]
"""Goes on with the call: the next filter, then the method. May be called once."""

KINDS = {PICKLE: "stub", JSON: "http", SOCKET: "socket", REQUEST: "request", SCHEDULED: "schedule"}


class Filter(Protocol):
    """A filter: an async function, or an object whose `__call__` is one."""

    async def __call__(self, call: MethodCall, proceed: Proceed) -> Any: ...


class MethodCall:
    """A call of an object's method, as filters see it.

    Attributes:
        id: the object's id.
        method: the method's name.
        kind: "stub" (also for what was told), "http" (also from the command line), "socket",
            "request" or "schedule".
        context: what the call carries along (`ro.context()`), to be read and changed: the method
            sees the changes, and they travel on with what it calls.
        function: the method as the class defines it.
        instance: the object itself: what is written to it belongs to the call.
    """

    __slots__ = ("_bound", "_call", "_invocation", "function", "id", "instance", "kind", "method")

    def __init__(
        self, activation: Activation, call: Call, instance: Any, invocation: Invocation
    ) -> None:
        self.id: ObjectId = activation.shown
        self.method = call.method
        self.kind = KINDS[call.encoding]
        self.function: Callable[..., Any] = inspect.unwrap(invocation.function)
        self.instance = instance
        self._call = call
        self._invocation = invocation
        self._bound: inspect.BoundArguments | None = None

    @property
    def context(self) -> dict[str, str]:
        if self._call.context is None:
            self._call.context = {}
        return self._call.context

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name, defaults included; change them here, or assign others. Over HTTP
        they have been checked against the signature before.

        Raises:
            InvalidCall: they do not fit the method.
        """
        if self._bound is None:
            signature = _signature_of(self.function)
            given = self._invocation
            try:
                self._bound = signature.bind(*given.arguments[1:], **given.keywords)
            except TypeError as error:
                called = f"{self.id}.{self.method}"
                raise miscalled(called, f"{called}: {error}") from None
            self._bound.apply_defaults()
        return self._bound.arguments

    @arguments.setter
    def arguments(self, values: dict[str, Any]) -> None:
        bound = inspect.BoundArguments(_signature_of(self.function), {})
        bound.arguments = dict(values)
        self._bound = bound

    @property
    def caller(self) -> str:
        """Who calls; see `ro.RequestContext`."""
        return context().caller

    def invocation(self) -> Invocation:
        """What is to run, with the arguments as they are now."""
        bound = self._bound
        if bound is None:
            return self._invocation
        unknown = bound.arguments.keys() - bound.signature.parameters.keys()
        if unknown:
            raise InvalidCall(
                f"a filter gave {self.id}.{self.method} the argument {min(unknown)!r}, which it "
                "does not have",
                status=500,
            )
        bound.apply_defaults()
        return self._invocation._replace(
            arguments=(self.instance, *bound.args), keywords=bound.kwargs
        )

    def __repr__(self) -> str:
        return f"<{self.kind} call of {self.id}.{self.method}>"


def filtered(activation: Activation, call: Call, invocation: Invocation) -> Invocation:
    """The invocation with the host's filters around it; to be asked only where there are some."""
    if call.encoding in (SYSTEM, SOCKET) or not invocation.arguments:
        return invocation  # those of sockets are around their hooks
    around = Around(activation, call, invocation)
    return invocation._replace(function=around, is_async=True, blocking=False)


class Around:
    """A host's filters with a method in the middle; to be called like that.

    Args:
        invocation: of the method; the arguments do not matter.
    """

    __slots__ = ("_activation", "_call", "_filters", "_invocation")

    def __init__(self, activation: Activation, call: Call, invocation: Invocation) -> None:
        self._activation = activation
        self._call = call
        self._invocation = invocation
        self._filters: Sequence[Filter] = activation.host.filters or ()

    async def __call__(self, instance: Any, *args: Any, **keywords: Any) -> Any:
        given = self._invocation._replace(arguments=(instance, *args), keywords=keywords)
        call = self._call
        call.context = dict(call.context) if call.context else None  # filters may change it
        return await self._step(MethodCall(self._activation, call, instance, given), 0)

    async def _step(self, call: MethodCall, position: int) -> Any:
        if position == len(self._filters):
            return await self._run(call)
        went_on = False

        async def proceed() -> Any:
            nonlocal went_on
            if went_on:
                raise RuntimeError("a filter may go on with a call once, and has done so already")
            went_on = True
            return await self._step(call, position + 1)

        return await self._filters[position](call, proceed)

    async def _run(self, call: MethodCall) -> Any:
        carrying = self._call.context
        if carrying:
            carried.check(carrying)
        else:
            self._call.context = None
        invocation = call.invocation()
        if invocation.blocking:
            return await self._activation.host.threads.run(invocation)
        result = invocation.function(*invocation.arguments, **invocation.keywords)
        return await result if hasattr(result, "__await__") else result


def check(filters: Iterable[object]) -> tuple[Filter, ...]:
    """Checks that these are filters.

    Raises:
        InvalidCall: one is no async function.
    """
    found: list[Any] = list(filters)
    for each in found:
        call = getattr(each, "__call__", None)  # noqa: B004  (what it is matters, not whether)
        is_async = any(map(inspect.iscoroutinefunction, (each, call)))
        if isinstance(each, type) or not is_async or not _takes_two(each):
            raise InvalidCall(
                f"{each!r} is no filter: write async def name(call, proceed), which returns what "
                "`await proceed()` does"
            )
    return tuple(found)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def refusing(error: InvalidCall) -> Filter:
    """Stands for filters that could not be loaded."""

    async def refuse(call: MethodCall, proceed: Proceed) -> Any:
        raise error

    return refuse


@lru_cache(maxsize=1_024)
def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A method's signature without its instance. All parameters may be given by name, as HTTP
    does."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD)
        if parameter.kind is parameter.POSITIONAL_ONLY
        else parameter
        for parameter in list(signature.parameters.values())[1:]
    ]
    return signature.replace(parameters=parameters)
