"""Finished calls with their replies, for repetitions (guarantee 5).

They are bounded by time (a window), by number (the shard refuses more), and by the bytes of their
replies. Where there are more bytes than that, the oldest replies go first, and only the replies: it
stays known that the call has taken effect, so a repetition gets an error that says so and does not
run it again.

Calls of other objects are held until their caller has said that it will not ask again. Its host
may be down for long, so their window is longer too, and their replies are not dropped.

That happens in memory. The checkpoint has the replies that were dropped later, until their window
is over; whoever opens it reads them one after the other and drops the oldest again.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import merge

from rayobjects.errors import InvalidCall, to_wire
from rayobjects.limits import (
    FINISHED_BYTES_MAX,
    FINISHED_REPLY_BYTES_SMALL,
    FINISHED_WINDOW_S,
    HELD_WINDOW_S,
)
from rayobjects.messages import ERROR
from rayobjects.storage.memtable import Key
from rayobjects.storage.records import Finished

_DROPPED = to_wire(
    InvalidCall(
        "this call has taken effect, but its reply is not kept any more: its shard keeps "
        f"{FINISHED_BYTES_MAX:,} bytes of replies, and newer ones needed the room. Read the "
        "object's state instead",
        status=410,
    ),
    with_cause=False,
)
"""One for all of them, so that it takes no room."""


class FinishedCalls:
    """Used on the loop's thread. What it hands out is never changed: a fold may be reading it.

    Args:
        bytes_max: of all replies together that are not held.

    Attributes:
        held_bytes: of those that are.
    """

    def __init__(self, bytes_max: int = FINISHED_BYTES_MAX) -> None:
        # By call id alone, which is what `forget` has. The rare call id that two objects share
        # (an Idempotency-Key that was used twice) goes into `_shared`.
        self._by_id: dict[str, Finished] = {}
        self._shared: dict[tuple[str, str, str], Finished] = {}
        self._dropped: dict[tuple[str, str, str], Finished] = {}
        self._held: dict[str, Finished] = {}
        self._forgotten: list[Finished] = []
        self._bytes_max = bytes_max
        self._bytes = 0
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._by_id) + len(self._shared) + len(self._dropped) + len(self._held)

    @property
    def reply_bytes(self) -> int:
        """Bytes of the replies that are kept."""
        return self._bytes

    def add(self, finished: Finished) -> None:
        """Keeps a call, and drops the oldest replies if there are too many bytes of them."""
        call_id = finished.call_id
        if finished.held:  # its id follows from its caller's: no other object has the same
            if call_id in self._held:
                self.forget_held(call_id)  # else its row in the checkpoint would outlive this one
            self.held_bytes += len(finished.reply)
            self._held[call_id] = finished
            return
        other = self._by_id.get(call_id)
        if other is None:
            if self._shared:  # the other object that had the id has forgotten it meanwhile
                before = self._shared.pop(_key_of(finished), None)
                self._bytes -= len(before.reply) if before is not None else 0
            self._by_id[call_id] = finished
        elif other.name == finished.name and other.class_name == finished.class_name:
            self._bytes -= len(other.reply)
            del self._by_id[call_id]  # the new one is the youngest
            self._by_id[call_id] = finished
        else:
            key = _key_of(finished)
            before = self._shared.get(key)
            self._bytes -= len(before.reply) if before is not None else 0
            self._shared[key] = finished
        if self._dropped:
            self._dropped.pop(_key_of(finished), None)
        self._bytes += len(finished.reply)
        if self._bytes > self._bytes_max:
            self._drop_replies()

    def get(self, key: Key, call_id: str) -> Finished | None:
        found = self._by_id.get(call_id)
        if found is not None and found.name == key[1] and found.class_name == key[0]:
            return found
        held = self._held.get(call_id)
        if held is not None and held.name == key[1] and held.class_name == key[0]:
            return held
        if self._shared or self._dropped:
            whole = (*key, call_id)
            return self._shared.get(whole) or self._dropped.get(whole)
        return None

    def of(self, key: Key) -> list[Finished]:
        """All of an object's; looks at every finished call of the shard."""
        class_name, name = key
        return [
            each
            for kept in (self._dropped, self._by_id, self._shared, self._held)
            for each in kept.values()
            if each.name == name and each.class_name == class_name
        ]

    def still(self, calls: Iterable[Finished]) -> list[Finished]:
        """Those that have not been forgotten, as they are kept now."""
        found = []
        for each in calls:
            kept = self.get((each.class_name, each.name), each.call_id)
            if kept is not None and kept.sequence == each.sequence:
                found.append(kept)
        return found

    def forget(self, call_id: str, key: Key | None = None) -> bool:
        """The caller has the reply. Returns whether it was kept.

        Args:
            key: the object's, where others may have a call of the same id.
        """
        if key is not None:
            whole = (*key, call_id)
            shared = self._shared.pop(whole, None)
            if shared is not None:
                self._bytes -= len(shared.reply)
                return True
            if self._dropped.pop(whole, None) is not None:
                return True
            kept = self._by_id.get(call_id)
            if kept is None or (kept.class_name, kept.name) != key:
                held = self._held.get(call_id)
                ours = held is not None and (held.class_name, held.name) == key
                return ours and self.forget_held(call_id)
        finished = self._by_id.pop(call_id, None)
        if finished is None:
            return self.forget_held(call_id)
        self._bytes -= len(finished.reply)
        return True

    def forget_held(self, call_id: str) -> bool:
        """The call that has made this one has ended. Returns whether its reply was held."""
        finished = self._held.pop(call_id, None)
        if finished is None:
            return False
        self.held_bytes -= len(finished.reply)
        self._forgotten.append(finished)
        return True

    def expire(self, now: float) -> None:
        """Forgets the calls that have left their window; `now` in seconds since the epoch."""
        oldest = now - FINISHED_WINDOW_S
        self._bytes -= _drop_oldest(self._by_id, oldest)
        self._bytes -= _drop_oldest(self._shared, oldest)
        _drop_oldest(self._dropped, oldest)
        self.held_bytes -= _drop_oldest(self._held, now - HELD_WINDOW_S)

    def take_forgotten(self, folded: int) -> list[str]:
        """Ids of held calls that were forgotten since the last time and that the checkpoint has:
        those up to the sequence `folded`."""
        forgotten, self._forgotten = self._forgotten, []
        return [each.call_id for each in forgotten if each.sequence <= folded]

    def _drop_replies(self) -> None:
        """Makes some room at once, because the way to the oldest one may be long."""
        enough = self._bytes_max - self._bytes_max // 8
        gone: list[Finished] = []
        bytes_left = self._bytes
        for finished in merge(self._by_id.values(), self._shared.values(), key=_time_of):
            if bytes_left <= enough:
                break
            if len(finished.reply) > FINISHED_REPLY_BYTES_SMALL:
                gone.append(finished)
                bytes_left -= len(finished.reply)
        self._bytes = bytes_left
        for each in gone:
            key = _key_of(each)
            if self._by_id.get(each.call_id) is each:
                del self._by_id[each.call_id]
            else:
                del self._shared[key]
            self._dropped[key] = Finished(*key, ERROR, _DROPPED, each.finished_at, each.sequence)


def _key_of(finished: Finished) -> tuple[str, str, str]:
    return finished.class_name, finished.name, finished.call_id


def _time_of(finished: Finished) -> float:
    return finished.finished_at


def _drop_oldest(
    calls: dict[str, Finished] | dict[tuple[str, str, str], Finished], oldest: float
) -> int:
    """They are in the order in which they ended, as nearly as the clock goes forward. Returns the
    bytes of their replies."""
    gone = []
    size = 0
    for key, finished in calls.items():
        if finished.finished_at >= oldest:
            break
        gone.append(key)
        size += len(finished.reply)
    for key in gone:
        del calls[key]  # type: ignore[arg-type]
    return size
