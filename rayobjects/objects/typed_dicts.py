"""`typing.TypedDict`, which pydantic does not take and cloudpickle does not bring.

Before Python 3.12 it has too little in it for pydantic, which wants the one of `typing_extensions`.
People write the one they know, so it is made into the other here, also inside of other types:
`list[Item]`, `Item | None`.

One that inherits from another does not show that any more, and cloudpickle takes it for an ordinary
class. So it is pickled here, as what it says of itself.
"""

from __future__ import annotations

import functools
import operator
import sys
import types
import typing
from typing import Any

import typing_extensions

_NEEDED = sys.version_info < (3, 12)

_REQUIRED = (
    typing.Required,
    typing.NotRequired,
    typing_extensions.Required,
    typing_extensions.NotRequired,
)


def checkable(annotation: Any) -> Any:
    """The annotation with such typed dictionaries replaced; itself if it has none."""
    return _replaced(annotation, ()) if _NEEDED else annotation


def is_plain(annotation: Any) -> bool:
    """Whether it is a typed dictionary of `typing` and not of `typing_extensions`."""
    return typing.is_typeddict(annotation) and type(annotation).__module__ == "typing"


def reduced(typed: Any) -> tuple[Any, ...]:
    """What a pickler's `reducer_override` returns for a typed dictionary, by value."""
    said = {name: getattr(typed, name) for name in _SAID if hasattr(typed, name)}
    return _bare, (typed.__name__,), said, None, None, _say


_SAID = (
    *("__module__", "__qualname__", "__doc__", "__annotations__"),
    *("__required_keys__", "__optional_keys__", "__total__"),
    *("__readonly_keys__", "__mutable_keys__"),  # from Python 3.13 on
)


def _bare(name: str) -> Any:
    make: Any = typing.TypedDict  # with a name made at run time
    return make(name, {})


def _say(typed: Any, said: dict[str, Any]) -> None:
    for name, value in said.items():
        setattr(typed, name, value)


def _replaced(annotation: Any, within: tuple[Any, ...]) -> Any:
    if is_plain(annotation):
        known = annotation in within  # one that contains itself stays, and is Any
        return annotation if known else _made(annotation, (*within, annotation))
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if not arguments or origin is typing.Literal:
        return annotation
    if origin is typing.Annotated:
        inside = _replaced(arguments[0], within)
        same = inside is arguments[0]
        return annotation if same else typing.Annotated[(inside, *arguments[1:])]
    found = tuple(_replaced(each, within) for each in arguments)
    if all(new is old for new, old in zip(found, arguments, strict=True)):
        return annotation
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, found)
    return origin[found]


def _made(typed: Any, within: tuple[Any, ...]) -> Any:
    fields: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(typed, include_extras=True).items():
        if typing.get_origin(hint) in _REQUIRED:
            hint = typing.get_args(hint)[0]
        wrap = (
            typing_extensions.Required
            if name in typed.__required_keys__
            else typing_extensions.NotRequired
        )
        fields[name] = wrap[_replaced(hint, within)]
    make: Any = typing_extensions.TypedDict  # the functional form, with names made at run time
    made = make(typed.__name__, fields)
    made.__module__, made.__qualname__ = typed.__module__, typed.__qualname__
    made.__doc__ = typed.__doc__
    return made
