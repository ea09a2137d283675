"""What of a class it is that cannot be pickled."""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle


def culprit(classes: Iterable[type]) -> str:
    """What it is that cannot be pickled, as exactly as it can be said."""
    waiting: list[tuple[str, Any]] = [(cls.__qualname__, cls) for cls in classes]
    seen: set[int] = set()
    best = "something that it needs"
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        try:
            cloudpickle.dumps(value)
            continue
        except Exception:
            best = name
        parts = _parts(name, value)
        if parts:
            waiting = parts  # it is one of these
    return best


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, type):
        found = [(f"{name}.{key}", part) for key, part in vars(value).items()]
        found += [(base.__qualname__, base) for base in value.__bases__ if base is not object]
        return [part for part in found if part[0] not in (f"{name}.__dict__",)]
    if isinstance(value, ModuleType):
        return [
            (f"the global {key!r} of {value.__name__}", part)
            for key, part in vars(value).items()
            if not key.startswith("__")
        ]
    if isinstance(value, staticmethod | classmethod):
        return [(name, value.__func__)]
    if isinstance(value, FunctionType):
        names = _names(value.__code__)
        found = [
            (f"the global {key!r} of {value.__module__}", value.__globals__[key])
            for key in names
            if key in value.__globals__
        ]
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            try:
                found.append((f"the variable {key!r} that {name} uses", cell.cell_contents))
            except ValueError:  # a cell that is still empty
                continue
        found += [(f"a default of {name}", part) for part in value.__defaults__ or ()]
        return found
    return []


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
