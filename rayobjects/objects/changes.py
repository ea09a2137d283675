"""What a call changed, on its way into the call's record."""

from __future__ import annotations

import msgspec

from rayobjects.messages import Send
from rayobjects.storage.records import Promise, Record, SocketChange, Write


class Changes(msgspec.Struct, gc=False):
    """What a call changed: goes into its record as it is.

    Attributes:
        writes: the changed keys.
        clear: the storage keys are deleted before `writes`.
        sockets: the changed sockets.
        sends: messages for sockets.
        delete: the object is deleted, with all that it had.
        promises: schedules and told messages.
    """

    writes: list[Write]
    clear: bool
    sockets: list[SocketChange]
    sends: list[Send]
    delete: bool = False
    promises: list[Promise] = []

    def write_into(self, record: Record) -> None:
        """Makes them a record's."""
        record.writes = self.writes
        record.clear = self.clear
        record.delete = self.delete
        record.sockets = self.sockets
        record.sends = self.sends
        record.promises = self.promises

    def __bool__(self) -> bool:
        return bool(
            self.writes or self.clear or self.delete or self.sockets or self.sends or self.promises
        )


NO_CHANGES = Changes([], False, [], [])
"""Shared by all calls that changed nothing: leave it as it is."""
