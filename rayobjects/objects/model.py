"""`DurableObject`: the base class of what users write.

An instance is made by the runtime only, by `create`: on first use, and again after the object has
slept, moved or been redeployed. So `__init__` takes no arguments and makes plain attributes;
what must last is a durable attribute or a key of `self.storage`.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeVar

import msgspec

from rayobjects.ids import ObjectId
from rayobjects.objects import marks, scheduling
from rayobjects.objects.fields import Field, declared_fields, is_immutable
from rayobjects.objects.scheduling import Schedule
from rayobjects.objects.sockets import Sockets
from rayobjects.objects.storage_map import StorageMap
from rayobjects.objects.websocket import WebSocket
from rayobjects.randomness import Random

if TYPE_CHECKING:
    from rayobjects.objects.concurrency import Turn
    from rayobjects.objects.http import Request
    from rayobjects.objects.state import State

F = TypeVar("F", bound=Callable[..., Any])

HOOKS = (
    *("on_upgrade", "on_start", "on_stop"),
    *("on_connect", "on_message", "on_close"),
    "on_request",
)
"""Methods that the runtime calls, and nobody else."""

HOSTINGS = ("shared", "dedicated")

_OWN = frozenset(
    [
        "abort",
        "id",
        "now",
        "random",
        "schedule",
        "scheduled",
        "sockets",
        "storage",
        "turn",
        "unschedule",
    ]
)
"""What an object has of the runtime, beside the hooks."""

_MUTABLE = (list, dict, set, bytearray, deque)

_CONSTANT = re.compile(r"\b(ClassVar|Final)\b")
"""In an annotation, which may be a string."""

_OF_STUBS = frozenset({"delete", "options"})
"""What a stub has of the runtime: `stub.delete()` deletes the object, whatever its class has."""


class ClassOptions(msgspec.Struct, frozen=True):
    """What a class says about itself: `class Model(ro.DurableObject, hosting="dedicated")`.

    Attributes:
        hosting: "shared" or "dedicated"; None leaves it to the deployment's settings.
        ray_options: options of the Ray actor that hosts its objects, for example `num_gpus`.
    """

    hosting: str | None = None
    ray_options: dict[str, Any] = {}


class DurableObject:
    """The base class of durable objects.

        class Counter(ro.DurableObject):
            count: int = ro.durable(0)

            def increment(self, by: int = 1) -> int:
                self.count += by
                return self.count

    Methods are `def` or `async def`; each call takes effect as a whole or, if it raises, not at
    all. A method whose name begins with `_` cannot be called from outside the object, one that is
    marked `@ro.internal` not over HTTP. The methods below that begin with `on_` are called by the
    runtime, and all may be left out.

    Class options:
        hosting: "shared" (default) or "dedicated": an actor of its own for each object.
        ray_options: options of the Ray actor, for example `{"num_gpus": 1}`.
    """

    __slots__ = ("__weakref__", "_durable_id", "_durable_sockets", "_durable_state")

    _durable_id: ObjectId
    _durable_state: State
    _durable_sockets: Sockets
    _durable_options: ClassVar[ClassOptions] = ClassOptions()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        cls._durable_options = _checked_options(cls, options)
        _check_names(cls)
        _check_defaults(cls)
        _check_overrides(cls)
        marks.check(cls, HOOKS)
        _check_hooks(cls)
        if "__init__" in vars(cls):
            _check_init(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        name = cls.__name__
        raise TypeError(
            f"{name} objects are made by the runtime: use ro.deploy({name}).get(name), or "
            "rayobjects.testing in a unit test"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"a {name} object cannot be pickled or copied: pass its name, or a stub "
            f"(ro.namespace({name!r}).get(…))"
        )

    @property
    def id(self) -> ObjectId:
        """The object's id: `self.id.class_name`, `self.id.name`."""
        return self._durable_id

    @property
    def storage(self) -> StorageMap:
        """The object's own key-value storage."""
        return self._durable_state.storage

    @property
    def sockets(self) -> Sockets:
        """The object's open WebSockets."""
        return self._durable_sockets

    def abort(self, reason: str) -> NoReturn:
        """Gives this activation up, from inside a method: for an object whose memory cannot be
        trusted any more.

        The running call is rolled back and fails with a MethodError that has the reason; it is no
        use to catch what this raises. Then the activation is dropped, without `on_stop`: what is in
        plain attributes is gone. Calls that wait, and those that come, begin anew with the state
        that was last committed. Sockets stay open.

        Args:
            reason: for the caller.

        Raises:
            RuntimeError: no call is under way.
        """
        self._durable_state.abort(str(reason))

    def turn(self) -> Turn:
        """The object's turn, for a method that is marked `@ro.concurrent`:

            async with self.turn():
                self.count += 1

        Waits until no other call has it. In the block the method reads and writes as others do,
        and what it wrote is committed when the block ends, or rolled back if it raises. In a
        method that has the turn anyway it changes nothing.

        Raises:
            RuntimeError: no call is under way, or this one has taken the turn already.
            Overloaded: too many calls wait for it.
        """
        from rayobjects.objects.concurrency import Turn  # which makes faces of this class

        context = scheduling.running()
        return Turn(context.concurrent, context.activation.host.loop)

    def schedule(
        self,
        method: Callable[..., Any] | str,
        *args: Any,
        at: datetime | float | None = None,
        after: timedelta | float | None = None,
        every: str | None = None,
        key: str | None = None,
        zone: str = "UTC",
        missed: str = "each",
        **keywords: Any,
    ) -> str:
        """Plans a call of one of the object's own methods; returns the schedule's key. It takes
        effect with the running call's other effects, and fires whatever dies until then: late
        rather than never, and its effects are applied once. One of `at`, `after` and `every` must
        be given.

        A method that raises is called again, by default 6 times after 2 s, 4 s, 8 s and so on
        (`ro.retries` changes that); then the schedule is listed by `rayobjects schedules`.

        Args:
            method: `self.remind`, or its name.
            args, keywords: its arguments.
            at: when: a datetime with a time zone, or seconds since the epoch. What is past fires
                at once.
            after: how long from now, in seconds or as a timedelta.
            every: a cron expression: "*/5 * * * *".
            key: names the schedule within the object; one with the same key is replaced, unless
                it recurs and stands for just the same: so `on_start` may plan it whenever the
                object wakes. None: a new one.
            zone: the time zone of `every`.
            missed: "each": every time that `every` names is kept, also those that passed while
                nothing could run; "last": one call makes up for all of them.

        Raises:
            InvalidCall: an argument cannot be understood or pickled, or the object has 10,000
                schedules.
            RuntimeError: no call is under way.
        """
        return scheduling.plan(
            self,
            self._durable_state,
            method,
            args,
            keywords,
            at=at,
            after=after,
            every=every,
            key=key,
            zone=zone,
            missed=missed,
        )

    def scheduled(self) -> list[Schedule]:
        """The object's schedules, the next one first; also those that failed."""
        return scheduling.listed(self._durable_state)

    def unschedule(self, key: str) -> bool:
        """Takes a schedule back, with the running call's other effects. Returns whether there was
        one of this key."""
        return scheduling.unplan(self._durable_state, key)

    def now(self) -> datetime:
        """When the running call first began, in UTC: the same time in a repetition of it, and
        throughout the call."""
        return datetime.fromtimestamp(scheduling.running().now, UTC)

    @property
    def random(self) -> Random:
        """Random numbers for the running call: the same ones in a repetition of it. Not for
        secrets."""
        return scheduling.running().random

    def on_upgrade(self, from_version: int) -> Any:
        """Called once for each object and version of the class, before `on_start`, when the object
        wakes and an older version was the last that wrote it: convert the state here. Takes effect
        as a whole, like a call; if it raises, the object's calls fail and its state stays.

        Args:
            from_version: the version that last wrote the object; 0 if that is not known.
        """

    def on_start(self) -> Any:
        """Called before the first call of each activation: make connections and caches here."""

    def on_stop(self) -> Any:
        """Called when the activation is dropped in order; not when its process dies."""

    def on_connect(self, ws: WebSocket) -> Any:
        """Called when a WebSocket opens; `ws.close(code, reason)` refuses it."""

    def on_message(self, ws: WebSocket, data: Any) -> Any:
        """Called with each message of a WebSocket: str or bytes."""

    def on_close(self, ws: WebSocket, code: int, reason: str) -> Any:
        """Called when a WebSocket was closed by the other side, or was lost (1006)."""

    def on_request(self, request: Request) -> Any:
        """Called with a raw HTTP request; returns a `ro.Response`, or what makes one."""

    def __repr__(self) -> str:
        return f"<{self._durable_id}>"


