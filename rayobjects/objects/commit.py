"""A record on its way to the disk, and what must not leave before it (guarantee 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rayobjects.errors import MethodError, StorageFailed, to_wire
from rayobjects.messages import ERROR, Call
from rayobjects.storage.records import Record

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.context import CallContext

Respond = Callable[[int, bytes, int], None]
"""Takes (OK, ERROR or REDIRECT; body; sequence of the record or 0). Called exactly once."""


def no_reply(status: int, body: bytes, sequence: int) -> None:
    """For calls that nobody waits for."""


class Redirected(Exception):
    """The object's class is hosted elsewhere."""


class Aborted(BaseException):
    """The object has ended its running call (`self.abort`). No Exception, so that no handler for
    those holds it up."""


def aborted(activation: Activation, call: Call) -> MethodError:
    """The error for a call that the object has ended so."""
    return MethodError(
        f"{activation.shown}.{call.method} was ended by abort: {activation.state.aborted}",
        cause_type="Aborted",
    )


class Commit:
    """A record on its way to the disk, and what must not leave before it."""

    __slots__ = ("activation", "body", "context", "followers", "record", "respond", "status")

    def __init__(
        self,
        activation: Activation,
        record: Record,
        context: CallContext | None,
        respond: Respond,
        status: int,
        body: bytes,
    ) -> None:
        self.activation = activation
        self.record = record
        self.context = context
        self.respond = respond
        self.status = status
        self.body = body
        self.followers: list[Callable[[StorageFailed | None], None]] | None = None

    def followed_by(self, follow: Callable[[StorageFailed | None], None]) -> None:
        """Has `follow` called when it is on disk, or with the error for which it is not."""
        if self.followers is None:
            self.followers = [follow]
        else:
            self.followers.append(follow)

    def done(self, error: StorageFailed | None, sequence: int) -> None:
        activation = self.activation
        activation.pending -= 1
        if activation.pending == 0:
            activation.tail = None
            if error is None:
                activation.settled()
        if error is None:
            record = self.record
            if record.sends or record.sockets or record.promises or record.delete:
                activation.host.committed(record, sequence)
            self.respond(self.status, self.body, sequence)
            if self.context is not None:
                self.context.ended()
        else:
            activation.host.fail(error)
            self.respond(ERROR, to_wire(error, with_cause=False), 0)
        if self.followers is not None:
            for follow in self.followers:
                follow(error)
