"""Decorators that say how a method is to be run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

INTERNAL = "__rayobjects_internal__"
CONCURRENT = "__rayobjects_concurrent__"
BLOCKING = "__rayobjects_blocking__"

LOOP = "loop"
THREAD = "thread"


def internal(function: F) -> F:
    """Marks a method that cannot be called over HTTP or WebSocket; stubs may call it."""
    setattr(function, INTERNAL, True)
    return function


def concurrent(function: F) -> F:
    """Marks an `async def` method that runs beside the others, without the object's turn: for slow
    I/O that need not hold the object. It reads what is committed; to write, it takes the turn for
    a while, and each such block is a commit of its own:

        @ro.concurrent
        async def ask(self, question: str) -> str:
            answer = await slow_model(question, self.history)     # others run meanwhile
            async with self.turn():
                self.history.append(answer)
            return answer

    Raises:
        TypeError: the method is not async.
    """
    inner = inspect.unwrap(function)
    if not any(
        check(each)
        for check in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        for each in (function, inner)
    ):
        raise TypeError(
            f"{_name(function)} is marked concurrent and must be `async def`: one that is not "
            "would run alone anyway. For code that blocks use ro.blocking"
        )
    setattr(function, CONCURRENT, True)
    return function


def blocking(function: F) -> F:
    """Marks a `def` method that computes or waits for long without `await`: it runs on a thread, so
    that it holds up its own object only, and not the host with its other objects. Inside,
    `.result()` is the way to wait for other objects.

    Raises:
        TypeError: the method is async.
    """
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{_name(function)} is async, so it must not block: use asyncio.to_thread for the part "
            "that does, or make it a plain `def` and mark that as blocking"
        )
    setattr(function, BLOCKING, True)
    return function


def is_marked(function: object, mark: str) -> bool:
    """Whether a method has one of the marks above."""
    return bool(getattr(function, mark, False))


def stream_of(function: Callable[..., Any]) -> str:
    """Where the items of a generator method are made: LOOP or THREAD; "" if it is none."""
    inner = inspect.unwrap(function)
    if not inspect.isgeneratorfunction(inner) and not inspect.isasyncgenfunction(inner):
        return ""
    return THREAD if is_marked(function, BLOCKING) else LOOP


def check(cls: type, hooks: Iterable[str]) -> None:
    """Says of a class what its marks cannot mean.

    Raises:
        TypeError: a hook of the runtime is marked.
    """
    for hook in hooks:
        function = vars(cls).get(hook)
        if is_marked(function, CONCURRENT) or is_marked(function, BLOCKING):
            raise TypeError(
                f"{cls.__name__}.{hook} is called by the runtime and has the object's turn: it "
                "cannot be concurrent or blocking; let it call such a method"
            )


def _name(function: object) -> str:
    return getattr(function, "__qualname__", repr(function))
