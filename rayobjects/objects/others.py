"""Objects with actors of their own that have something to do: messages to deliver, calls to end.

Their shard's host has that in its storage and cannot do it for them. It sees to it that their
actors live, again and again until nothing is left to do, since waking one may fail. It begins with
what it finds when it is opened; an actor that dies later is started again by Ray. Where their class
moves to shared hosting, the host takes up what is left, before their first call; and where it is
deleted, when their actors are gone: what they had told others is delivered all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayobjects.ids import ObjectId
from rayobjects.objects.retrying import Retries
from rayobjects.storage.records import INTENT, TELL

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore

AGAIN = Retries(first_s=10.0, longest_s=60.0)
"""Pauses before it is looked again. One that lives is asked in vain, which costs a Ray call."""


class Others:
    """One host's."""

    def __init__(self, host: HostCore) -> None:
        self._host = host
        self._watched: set[ObjectId] = set()

    def add(self, id: ObjectId) -> None:
        """The object has something to do."""
        if id not in self._watched:
            self._watched.add(id)
            self._look(id, 1)

    def take_up(self, id: ObjectId) -> None:
        """The object may live here by now: then so does what it has to do."""
        if id in self._watched and self._host.owns(id):
            self._watched.discard(id)
            for promise in self._host.ledger.promises_of(id):
                self._host.promised(id, promise)

    def take_over(self, class_name: str) -> None:
        """The class's objects have no actors any more, and this host owns them from now on."""
        for id, promise in self._host.ledger.promises():
            if id.class_name == class_name:
                self._watched.discard(id)
                self._host.promised(id, promise)

    def hand_over(self, id: ObjectId) -> None:
        """The object has an actor of its own (again), which takes up whatever is not done now."""
        self._host.courier.hand_over(id)

    def _look(self, id: ObjectId, attempt: int) -> None:
        host = self._host
        self.take_up(id)
        if id not in self._watched:
            return
        if not any(
            promise.kind in (TELL, INTENT) and not promise.failed
            for promise in host.ledger.promises_of(id)
        ):
            self._watched.discard(id)
            return
        host.wake(id)
        host.timers.after(AGAIN.pause_s(attempt, host.random), lambda: self._look(id, attempt + 1))
