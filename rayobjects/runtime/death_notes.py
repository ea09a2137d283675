"""Which calls a host was running when its process died: written where a process's death leaves it.

The notes are a small file that is mapped into memory, so that a note costs a microsecond, and what
was noted is there when the process is killed at once. They need not survive the machine: a call
that ends its host's process does not pull the plug. So nothing is synced, and the file lies in the
directory of Ray's session on the host's node.

    file missing     the life before ended in order, or there was none
    file there       the life before died; its notes say what ran
    file damaged     as if nothing had been noted

A host writes into it only while it is on probation (`probation`), after a death; the file itself
is there from the first moment of every life.
"""

from __future__ import annotations

import mmap
import os
from hashlib import blake2b
from pathlib import Path
from struct import Struct

import msgspec

KEY_BYTES = 16
SLOTS = 8_192
"""Calls that can be noted at the same time; of those beyond, none is suspected. 200 KB."""

_SLOT = Struct(f"<Q{KEY_BYTES}s")

Key = bytes
"""Names a call: a hash of its object and its id."""


def key_of(class_name: str, name: str, call_id: str) -> Key:
    """The key of a call."""
    text = f"{class_name}\0{name}\0{call_id}".encode()
    return blake2b(text, digest_size=KEY_BYTES).digest()


class Suspect(msgspec.Struct):
    """A call that ran when the host's process died.

    Attributes:
        deaths: how often it is believed to have been the cause.
        noted_at: when it last was, in seconds since the epoch.
    """

    deaths: int
    noted_at: float


class DeathNotes:
    """The notes of one life; made by `open`."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory = memory
        self._free = list(range(SLOTS - 1, -1, -1))
        self._order = 0

    @classmethod
    def open(cls, path: Path) -> tuple[DeathNotes, list[Key] | None]:
        """Begins a life.

        Returns:
            Its notes, and the calls that ran when the life before died, in the order in which
            they had begun; None if it did not die.

        Raises:
            OSError: there is no place for notes.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        running: list[Key] | None = None
        try:
            running = _read(path.read_bytes())
        except FileNotFoundError:
            pass
        path.unlink(missing_ok=True)  # a stale process that still writes has its own file
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, SLOTS * _SLOT.size)
            memory = mmap.mmap(descriptor, SLOTS * _SLOT.size)
        finally:
            os.close(descriptor)
        return cls(path, memory), running

    def begin(self, key: Key) -> int:
        """Notes that a call begins; returns what `end` takes."""
        if not self._free:
            return -1
        slot = self._free.pop()
        self._order += 1
        _SLOT.pack_into(self._memory, slot * _SLOT.size, self._order, key)
        return slot

    def end(self, slot: int) -> None:
        """The call has ended."""
        if slot >= 0:
            _SLOT.pack_into(self._memory, slot * _SLOT.size, 0, b"")
            self._free.append(slot)

    def suspects(self) -> dict[Key, Suspect]:
        """Those of earlier deaths."""
        try:
            found = msgspec.msgpack.decode(
                self._suspects_path.read_bytes(), type=dict[bytes, Suspect]
            )
        except (OSError, msgspec.DecodeError):
            return {}
        return found

    def remember(self, suspects: dict[Key, Suspect]) -> None:
        """Keeps the suspects for the next lives."""
        scratch = self._suspects_path.with_suffix(".tmp")
        scratch.write_bytes(msgspec.msgpack.encode(suspects))
        scratch.replace(self._suspects_path)

    def close(self) -> None:
        """The life ends in order."""
        self._path.unlink(missing_ok=True)

    @property
    def _suspects_path(self) -> Path:
        return self._path.with_suffix(".suspects")


def _read(content: bytes) -> list[Key]:
    if len(content) != SLOTS * _SLOT.size:
        return []
    noted = [(order, key) for order, key in _SLOT.iter_unpack(content) if order]
    return [key for _, key in sorted(noted)]