def options_of(cls: type[DurableObject]) -> ClassOptions:
    """The options that a class was defined with."""
    return cls._durable_options


def create(cls: type[DurableObject], id: ObjectId, state: State, sockets: Sockets) -> DurableObject:
    """Makes the live instance of an object, for the runtime.

    Raises:
        Exception: whatever the class's `__init__` raises.
    """
    instance: DurableObject = object.__new__(cls)
    instance._durable_id = id
    instance._durable_state = state
    instance._durable_sockets = sockets
    instance.__init__()  # type: ignore[misc]
    return instance


def _checked_options(cls: type[DurableObject], options: dict[str, Any]) -> ClassOptions:
    inherited = cls._durable_options
    hosting = options.pop("hosting", inherited.hosting)
    ray_options = options.pop("ray_options", inherited.ray_options)
    if options:
        raise TypeError(
            f"{cls.__name__} has unknown class options: {', '.join(sorted(options))}; there are "
            "hosting and ray_options"
        )
    if hosting is not None and hosting not in HOSTINGS:
        raise TypeError(f"hosting of {cls.__name__} is 'shared' or 'dedicated', not {hosting!r}")
    if not isinstance(ray_options, dict) or not all(type(key) is str for key in ray_options):
        raise TypeError(
            f"ray_options of {cls.__name__} is a dict of Ray actor options, for example "
            f"{{'num_cpus': 2}}, not {ray_options!r}"
        )
    return ClassOptions(hosting, dict(ray_options))


