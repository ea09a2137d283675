"""What an owner makes of the journal that it finds: a decision table, and no I/O.

Words: a segment is *stale* if one that begins earlier has a higher epoch; a segment's records are
*superseded* from the first sequence of the next live segment with a higher epoch on; `folded` is
the last sequence in the checkpoint (0 without one).

    row                          found                                     decision
    1  missing                   no segment, no checkpoint                 a new shard: begin with 1
    2  closed                    no segment, a checkpoint                  go on with folded + 1
    3  empty                     a segment without groups                  no records
    4  torn tail                 the last live segment ends in a broken    cut it: it was never
                                 group, no whole one behind it             acknowledged
    5  torn tail, taken over     an earlier segment does, the next one     cut it: the newer owner
                                 has a higher epoch and goes on there      had cut it
    6  torn tail inside          an earlier segment does, otherwise        stop
    7  bad record in the middle  a broken group with a whole one behind    stop
    8  gap in a segment          sequences that do not follow each other   stop
    9  gap between segments      a segment does not begin where the one    stop
                                 before ended
    10 overlap                   two segments of one epoch have the same   stop
                                 sequences
    11 stale segment             see above                                 ignore and remove
    12 stale records             superseded ones                           ignore
    13 checkpoint ahead          records up to folded                      ignore; remove segments
                                                                           that have no others
    14 checkpoint behind         the first record is beyond folded + 1     stop
    15 unknown format            header or records of another version      stop
    16 foreign file              no segment, or one of another shard, or   stop
                                 one that was renamed
    17 epoch lost                a segment's epoch is not below the one    stop
                                 just claimed
    18 damage that is folded     rows 6 to 9 in a segment that the next    ignore and remove
                                 one shows to be folded whole

*Stop* is a StorageFailed that names the file, the offset and what to do; nothing is changed then.
One thing cannot be told apart: damage to the very last group looks like a torn tail (row 4).

The records of the last live segment are written anew before anything is acknowledged on top of
them (`Plan.rewrite`): its last sync may have failed, and then what was just read was the page cache
and not the disk. Earlier segments were synced, or their owner had not begun the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rayobjects.errors import StorageFailed
from rayobjects.storage.journal import Segment, Tail, unreadable
from rayobjects.storage.records import Record


@dataclass
class Plan:
    """What recovery does.

    Attributes:
        records: those beyond the checkpoint, in order.
        rewrite: the end of `records` that must be written anew.
        keep: earlier segments that hold the others: (name, last sequence).
        remove: segments to remove, after the rewriting.
        last: the last sequence in use.
    """

    records: list[Record] = field(default_factory=list)
    rewrite: list[Record] = field(default_factory=list)
    keep: list[tuple[str, int]] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    last: int = 0


def decide(
    shard: str,
    epoch: int,
    folded: int,
    segments: list[Segment],
    path_of: Callable[[str], str] = str,
) -> Plan:
    """Walks the table.

    Args:
        shard: the shard's name.
        epoch: the one just claimed.
        folded: the last sequence in the checkpoint, 0 if there is none.
        segments: all that were found, in any order.
        path_of: a segment's path, for messages.

    Raises:
        StorageFailed: a row says *stop*.
    """
    plan = Plan(last=folded)
    live = _live(shard, epoch, segments, path_of, plan)
    expected = 0  # unknown
    for position, segment in enumerate(live):
        following = live[position + 1] if position + 1 < len(live) else None
        if following is not None and following.first <= folded + 1:  # rows 13, 18
            plan.remove.append(segment.name)
            expected = 0
            continue
        path = path_of(segment.name)
        if expected and segment.first != expected:  # row 9
            raise _gap(path, expected, segment.first)
        if not expected and segment.first > folded + 1:  # row 14
            raise _behind(path, folded, segment.first)
        records = _records(segment, following, path, path_of)
        expected = segment.first + len(records)
        wanted = [record for record in records if record.sequence > folded]  # row 13
        plan.records += wanted
        plan.last = max(plan.last, expected - 1)
        if following is None:
            plan.rewrite = wanted
            plan.remove.append(segment.name)
        else:
            plan.keep.append((segment.name, expected - 1))
    return plan


def _live(
    shard: str, epoch: int, segments: list[Segment], path_of: Callable[[str], str], plan: Plan
) -> list[Segment]:
    """Those that are not stale, by first sequence. Rows 11, 15 (headers), 16 and 17."""
    live: list[Segment] = []
    highest = 0
    for segment in sorted(segments, key=lambda each: each.first):
        header, path = segment.header, path_of(segment.name)
        if header is None:
            raise unreadable(path, segment.problem)
        if header.shard != shard:
            raise unreadable(path, f"belongs to the shard {header.shard}, not to {shard}")
        if header.first != segment.first:
            raise unreadable(path, f"was renamed: it begins with record {header.first:,}")
        if header.epoch >= epoch:
            raise StorageFailed(
                f"{path} was written under epoch {header.epoch}, but the epoch file has only "
                f"reached {epoch}: it was lost, or comes from an older copy. If no other host uses "
                f"this shard, write {header.epoch} into the file `epoch` beside it"
            )
        if header.epoch < highest:
            plan.remove.append(segment.name)
            continue
        highest = header.epoch
        live.append(segment)
    return live


def _records(
    segment: Segment, following: Segment | None, path: str, path_of: Callable[[str], str]
) -> list[Record]:
    """The records of a segment that count. Rows 3 to 12, and 15 (records)."""
    records = segment.records
    for sequence, record in enumerate(records, segment.first):
        if record.sequence != sequence:
            raise unreadable(
                path, f"is damaged: record {record.sequence:,} stands where {sequence:,} belongs"
            )
    end = segment.first + len(records)
    taken_over = False
    if following is not None:
        assert segment.header is not None
        assert following.header is not None
        taken_over = following.header.epoch > segment.header.epoch
        if end > following.first:
            if not taken_over:
                raise unreadable(
                    path_of(following.name),
                    f"repeats records of {segment.name} (from {following.first:,}) though both "
                    "come from the same owner",
                )
            return records[: following.first - segment.first]
    complete = taken_over and following is not None and end == following.first
    if segment.problem and not complete:
        raise unreadable(path, f"{segment.problem}, at byte {segment.offset:,}")
    if segment.tail is Tail.DAMAGED and not complete:
        raise unreadable(
            path, f"is damaged at byte {segment.offset:,}, and records behind that are whole"
        )
    if segment.tail is Tail.TORN and following is not None and not complete:
        raise unreadable(
            path, f"is damaged at byte {segment.offset:,}, and {following.name} follows"
        )
    return records


def _gap(path: str, expected: int, first: int) -> StorageFailed:
    return unreadable(path, f"begins with record {first:,}, but {expected:,} should come before it")


def _behind(path: str, folded: int, first: int) -> StorageFailed:
    where = f"the checkpoint ends with record {folded:,}" if folded else "there is no checkpoint"
    return unreadable(path, f"begins with record {first:,}, but {where}: records are missing")
