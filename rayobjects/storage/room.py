"""Whether a shard has room for a record: the bounds of what it keeps in memory (guarantee 8)."""

from __future__ import annotations

from rayobjects.errors import Overloaded
from rayobjects.limits import (
    FINISHED_CALLS_MAX,
    HELD_BYTES_MAX,
    MEMTABLE_BYTES_MAX,
    PROMISES_BYTES_MAX,
    PROMISES_MAX,
)
from rayobjects.storage.indexes import Indexes
from rayobjects.storage.records import Record


def check_room(shard: str, record: Record, memtable_bytes: int, indexes: Indexes) -> None:
    """Raises Overloaded if the shard has no room for what the record brings."""
    if memtable_bytes > MEMTABLE_BYTES_MAX:
        raise Overloaded(
            f"more than {MEMTABLE_BYTES_MAX:,} bytes wait to be folded into the checkpoint of "
            f"{shard}: back off, then try again"
        )
    if record.call_id and len(indexes.calls) >= FINISHED_CALLS_MAX:
        raise Overloaded(
            f"{shard} keeps {FINISHED_CALLS_MAX:,} finished calls: back off until the oldest have "
            "left their window"
        )
    if record.held and indexes.calls.held_bytes + len(record.reply) > HELD_BYTES_MAX:
        raise Overloaded(
            f"{shard} holds {HELD_BYTES_MAX:,} bytes of replies for other objects: back off"
        )
    if record.promises:
        promises = indexes.promises
        added, added_bytes = promises.growth((record.class_name, record.name), record.promises)
        if added > 0 and promises.count + added > PROMISES_MAX:
            raise Overloaded(
                f"the objects of {shard} have {PROMISES_MAX:,} schedules and messages to deliver: "
                "back off, or look at `rayobjects schedules`"
            )
        if added_bytes > 0 and promises.size + added_bytes > PROMISES_BYTES_MAX:
            raise Overloaded(
                f"the schedules and messages to deliver of the objects of {shard} have "
                f"{PROMISES_BYTES_MAX:,} bytes: back off, or look at `rayobjects schedules`"
            )
