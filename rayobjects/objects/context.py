"""The running call, as the stubs that it uses see it.

A stub that is used inside a method must know for whom it calls: the call's id gives the child's id,
the chain of waiting objects shows a circle, and the activation says when its writes are on disk.
A context variable carries that through awaits and tasks, and to the lane of large objects.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Protocol

from rayobjects.ids import ObjectId


class Syncing(Protocol):
    """What a context needs of its activation."""

    id: ObjectId

    def after_sync(self, send: Callable[[], None]) -> None: ...


class CallContext:
    """What a call hands down to the calls that it makes.

    Attributes:
        call_id: the id of the running call; "" where the call has none (on_start, on_stop).
    """

    __slots__ = ("_activation", "_children", "_ended", "_names", "_outer", "_position", "call_id")

    def __init__(self, call_id: str, outer: tuple[str, ...], activation: Syncing) -> None:
        self.call_id = call_id
        self._outer = outer
        self._activation = activation
        self._children: list[Callable[[], None]] | None = None
        self._ended = False
        self._position = 0
        self._names = 0

    @property
    def chain(self) -> tuple[str, ...]:
        """The objects that wait, outermost first, with the running one last."""
        return (*self._outer, str(self._activation.id))

    def child_id(self) -> str:
        """The id of the next call that this call makes: it follows from its own id and position,
        so that a repetition of the call makes the same ones."""
        self._position += 1
        return f"{self.call_id}/{self._position}" if self.call_id else ""

    def new_name(self) -> str:
        """A random name, the same one in a repetition of the call; "" where the call has no id."""
        if not self.call_id:
            return ""
        self._names += 1
        text = f"{self._activation.id}\0{self.call_id}\0{self._names}"
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def made_calls(self) -> bool:
        """Whether the call has called other objects."""
        return self._position > 0

    def after_sync(self, send: Callable[[], None]) -> None:
        """Runs `send` once everything that the object has committed is on disk (guarantee 4)."""
        self._activation.after_sync(send)

    def add_child(self, acknowledge: Callable[[], None]) -> None:
        """A child has replied; `acknowledge` lets its host forget that, once this call ended."""
        if self._ended:
            acknowledge()
        elif self._children is None:
            self._children = [acknowledge]
        else:
            self._children.append(acknowledge)

    def ended(self) -> None:
        """The call has ended for good: the replies of its children are needed no more."""
        self._ended = True
        if self._children is not None:
            for acknowledge in self._children:
                acknowledge()
            self._children = None


current_call: ContextVar[CallContext | None] = ContextVar("current_call", default=None)

local_router: ContextVar[Any] = ContextVar("local_router", default=None)
"""Set around and inside a host without Ray (`rayobjects.testing`): stubs and namespaces that are
used there send their calls to it instead of the cluster."""
