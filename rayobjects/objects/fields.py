"""Durable attributes: `count: int = ro.durable(0)`.

A field is a descriptor. Reading gives the live value out of the object's `State`, assigning puts
a new one there and marks it; whether something has changed is decided at the end of the call by
comparing encoded bytes, so changes inside a list or a dict are noticed too. A field itself has no
state of its objects: it knows its name, its key in the storage and its default.

What a default is worth as long as nothing has been stored:

    a fixed default      not stored until the attribute is assigned
    an empty container   (`factory=list` and its kin) not stored until it is changed
    any other factory    stored by the first call that reads it: an id that a factory makes up
                         must be the same one after the object has slept

The process may die at any time: a field has nothing to lose.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType, GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from rayobjects.storage.records import ATTRIBUTE
from rayobjects.storage.values import decode_value, encode_value

if TYPE_CHECKING:
    from rayobjects.objects.model import DurableObject

T = TypeVar("T")

Entry = tuple[int, bytes]
"""A value as it is stored: (JSON or PICKLE, data)."""

IMMUTABLE: frozenset[type] = frozenset(
    {
        *(int, str, float, bool, bytes, type(None), complex, range),
        *(datetime, date, time, timedelta, Decimal, Fraction, UUID),
    }
)
"""Exact types whose values cannot change inside: reading one leaves nothing to compare later."""

_EMPTY_CONTAINERS = (list, dict, set, bytearray, deque, OrderedDict, Counter)
"""Factories whose result is always the same: a default that need not be stored."""


def is_immutable(value: object) -> bool:
    """Whether nothing inside the value can change. A cautious answer: False where unsure."""
    kind = type(value)
    if kind in IMMUTABLE or isinstance(value, Enum):
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_immutable, value))  # type: ignore[call-overload]
    return False


class Field:
    """One durable attribute of a class; made by `durable`.

    Attributes:
        name: the attribute's name.
        key: its key in the storage: `@name`.
    """

    __slots__ = ("_default", "_entry", "_factory", "key", "name")

    def __init__(self, default: Any, factory: Callable[[], Any] | None) -> None:
        self.name = ""
        self.key = ""
        self._default = default
        self._factory = factory
        self._entry: Entry | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.key = ATTRIBUTE + name

    def __get__(self, instance: DurableObject | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        state = instance._durable_state
        key = self.key
        try:
            value = state.live[key]
        except KeyError:
            return state.read_attribute(self)
        if type(value) not in IMMUTABLE:
            state.touch(key, value)
        return value

    def __set__(self, instance: DurableObject, value: Any) -> None:
        instance._durable_state.assign(self.key, value)

    def __delete__(self, instance: DurableObject) -> None:
        instance._durable_state.remove(self.key)

    def __repr__(self) -> str:
        return f"<durable attribute {self.name!r}>"

    def make(self) -> tuple[Any, Entry | None]:
        """A fresh default, and its encoded form to compare with at the end of the call; None
        where the value must be stored as soon as it has been seen.

        Raises:
            InvalidCall: the default cannot be pickled.
        """
        if self._factory is None:
            entry = self._default_entry(self._default)
            value = self._default
            # A copy of its own for each object: a change inside must not reach the others.
            return (value if is_immutable(value) else decode_value(*entry)), entry
        value = self._factory()
        if self._factory in _EMPTY_CONTAINERS:
            return value, self._default_entry(value)
        return value, None

    def _default_entry(self, value: Any) -> Entry:
        if self._entry is None:
            self._entry = encode_value(value)
        return self._entry


_NOTHING: Any = object()


@overload
def durable(default: T) -> T: ...
@overload
def durable(*, factory: Callable[[], T]) -> T: ...
def durable(default: Any = _NOTHING, *, factory: Callable[[], Any] | None = None) -> Any:
    """Makes a durable attribute: loaded with the object, tracked, and saved with each call.

        count: int = ro.durable(0)
        messages: list[str] = ro.durable(factory=list)

    Args:
        default: what an object has that never assigned it. Must be immutable.
        factory: makes the default, one for each object. What it makes is stored by the first
            call that reads it, except for an empty list, dict or set, which are stored when
            something is in them.

    Raises:
        TypeError: neither or both were given, or the default is mutable, or is a type or a
            function, which is a factory whose name was left out.
    """
    if factory is not None:
        if default is not _NOTHING:
            raise TypeError("durable() takes a default or a factory, not both")
        if not callable(factory):
            raise TypeError(f"the factory of durable() is a function, not {factory!r}")
        return Field(None, factory)
    if default is _NOTHING:
        raise TypeError("durable() needs a default: durable(0), or durable(factory=list)")
    if isinstance(default, type | GenericAlias | FunctionType | BuiltinFunctionType):
        own_name = getattr(default, "__name__", "")
        hint = f"factory={own_name if own_name.isidentifier() else '…'}"  # a lambda has none
        raise TypeError(
            f"the default would be {default!r} itself, and not what it makes: write durable({hint})"
        )
    try:
        hash(default)
    except TypeError:
        kind = type(default).__name__
        hint = f"factory={kind}" if not default else f"factory=lambda: {default!r}"
        raise TypeError(
            f"a mutable default ({kind}) would be shared by all objects: write durable({hint})"
        ) from None
    return Field(default, None)


def declared_fields(cls: type) -> set[str]:
    """The names of durable attributes in a class and its bases, also of those that something else
    has taken the place of."""
    return {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, Field)
    }


def fields_of(cls: type) -> dict[str, Field]:
    """The durable attributes of a class and its bases, by name."""
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Field):
                found[name] = value
            else:
                found.pop(name, None)
    return found
