"""Ids: what an object is called, and where that puts it.

An id hashes to one of 4,096 slots, for ever: shards are ranges of slots and may be split, ids
never move between slots. The hash is part of the on-disk format, so it must never change.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from rayobjects.errors import InvalidCall
from rayobjects.limits import OBJECT_NAME_BYTES_MAX

SLOT_COUNT = 4096
"""Slots of a storage root. Enough to split 16 shards eight times over; a power of two, so that a
slot is the top 12 bits of the hash."""

_SLOT_SHIFT = 64 - 12


class ObjectId(NamedTuple):
    """The id of one durable object: its class's name and its own name."""

    class_name: str
    name: str

    def __str__(self) -> str:
        return f"{self.class_name}/{self.name}"


def check_object_name(name: object) -> str:
    """Returns the name if an object may have it.

    Raises:
        InvalidCall: it is no string, is empty, has more than 1,024 bytes of UTF-8, or cannot be
            written as UTF-8 at all (a lone surrogate).
    """
    if not isinstance(name, str):
        raise InvalidCall(f"an object's name is a string, not {type(name).__name__}: pass str(…)")
    if not name:
        raise InvalidCall("an object's name must not be empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidCall(
            f"the object name {name!r} cannot be written as UTF-8: remove the lone surrogates"
        ) from None
    if size > OBJECT_NAME_BYTES_MAX:
        raise InvalidCall(
            f"an object's name has at most {OBJECT_NAME_BYTES_MAX:,} bytes of UTF-8, this one has "
            f"{size:,}: use a shorter name, for example a hash of it"
        )
    return name


@lru_cache(maxsize=65_536)
def object_hash(id: ObjectId) -> int:
    """The id's 64-bit hash (BLAKE2b). Finds an object's rows; its top 12 bits are the slot."""
    return int.from_bytes(blake2b(f"{id[0]}\0{id[1]}".encode(), digest_size=8).digest(), "big")


def slot_of(id: ObjectId) -> int:
    """The slot, 0 to 4,095, that the id hashes to."""
    return object_hash(id) >> _SLOT_SHIFT


def key_hash(id: ObjectId, key: str) -> int:
    """The 64-bit hash of one key of one object. Finds a single row of a large object."""
    text = f"{id[0]}\0{id[1]}\0{key}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
