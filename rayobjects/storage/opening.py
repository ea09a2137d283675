"""Opening a shard: from the files that its owner finds to what it has in memory.

The epoch is claimed before. Then the checkpoint first, which waits until a stale owner has let go
of it, and the journal second, so that no segment that the stale owner still removed is missed.

Segments that are not needed any more are removed last, when what is needed of them has been
written anew and synced. A process that dies in between leaves both: the same records, of which the
next owner ignores those with the lower epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayobjects.storage.checkpoint import NAME as CHECKPOINT
from rayobjects.storage.checkpoint import Rest
from rayobjects.storage.files import Files
from rayobjects.storage.folding import Folding
from rayobjects.storage.indexes import Indexes
from rayobjects.storage.journal import Journal, first_of, read_segment
from rayobjects.storage.recovery import Plan, decide


@dataclass
class Found:
    """What was there.

    Attributes:
        rest: the checkpoint besides the state; None if there is no checkpoint.
        plan: what was made of the journal.
        journal_bytes: how large it was.
    """

    rest: Rest | None
    plan: Plan
    journal_bytes: int


def recover(
    files: Files, directory: str, shard: str, epoch: int, folding: Folding, journal: Journal
) -> Found:
    """Opens the checkpoint, reads the journal, and lets both go on from there.

    Raises:
        StorageFailed: something is damaged, foreign or of another version: nothing was changed.
    """
    names = files.list(directory)
    rest: Rest | None = None
    if CHECKPOINT in names:
        rest = folding.open_checkpoint().rest()
        # Whoever made the checkpoint may have died before it did this (see `folding`).
        files.sync_directory(directory)
        folding.folded = rest.folded
        # A stale owner may have folded, and removed segments, until the database was ours.
        names = files.list(directory)
    segments, sizes = [], {}
    for name in names:
        if first_of(name) is not None:
            data = files.read(f"{directory}/{name}") or b""
            segments.append(read_segment(name, data))
            sizes[name] = len(data)
    plan = decide(
        shard, epoch, folding.folded, segments, lambda name: files.path(f"{directory}/{name}")
    )
    journal.adopt([(name, last, sizes[name]) for name, last in plan.keep], plan.rewrite)
    rewritten = journal.segment
    for name in names:
        if name.endswith(".tmp") or (name in plan.remove and name != rewritten):
            files.remove(f"{directory}/{name}")
    return Found(rest, plan, sum(sizes.values()))


def restore(indexes: Indexes, rest: Rest) -> None:
    """Fills the memory with what the checkpoint has; the journal's records come on top of it."""
    indexes.calls = rest.finished
    for each in rest.sends:
        waiting = {send.gateway for send in each.sends}
        indexes.add_sends((each.class_name, each.name), each.sequence, each.sends, waiting)
    for key, change in sorted(rest.sockets, key=lambda each: each[1].order):
        indexes.add_socket(key, change)
    for key, promise in sorted(rest.promises, key=lambda each: each[1].order):
        indexes.promises.add(key, promise)
    for key, epoch in rest.owners.items():
        indexes.add_owner(key, epoch)
