"""A shard against a plain model, through everything that may happen to its process: it folds, is
closed, dies, loses power, meets a broken disk, is taken over. Commits, reads, dedicated owners,
sockets, messages and finished calls at once."""

from __future__ import annotations

import copy
import errno
import shutil
import tempfile
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec.structs import replace
from storage_double import HandClock, HandLoop, Told, examples, finish

from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.messages import Send
from rayobjects.storage.checkpoint import NAME as CHECKPOINT
from rayobjects.storage.ownership import Ownership
from rayobjects.storage.records import ATTRIBUTE, DELETED, ITEM, JSON, PICKLE, Record, SocketChange
from rayobjects.storage.shard import Shard
from rayobjects.testing.files import STEPS, Crashed, FaultyFiles

NAMES = ("a", "b", "ä")
KEYS = (ATTRIBUTE + "n", ITEM + "k", ITEM + "l", ITEM + "é", ITEM + "\U0001f600")


@dataclass
class Room:
    exists: bool = False
    entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    sockets: dict[str, SocketChange] = field(default_factory=dict)
    owner: int = 0


@dataclass
class State:
    """All that a shard should know after some record."""

    rooms: dict[str, Room] = field(default_factory=lambda: {name: Room() for name in NAMES})
    sends: dict[int, str] = field(default_factory=dict)  # sequence → name
    finished: dict[str, tuple[str, int]] = field(default_factory=dict)  # call id → name, sequence

    def after(self, record: Record) -> State:
        state = copy.deepcopy(self)
        room = state.rooms[record.name]
        if record.claims:
            room.owner = record.owner_epoch
            return state
        if record.delete:
            room.exists, room.entries, room.sockets = False, {}, {}
        if record.clear:
            room.entries = {k: v for k, v in room.entries.items() if not k.startswith(ITEM)}
        for key, encoding, data in record.writes:
            room.entries.pop(key, None)
            if encoding != DELETED:
                room.entries[key] = (encoding, data)
        for change in record.sockets:
            if change.open:
                room.sockets[change.socket] = replace(change, order=0)
            else:
                room.sockets.pop(change.socket, None)
        if not record.delete or room.entries or room.sockets:
            room.exists = True
        if record.sends:
            state.sends[record.sequence] = record.name
        if record.call_id:
            state.finished[record.call_id] = (record.name, record.sequence)
        return state


WRITES = st.lists(
    st.tuples(
        st.sampled_from(KEYS), st.sampled_from([DELETED, JSON, JSON, PICKLE]), st.integers(0, 9)
    ),
    max_size=3,
)
SOCKETS = st.dictionaries(st.sampled_from("st"), st.booleans()).map(lambda d: list(d.items()))


