"""Calls under way: those whose ids were given by their callers, where all who ask for one get its
answer, those that must end in time, and those that come too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayobjects.errors import DeadlineExceeded, Unavailable, to_wire
from rayobjects.ids import ObjectId
from rayobjects.messages import ERROR, OPENED, Call
from rayobjects.objects.commit import Respond

if TYPE_CHECKING:
    from rayobjects.objects.host_core import HostCore


class UnderWay(list[Respond]):
    """Those who wait for a call whose id was given by its caller."""

    def __init__(self, arguments_hash: int, respond: Respond) -> None:
        super().__init__([respond])
        self.arguments_hash = arguments_hash


class RespondAll:
    """Answers everybody who sent a call of the same id."""

    __slots__ = ("_by_id", "_key")

    def __init__(
        self, by_id: dict[tuple[str, str, str], UnderWay], key: tuple[str, str, str]
    ) -> None:
        self._by_id = by_id
        self._key = key

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        if status >= OPENED:  # the last who asks reads the stream
            self._by_id[self._key][-1](status, body, sequence)
            return
        for respond in self._by_id.pop(self._key, ()):
            respond(status, body, sequence)


def limited(
    host: HostCore, calls: dict[tuple[str, str, str], UnderWay], call: Call, respond: Respond
) -> Respond:
    """Sees to it that a call ends in time.

    Args:
        calls: those whose ids their callers gave.
    """
    call.expires_at = host.clock.monotonic() + call.timeout_s

    def expired() -> None:
        error = DeadlineExceeded(
            f"{call.class_name}/{call.name}.{call.method} did not end within the "
            f"{call.timeout_s:g} s that its caller had for it: it was rolled back"
        )
        under_way = calls.get((call.class_name, call.name, call.id))
        if (
            under_way is not None and len(under_way) > 1 and in_time in under_way
        ):  # others wait for it, and have time
            under_way.remove(in_time)
            respond(ERROR, to_wire(_outlasted(call), with_cause=False), 0)
            return
        host.cancel(ObjectId(call.class_name, call.name), call.id, error)

    timer = host.loop.call_later(call.timeout_s, expired)

    def in_time(status: int, body: bytes, sequence: int) -> None:
        if status < OPENED:
            timer.cancel()
        respond(status, body, sequence)

    return in_time


def stopping() -> Unavailable:
    """The error for a call that comes while its host is being stopped: it has not run."""
    return Unavailable("the host is being stopped: when it is back, make the call again")


def _outlasted(call: Call) -> DeadlineExceeded:
    """The error for one of several who wait for a call, whose time is over; the others' is not."""
    return DeadlineExceeded(
        f"{call.class_name}/{call.name}.{call.method} did not end within {call.timeout_s:g} s; it "
        "goes on for others who asked for the same: ask again with the same id"
    )
