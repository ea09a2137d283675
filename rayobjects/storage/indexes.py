"""What a shard keeps in memory about all of its objects: finished calls, unacknowledged messages,
open sockets, owner epochs.

They are bounded by other limits (calls see `finished`, messages by the outbox, sockets an object)
and asked for with every call, so they are held whole; the journal and the checkpoint bring them
back. An object's sockets stay in the order in which they were opened, through all of that.
Acknowledgements are not journaled: after a crash messages are sent again, and gateways know
a repetition by its sequence and index.
"""

from __future__ import annotations

from collections.abc import Iterable

from rayobjects.ids import ObjectId
from rayobjects.messages import Send
from rayobjects.storage.finished import FinishedCalls
from rayobjects.storage.memtable import Key
from rayobjects.storage.promises import Promises
from rayobjects.storage.records import REPLY, Finished, PendingSends, Record, SocketChange


class Indexes:
    """Changed on the loop's thread only.

    Attributes:
        calls: the finished calls.
        promises: what the objects have yet to do.
        socket_count: how many sockets are open.
    """

    def __init__(self) -> None:
        self.calls = FinishedCalls()
        self.promises = Promises()
        self._sends: dict[Key, dict[int, tuple[list[Send], set[str]]]] = {}
        self._sockets: dict[Key, dict[str, SocketChange]] = {}
        self._owners: dict[Key, int] = {}
        self.socket_count = 0
        self._opened = 0  # sockets so far: gives them their order
        # What the next fold must tell the checkpoint.
        self._changed_sockets: dict[tuple[Key, str], None] = {}
        self._sent: list[tuple[Key, int]] = []

    # -- what comes in ------------------------------------------------------------------------

    def apply(self, record: Record) -> Finished | None:
        """Takes over a record; returns the finished call that it brought."""
        key = (record.class_name, record.name)
        if record.delete:
            self._drop_sockets(key)
            self.promises.drop_schedules(key)
        if record.promises:
            if record.promises[0].kind == REPLY:
                for reply in record.promises:
                    self.calls.forget_held(reply.key)
            else:
                self.promises.apply(key, record.promises)
        if record.sockets:
            self._change_sockets(key, record.sockets)
        if record.sends:
            self.add_sends(key, record.sequence, record.sends, {s.gateway for s in record.sends})
        if record.claims:
            self._owners[key] = record.owner_epoch
        if not record.call_id:
            return None
        finished = Finished(
            record.class_name,
            record.name,
            record.call_id,
            record.status,
            record.reply,
            record.finished_at,
            record.sequence,
            record.held,
            record.arguments_hash,
        )
        self.calls.add(finished)
        return finished

    def add_sends(self, key: Key, sequence: int, sends: list[Send], waiting: set[str]) -> None:
        self._sends.setdefault(key, {})[sequence] = (sends, waiting)

    def add_socket(self, key: Key, change: SocketChange) -> None:
        """Adds a socket that the checkpoint has; to be called in their order."""
        self._sockets.setdefault(key, {})[change.socket] = change
        self._opened = max(self._opened, change.order)
        self.socket_count += 1

    def add_owner(self, key: Key, epoch: int) -> None:
        self._owners[key] = epoch

    def _change_sockets(self, key: Key, changes: Iterable[SocketChange]) -> None:
        sockets = self._sockets.setdefault(key, {})
        before = len(sockets)
        for change in changes:
            self._changed_sockets[key, change.socket] = None
            if change.open:
                known = sockets.get(change.socket)
                if known is None:
                    self._opened += 1
                change.order = self._opened if known is None else known.order
                sockets[change.socket] = change
            else:
                sockets.pop(change.socket, None)
        self.socket_count += len(sockets) - before
        if not sockets:
            del self._sockets[key]

    def _drop_sockets(self, key: Key) -> None:
        dropped = self._sockets.pop(key, {})
        self._changed_sockets.update(dict.fromkeys((key, socket) for socket in dropped))
        self.socket_count -= len(dropped)

    # -- messages -----------------------------------------------------------------------------

    def sent(self, key: Key, sequence: int, gateway: str) -> None:
        """The gateway has the record's messages."""
        of_object = self._sends.get(key)
        entry = of_object.get(sequence) if of_object is not None else None
        if of_object is None or entry is None:
            return
        entry[1].discard(gateway)
        if not entry[1]:
            del of_object[sequence]
            self._sent.append((key, sequence))
            if not of_object:
                del self._sends[key]

    def pending_of(self, key: Key) -> list[PendingSends]:
        return [
            PendingSends(key[0], key[1], sequence, sends)
            for sequence, (sends, _) in self._sends.get(key, {}).items()
        ]

    def pending(self) -> list[PendingSends]:
        """All of them, in the order of their sequences."""
        found = [each for key in self._sends for each in self.pending_of(key)]
        found.sort(key=lambda each: each.sequence)
        return found

    @property
    def acknowledged(self) -> bool:
        """Whether messages were acknowledged since the last fold."""
        return bool(self._sent)

    def take_changes(
        self, after: int
    ) -> tuple[
        list[PendingSends], list[tuple[Key, int]], list[tuple[Key, str, SocketChange | None]]
    ]:
        """What a fold writes: messages of records after a sequence that are unacknowledged,
        records whose messages are acknowledged since the last fold, changed sockets."""
        sent, self._sent = self._sent, []
        changed, self._changed_sockets = self._changed_sockets, {}
        return (
            [each for each in self.pending() if each.sequence > after],
            sent,
            [(key, socket, self._sockets.get(key, {}).get(socket)) for key, socket in changed],
        )

    @property
    def pending_count(self) -> int:
        return sum(map(len, self._sends.values()))

    # -- sockets and owners -------------------------------------------------------------------

    def sockets(self) -> list[tuple[ObjectId, str, str]]:
        return [
            (ObjectId(*key), change.socket, change.gateway)
            for key, sockets in self._sockets.items()
            for change in sockets.values()
        ]

    def sockets_of(self, key: Key) -> list[SocketChange]:
        return list(self._sockets.get(key, {}).values())

    def owner(self, key: Key) -> int:
        return self._owners.get(key, 0)

    def owned_by(self, class_name: str) -> list[Key]:
        return [key for key in self._owners if key[0] == class_name]
