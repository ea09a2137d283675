"""An object's state as a concurrent method sees it while it does not have the turn: what is
committed at that moment, for reading only.

Each read decodes afresh, so nothing of the running call's overlay shows, and a value that was
changed inside is nobody's but the reader's. Plain attributes are shared with the object, for they
are not the runtime's.
"""

from __future__ import annotations

from typing import Any, NoReturn

from rayobjects.objects.fields import Entry, Field
from rayobjects.objects.model import DurableObject
from rayobjects.objects.promised import Promised
from rayobjects.objects.sockets import Sockets
from rayobjects.objects.state import State
from rayobjects.objects.storage_map import StorageMap


class CommittedView(State):
    """Shares the committed state of a `State`, and nothing else of it."""

    __slots__ = ()

    def __init__(self, state: State) -> None:
        self.id = state.id
        self.live: dict[str, Any] = {}
        self.running = False
        self.exists = state.exists
        self.aborted: str | None = None
        self.promised = Promised(state.promised.committed())
        self.storage = StorageMap(self)
        self._committed = state._committed
        self._fields = state._fields
        self._owner = None
        self._touched: dict[str, int] = {}
        self._baselines: dict[str, Entry] = {}
        self._clearing = False
        self._deleting = False
        self._prepared = None
        self.sockets = Sockets(self, state.sockets.committed())

    def read_attribute(self, field: Field) -> Any:
        entry = self._committed.entries.get(field.key)
        return self._value_of(field.key, entry) if entry is not None else field.make()[0]

    def touch(self, key: str, value: Any) -> None:
        pass

    def _decode(self, key: str, entry: Entry) -> Any:
        return self._value_of(key, entry)

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            f"{self.id}: a concurrent method reads what is committed; to write, plan, tell or send "
            "it takes the turn: `async with self.turn():`"
        )


def view_of(instance: DurableObject, state: State) -> DurableObject:
    """Another face of a live object: the same plain attributes, its durable ones from `state`."""
    view: DurableObject = object.__new__(type(instance))
    view._durable_id = instance._durable_id
    show(view, state)
    if hasattr(instance, "__dict__"):
        view.__dict__ = instance.__dict__  # type: ignore[misc]
    return view


def show(view: DurableObject, state: State) -> None:
    """Lets a face show another state."""
    view._durable_state = state
    view._durable_sockets = state.sockets
