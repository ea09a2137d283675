"""The calls of a channel that are to be sent: in the order of their numbers, so what a session
sends again comes before what is new."""

from __future__ import annotations

from collections import deque
from collections.abc import Container

from rayobjects.limits import BATCH_BYTES_MAX, BATCH_CALLS_MAX
from rayobjects.messages import Call


class Unsent:
    """One channel's.

    Attributes:
        append: adds a new call.
    """

    def __init__(self) -> None:
        self._new: deque[Call] = deque()
        # By their numbers, since a call that was answered meanwhile may be on its way elsewhere,
        # under another one.
        self._again: deque[tuple[int, Call]] = deque()
        self.append = self._new.append

    def __bool__(self) -> bool:
        return bool(self._new or self._again)

    def numbers(self) -> set[int]:
        """Of all of them."""
        return {call.number for call in self._new} | {number for number, _ in self._again}

    def remove(self, call: Call) -> None:
        """Takes a call out that is new. One of the others is left out when its turn comes."""
        self._new.remove(call)

    def begin_again(self, calls: list[tuple[int, Call]]) -> None:
        """A session begins, in which these (number, call) are sent again."""
        self._new.clear()
        self._again = deque(calls)

    def take(self, waiting: Container[int]) -> list[Call]:
        """Those that a batch has room for.

        Args:
            waiting: numbers of the calls that have no reply. One that has it by now is not sent
                again: the host may have forgotten it, and would run it.
        """
        new, again = self._new, self._again
        if (
            not again
            and len(new) <= BATCH_CALLS_MAX
            and sum(len(call.args) for call in new) < BATCH_BYTES_MAX
        ):
            calls = list(new)
            new.clear()
            return calls
        calls, size = [], 0
        while (again or new) and len(calls) < BATCH_CALLS_MAX:
            if again and again[0][0] not in waiting:
                again.popleft()
                continue
            call = again[0][1] if again else new[0]
            size += len(call.args)
            if calls and size > BATCH_BYTES_MAX:
                break
            calls.append(call)
            if again:
                again.popleft()
            else:
                new.popleft()
        return calls