def _check_names(cls: type[DurableObject]) -> None:
    """A class, or what it inherits, must not take the place of the runtime's names."""
    for name in _OWN:
        if getattr(cls, name) is not getattr(DurableObject, name):
            raise TypeError(
                f"{cls.__name__}.{name} is the runtime's (`self.{name}`): choose another name"
            )
    for name in _OF_STUBS:
        if hasattr(cls, name):
            raise TypeError(
                f"{cls.__name__}.{name} could not be called by stubs, of which it is the "
                f"runtime's (`stub.{name}`): choose another name"
            )
    for name, value in vars(cls).items():
        if name in HOOKS and isinstance(value, Field):
            raise TypeError(f"{cls.__name__}.{name} is the runtime's: choose another name")


def _check_defaults(cls: type[DurableObject]) -> None:
    """What looks like an attribute of each object, and would be one value for all on a host."""
    for name, hint in vars(cls).get("__annotations__", {}).items():
        value = vars(cls).get(name)
        if isinstance(value, _MUTABLE) and not _CONSTANT.search(str(hint)):
            kind = type(value).__name__
            raise TypeError(
                f"{cls.__name__}.{name} would be one {kind} for all objects of a host, and would "
                f"not be stored: write `{name}: {kind} = ro.durable(factory={kind})`, or annotate "
                "it as ClassVar if it is a constant of the class"
            )


def _check_overrides(cls: type[DurableObject]) -> None:
    """A value in the place of a durable attribute, which would no longer be stored. A method or a
    property takes its place on purpose."""
    for name in declared_fields(cls):
        value = inspect.getattr_static(cls, name)
        if not hasattr(type(value), "__get__"):
            shown = repr(value) if is_immutable(value) else "…"
            raise TypeError(
                f"{cls.__name__}.{name} takes the place of a durable attribute and would not be "
                f"stored: write `{name} = ro.durable({shown})`, or choose another name"
            )


def _check_hooks(cls: type[DurableObject]) -> None:
    """The runtime calls hooks by position: says at the definition which arguments they have."""
    for name in HOOKS:
        hook, own = getattr(cls, name), getattr(DurableObject, name)
        if hook is own or hook is None:
            continue
        expected = list(inspect.signature(own).parameters)
        try:
            inspect.signature(hook).bind(*expected)
        except TypeError:
            raise TypeError(
                f"{cls.__name__}.{name} is called by the runtime with other arguments than it "
                f"takes: write `def {name}({', '.join(expected)})`, or `async def`"
            ) from None
        except ValueError:  # as for `__init__`
            pass


def _check_init(cls: type[DurableObject]) -> None:
    """The runtime calls `__init__` with no arguments: says so at the definition."""
    try:
        inspect.signature(vars(cls)["__init__"]).bind(None)
    except TypeError:
        raise TypeError(
            f"{cls.__name__}.__init__ must work without arguments: the runtime makes the object "
            "again whenever it wakes. Pass what it needs to a method, and keep it in a durable "
            "attribute"
        ) from None
    except ValueError:  # no signature to be had, for example of a C function
        pass
