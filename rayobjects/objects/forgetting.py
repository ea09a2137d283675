"""Replies that are held for other objects, and need not be any more.

A call of another object keeps its reply until whoever made it has ended, on disk, and says so
(`Batch.forget`). That is journaled here, or the journal would bring the reply back: it lasts a
moment, so that one record is enough for many of them. When the process dies

    before that record   those replies are held until their window is over (HELD_WINDOW_S);
    after it             they are gone; to be told again does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayobjects.errors import RayObjectsError, StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.storage.records import REPLY, Promise, Record

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

NOTE_AFTER_S = 0.1
"""So long they are collected."""

NOTE_MAX = 10_000
"""So many go into one record."""


class Forgetting:
    """One host's."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._waiting: dict[str, ObjectId] = {}

    def add(self, id: ObjectId, call_id: str) -> None:
        """Whoever made this call of an object has ended."""
        self._host.ledger.forget(call_id, id)
        if not self._waiting:
            self._host.timers.after(NOTE_AFTER_S, self.note)
        self._waiting[call_id] = id

    def note(self) -> None:
        """Journals what was collected."""
        host, waiting = self._host, self._waiting
        if not waiting or host.failed is not None:
            return
        of = next(iter(waiting.values()))  # in the name of one, since ids of calls are unique
        chosen = list(waiting)[:NOTE_MAX]

        def noted(error: StorageFailed | None, sequence: int) -> None:
            if error is not None:
                host.fail(error)

        try:
            host.ledger.commit(
                Record(*of, promises=[Promise(REPLY, call_id, open=False) for call_id in chosen]),
                noted,
            )
        except RayObjectsError:  # too much waits for the disk: once more
            pass
        else:
            for call_id in chosen:
                del waiting[call_id]
        if waiting:
            host.timers.after(NOTE_AFTER_S, self.note)
