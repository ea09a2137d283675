"""An object's state as a concurrent method sees it while it does not have the turn: what is
committed at that moment, for reading only. That goes for attributes, storage, sockets and
schedules alike, and for what the method's own blocks have committed.

Each read looks at the object's state anew and decodes afresh, so nothing of the running call's
overlay shows, and a value that was changed inside is nobody's but the reader's. Plain attributes
are shared with the object, for they are not the runtime's.

Such a method may run on a thread of its own while the loop commits: whatever is gone through here
is copied in one step of the interpreter first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, cast

from rayobjects.objects.fields import Entry, Field
from rayobjects.objects.model import DurableObject
from rayobjects.objects.promised import Promised
from rayobjects.objects.sockets import Sockets
from rayobjects.objects.state import State
from rayobjects.objects.storage_map import StorageMap
from rayobjects.objects.websocket import WebSocket
from rayobjects.storage.records import DELETED, SocketChange
from rayobjects.storage.values import decode_value


class CommittedView(State):
    """Shares the committed state of a `State`, and nothing else of it."""

    __slots__ = ()

    def __init__(self, state: State) -> None:
        self.id = state.id
        self.live: dict[str, Any] = {}
        self.running = False
        self.exists = state.exists
        self.aborted: str | None = None
        self.promised = Promised(())
        self.promised._schedules = state.promised._schedules  # it has those that are committed
        self.storage = StorageMap(self)
        self._committed = state._committed
        self._fields = state._fields
        self._owner = None
        self._touched: dict[str, int] = {}
        self._baselines: dict[str, Entry] = {}
        self._clearing = False
        self._deleting = False
        self._prepared = None
        self.sockets = _CommittedSockets(self, state.sockets)

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


class _CommittedSockets(Sockets):
    """`self.sockets` of a view."""

    __slots__ = ()

    def __init__(self, view: CommittedView, sockets: Sockets) -> None:
        super().__init__(view)
        self._open = cast("dict[str, SocketChange]", _Open(sockets))  # for reading it is one

    def _handle(self, id: str) -> WebSocket:
        socket = self._handles.get(id)
        if socket is None:
            if len(self._handles) > 2 * len(self._open) + 100:  # a method may run for days
                self._handles = {id: self._handles[id] for id in self._handles if id in self._open}
            change = self._open.get(id)
            gateway = change.gateway if change is not None else ""  # it was closed just now
            socket = self._handles[id] = WebSocket(self, id, gateway)
        return socket

    def _with_tag(self, tag: str) -> Iterable[str]:
        return [id for id in self._open if tag in self._tags(id)]

    def _read_attachment(self, id: str) -> Any:
        change = self._open.get(id)
        if change is None or change.attachment_encoding == DELETED:
            return None
        return decode_value(change.attachment_encoding, change.attachment)


class _Open(Mapping[str, SocketChange]):
    """An object's open sockets without what the running call has done to them."""

    __slots__ = ("_sockets",)

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def __getitem__(self, id: str) -> SocketChange:
        changed = self._sockets._changed
        found = changed.get(id, _UNCHANGED)
        if found is _UNCHANGED:
            found = changed.get(id, self._sockets._open.get(id))  # for a call that just began
        if found is None:
            raise KeyError(id)
        return cast("SocketChange", found)

    def __iter__(self) -> Iterator[str]:
        sockets = self._sockets
        # What the running call has taken away is in its place in `_order` only.
        ids = list(sockets._open if sockets._order is None else sockets._order)
        return (id for id in ids if id in self)

    def __len__(self) -> int:
        sockets = self._sockets
        count = len(sockets._open)
        for id, before in list(sockets._changed.items()):
            count += (before is not None) - (id in sockets._open)
        return count


_UNCHANGED: Any = object()


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