class ShardMachine(RuleBasedStateMachine):
    shard: Shard

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.clock, self.loop = HandClock(), HandLoop()
        self.states = [State()]  # by sequence
        self.told = 0  # the last sequence that was acknowledged
        self.sent: set[int] = set()
        self.broken = False  # a disk error was ordered, or has happened
        self.wrong: list[str] = []
        self.calls = 0

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.files = FaultyFiles(self.root, seed=seed)
        self.opened(self.files)

    def teardown(self) -> None:
        if hasattr(self, "shard"):
            self.again(crash=False)
            self.shard.close()
        shutil.rmtree(self.root)

    # -- what happens -------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(NAMES),
        writes=WRITES,
        clear=st.booleans(),
        delete=st.sampled_from([False, False, False, True]),
        sockets=SOCKETS,
        send=st.booleans(),
        owned=st.sampled_from([None, None, "now", "before"]),
        turn=st.booleans(),
    )
    def commit(
        self,
        name: str,
        writes: list[tuple[str, int, int]],
        clear: bool,
        delete: bool,
        sockets: list[tuple[str, bool]],
        send: bool,
        owned: str | None,
        turn: bool,
    ) -> None:
        self.calls += 1
        owner = self.states[-1].rooms[name].owner
        record = Record(
            "Room",
            name,
            call_id=f"call{self.calls}",
            finished_at=self.clock.now(),
            reply=b"reply",
            writes=[(k, e, b"%d" % v if e != DELETED else b"") for k, e, v in writes],
            clear=clear,
            delete=delete,
            sockets=[SocketChange(f"{name}-{s}", "g", o, ("tag",) * o) for s, o in sockets],
            sends=[Send("g", 1, b"hi")] if send else [],
            owner_epoch={None: 0, "now": owner, "before": max(owner - 1, 0)}[owned],
        )
        fails = owned == "before" and owner > 1
        told, shard = Told(), self.shard

        def done(error: StorageFailed | None, sequence: int) -> None:
            told()(error, sequence)
            if error is None:
                self.expect(sequence == record.sequence == self.told + 1, "in order, without gaps")
                self.told = sequence
            else:
                self.expect(sequence == 0, "no sequence with an error")
                self.expect(fails or bool(shard.failed), error.message)

        shard.commit(record, done)
        assert not told.calls, "never from within commit"
        if record.sequence:
            assert not fails
            assert record.sequence == len(self.states)
            self.states.append(self.states[-1].after(record))
        if turn:

            def act() -> None:
                self.turn()
                assert len(told.calls) == 1

            self.guarded(act)

    @rule(name=st.sampled_from(NAMES))
    def claim(self, name: str) -> None:
        expected = self.states[-1].rooms[name].owner + 1
        sequence = len(self.states)

        shard, failed = self.shard, self.shard.failed

        def done(error: StorageFailed | None, epoch: int) -> None:
            if error is None:
                self.expect(epoch == expected, "the next epoch")
                self.expect(self.told + 1 == sequence, "in order, without gaps")
                self.told = sequence
            else:
                self.expect(epoch == 0 and bool(shard.failed), error.message)

        self.shard.claim_object(ObjectId("Room", name), done)
        if not failed:
            claim = Record("Room", name, owner_epoch=expected, claims=True, sequence=sequence)
            self.states.append(self.states[-1].after(claim))
        self.guarded(self.turn)

    @rule()
    def tick(self) -> None:
        self.guarded(self.turn)

    @rule(name=st.sampled_from(NAMES), stale=st.booleans())
    def confirm(self, name: str, stale: bool) -> None:
        owner = self.states[-1].rooms[name].owner
        told, submitted = Told(), len(self.states) - 1
        at: list[int] = []
        self.shard.confirm(lambda error, _: (at.append(self.told), told()(error, 0))[0])
        epoch = owner - 1 if stale else owner
        self.shard.confirm_object(ObjectId("Room", name), epoch, told("object"))
        self.guarded(self.turn)
        if told.calls and not self.broken and not self.shard.failed:
            assert [who for who, _ in told.good] == ([None] if stale else [None, "object"])
            assert at == [submitted], "after the commits before it"

    @rule()
    def fold(self) -> None:
        def act() -> None:
            self.turn()
            try:
                finish(self.shard.fold())
            except StorageFailed:
                assert self.broken or self.shard.failed

        self.guarded(act)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        pending = self.shard.pending()
        if pending:
            each = data.draw(st.sampled_from(pending))
            id = ObjectId(each.class_name, each.name)
            self.shard.sent(id, each.sequence, "another")
            assert each.sequence in [other.sequence for other in self.shard.pending_of(id)]
            self.shard.sent(id, each.sequence, "g")
            self.sent.add(each.sequence)

    @rule(seconds=st.sampled_from([1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds
        self.guarded(self.shard.expire)

    # -- how it ends --------------------------------------------------------------------------

    @rule(crash=st.booleans())
    def die(self, crash: bool) -> None:
        self.again(crash=crash)

    @rule()
    def close(self) -> None:
        def act() -> None:
            before = len(self.states) - 1
            failed = self.shard.failed
            try:
                self.shard.close()
            except StorageFailed:
                assert self.broken
            else:
                # All was written, and nobody waits for an answer.
                assert self.told == before or self.broken or failed
                self.shard.close()

        self.guarded(act)
        self.again(crash=False)

    @rule(at=st.integers(0, 12), crash=st.booleans(), opening=st.booleans())
    def die_soon(self, at: int, crash: bool, opening: bool) -> None:
        if opening:
            self.again(crash=crash, opening_dies_at=at)
        else:
            self.files.crash_at = self.files.operations + at

    @precondition(lambda self: not self.broken)
    @rule(
        step=st.sampled_from([step for step in STEPS if step != "unlink"]),
        error=st.sampled_from([errno.ENOSPC, errno.EIO]),
        skip=st.integers(0, 2),
    )
    def break_disk(self, step: str, error: int, skip: int) -> None:
        self.files.fail(step, error, skip=skip)
        self.broken = True

    @rule(late=st.booleans())
    def take_over(self, late: bool) -> None:
        """Another host claims the shard while this one lives, and may still write."""
        old, old_loop = self.shard, self.loop
        if self.broken or self.files.crash_at is not None or old.failed:
            return
        self.loop = HandLoop()
        self.files = FaultyFiles(self.root, seed=self.calls, beside=self.files)
        # The claimant waits for the checkpoint, if there is one, until the old host lets it go.
        waits = self.files.exists(CHECKPOINT)
        if waits:
            Ownership.claim(self.files, ".").release()
        else:
            self.opened(self.files)
        told = Told()
        if late:
            for number in range(2):
                record = Record("Room", "a", writes=[(ITEM + "late", JSON, b"1")])
                old.commit(record, told(number))
                if waits:  # nobody has read the journal yet, so it may be found there
                    self.states.append(self.states[-1].after(record))
        old.confirm(told("confirm"))
        old_loop.turn()
        assert not told.good, "a stale owner acknowledges nothing"
        assert told.calls
        assert old.failed
        old.abandon()
        if waits:
            self.opened(self.files)
        self.check()

    # -- inside -------------------------------------------------------------------------------

    def expect(self, holds: bool, what: str) -> None:
        """An assertion within a callback, where the shard catches what is raised."""
        if not holds:
            self.wrong.append(what)

    def turn(self) -> None:
        self.loop.turn()
        self.check()

    def guarded(self, act: Any) -> None:
        """Does it; a process that dies in it comes back."""
        try:
            act()
        except Crashed:
            self.again(crash=self.calls % 2 == 0)

    def again(self, *, crash: bool, opening_dies_at: int | None = None) -> None:
        self.shard.abandon()
        self.loop.waiting.clear()
        self.files = self.files.crash() if crash else self.files.kill()
        self.files.crash_at = opening_dies_at
        try:
            self.opened(self.files)
        except Crashed:
            self.files = self.files.crash() if crash else self.files.kill()
            self.opened(self.files)
        self.files.crash_at = None
        self.broken = False

    def opened(self, files: FaultyFiles) -> None:
        shard = Shard.open(
            files,
            "default-0000",
            clock=self.clock,
            soon=self.loop.soon,
            post=self.loop.soon,
            threads=False,
            segment_bytes_max=300,
        )
        last = shard.stats()["records"]
        assert self.told <= last < len(self.states), "nothing acknowledged is lost"
        del self.states[last + 1 :]
        self.told = last
        self.shard = shard
        self.check()
        self.look()

    def check(self) -> None:
        """The shard knows what it should after the last record that it has answered for."""
        assert not self.wrong
        shard = self.shard
        if shard.failed:
            assert self.broken or self.files.crash_at is not None
            return
        state = self.states[self.told]
        for name, room in state.rooms.items():
            loaded = finish(shard.load(ObjectId("Room", name)))
            assert (loaded.exists, loaded.whole) == (room.exists, True)
            assert loaded.entries == room.entries
            # In the order in which they were opened; the numbers are the shard's own affair.
            found = [replace(each, order=0) for each in loaded.sockets]
            assert found == list(room.sockets.values())
            assert loaded.owner_epoch == room.owner
        pending = {each.sequence: each.name for each in shard.pending()}
        assert pending.items() <= state.sends.items()
        assert state.sends.keys() - self.sent <= pending.keys()
        for call_id, (name, sequence) in state.finished.items():
            finished = shard.finished(ObjectId("Room", name), call_id)
            if finished is not None:
                assert (finished.sequence, finished.reply) == (sequence, b"reply")
            else:
                assert self.clock.now() > 1_000_000 + 600
        assert {socket for _, socket, _ in shard.sockets()} == {
            socket for room in state.rooms.values() for socket in room.sockets
        }

    @rule()
    def look(self) -> None:
        """The same by single keys, pages, counts and names."""
        shard = self.shard
        if shard.failed:
            return
        state = self.states[self.told]
        for name, room in state.rooms.items():
            id = ObjectId("Room", name)
            items = sorted(key for key in room.entries if key.startswith(ITEM))
            assert shard.count(id) == len(items)
            for key in KEYS:
                assert shard.read(id, key) == room.entries.get(key)
            for reverse, limit, start in ((False, 2, None), (True, 2, None), (False, 9, "/l")):
                keys = [key for key in items if start is None or key >= start]
                page = shard.scan(
                    id, prefix=ITEM, start=start, end=None, limit=limit, reverse=reverse
                )
                keys.sort(reverse=reverse)
                assert page == [(key, *room.entries[key]) for key in keys[:limit]]
        names = sorted(name for name, room in state.rooms.items() if room.exists)
        assert finish(shard.list_objects("Room")) == names
        assert (
            finish(shard.list_objects("Room", after="a", limit=1))
            == [name for name in names if name > "a"][:1]
        )


ShardMachine.TestCase.settings = examples(12, stateful_step_count=25)
TestShardMachine = ShardMachine.TestCase
