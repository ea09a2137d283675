"""All guarantees at once: random calls, sockets and disasters against a model.

Whatever happens, in the end every call has been answered, and

    each acknowledged call is there exactly once, in the order in which it was sent     (2, 5)
    what raised left nothing                                                            (3)
    what was acknowledged before the power failed is there after it                     (4)
    each socket got every committed message exactly once and in order                   (6)

A call that was answered with StorageFailed is there once or not at all.

`RAYOBJECTS_EXAMPLES=5000 pytest --timeout=0 tests/guarantees/test_guarantees_machine.py` runs for
longer, with longer examples, and at random; without it the same few examples run each time.

An example that fails says what was asked and answered, step by step, and what the files hold.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)
from machine_report import EXAMPLES, files_report, run_machine

import rayobjects as ro
from rayobjects.errors import MethodError, StorageFailed
from rayobjects.messages import OK
from rayobjects.storage.ownership import Ownership
from rayobjects.testing import FaultyFiles, LocalHost, LocalSocket, LocalStub

T = TypeVar("T")


FOLDS_MAX = 3 if EXAMPLES else 1
"""A fold's first use of DuckDB takes longer than all the rest of an example."""

NAMES = ("a", "b", "c")
WITHIN_S = 20.0
"""More than anything takes: what has no answer then has been lost."""

MOVED_S_MAX = 500.0
"""All of a run's time: less than the window in which a key counts as the same call."""


class Book(ro.DurableObject):
    """Writes down each call that takes effect."""

    log: list[str] = ro.durable(factory=list)
    gifts: list[str] = ro.durable(factory=list)
    keyed: list[str] = ro.durable(factory=list)
    said: list[str] = ro.durable(factory=list)

    def on_connect(self, ws: ro.WebSocket) -> None:
        ws.attachment = []

    def on_message(self, ws: ro.WebSocket, data: str) -> None:
        self.said.append(data)
        ws.attachment.append(data)
        if data.endswith("!"):
            raise ValueError(data)

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        self.said.append(f"{ws.id} closed")

    def add(self, token: str) -> int:
        self.log.append(token)
        self.storage[token] = len(self.log)
        self.sockets.broadcast(token)
        return len(self.log)

    async def add_slowly(self, token: str) -> int:
        place = self.add(token)
        for _ in range(5):
            await asyncio.sleep(0)
        return place

    def fail(self, token: str) -> None:
        self.add(token)
        raise ValueError(token)

    def give(self, token: str) -> None:
        self.gifts.append(token)

    async def pass_on(self, token: str, other: LocalStub) -> int:
        place = self.add(token)
        await other.give.remote(token)
        return place

    def once(self, key: str) -> None:
        self.keyed.append(key)

    def read(self) -> dict[str, Any]:
        return {
            "log": self.log,
            "gifts": self.gifts,
            "keyed": self.keyed,
            "said": self.said,
            "storage": dict(self.storage),
            "attachments": {socket.id: socket.attachment for socket in self.sockets},
        }


@dataclass
class Object:
    """What the model knows of one object. Values: True if acknowledged, None if not known."""

    log: dict[str, bool | None] = field(default_factory=dict)
    gifts: dict[str, bool | None] = field(default_factory=dict)
    keyed: dict[str, bool | None] = field(default_factory=dict)
    used_keys: set[str] = field(default_factory=set)
    sockets: list[Client] = field(default_factory=list)


@dataclass
class Client:
    """A socket, with how long the log was when it was opened, and what it said."""

    socket: LocalSocket
    since: int
    said: dict[str, bool | None] = field(default_factory=dict)


class Disasters(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.objects = {name: Object() for name in NAMES}
        self.pending: list[asyncio.Task[None]] = []
        self.history: list[str] = []
        self.tokens = 0
        self.moved_s = 0.0
        self.folds = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, WITHIN_S))

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        async def enter() -> LocalHost:
            files = FaultyFiles(self.directory.name, seed=seed)
            host = LocalHost([Book], files=files)
            await host.__aenter__()
            return host

        self.host = self.run(enter())

    def stub(self, name: str) -> LocalStub:
        return self.host.get(Book, name)

    def token(self) -> str:
        self.tokens += 1
        return f"t{self.tokens}"

    def note(self, text: str) -> None:
        """Writes down what happened, for the report of an example that fails."""
        self.history.append(text)

    def refused(self, text: str, error: StorageFailed) -> None:
        self.note(f"{text}: not known ({error.message})")

    def report(self, name: str, what: str, state: dict[str, Any]) -> str:
        """Everything that helps to find out why an object is not as it should be."""
        model = self.objects[name]
        lines = [f"Book/{name}: {what}", "", "found:"]
        lines += [f"  {key}: {value}" for key, value in state.items()]
        lines += ["", "expected (None: not known):", f"  log: {model.log}"]
        lines += [f"  gifts: {model.gifts}", f"  keyed: {model.keyed}"]
        for client in model.sockets:
            lines.append(f"  {client.socket.id} since {client.since}: said {client.said}")
            lines.append(f"    received {client.socket.received} at {client.socket.positions}")
        lines += ["", "history:", *(f"  {each}" for each in self.history)]
        lines += ["", "files:", *(f"  {each}" for each in files_report(self.directory.name))]
        return "\n".join(lines)

    def begin(self, call: Coroutine[Any, Any, None]) -> None:
        """Begins a call, and lets it get as far as its channel."""
        self.pending.append(self.loop.create_task(call))
        self.run(asyncio.sleep(0))

    # -- calls ------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), slowly=st.booleans(), count=st.integers(1, 4))
    def add(self, name: str, slowly: bool, count: int) -> None:
        async def call(token: str) -> None:
            method = self.stub(name).add_slowly if slowly else self.stub(name).add
            self.objects[name].log[token] = None
            self.note(f"{name}.add{'_slowly' if slowly else ''}({token})")
            try:
                await method.remote(token)
                self.objects[name].log[token] = True
                self.note(f"{name}.add({token}): acknowledged")
            except StorageFailed as error:
                self.refused(f"{name}.add({token})", error)

        for _ in range(count):
            self.begin(call(self.token()))

    @rule(name=st.sampled_from(NAMES))
    def fail(self, name: str) -> None:
        async def call(token: str) -> None:
            self.note(f"{name}.fail({token})")
            try:
                await self.stub(name).fail.remote(token)
                raise AssertionError("it should have failed")
            except (MethodError, StorageFailed):
                pass

        self.begin(call(self.token()))

    # In one direction only: two objects that call each other at the same time wait for ever.
    @rule(pair=st.sampled_from([("a", "b"), ("a", "c"), ("b", "c")]))
    def pass_on(self, pair: tuple[str, str]) -> None:
        name, other = pair

        async def call(token: str) -> None:
            self.objects[name].log[token] = None
            self.objects[other].gifts[token] = None
            self.note(f"{name}.pass_on({token}, {other})")
            try:
                await self.stub(name).pass_on.remote(token, self.stub(other))
                self.objects[name].log[token] = True
                self.objects[other].gifts[token] = True
                self.note(f"{name}.pass_on({token}): acknowledged")
            except StorageFailed as error:
                self.refused(f"{name}.pass_on({token})", error)

        self.begin(call(self.token()))

    @rule(name=st.sampled_from(NAMES), key=st.sampled_from(["k", "l"]))
    def once(self, name: str, key: str) -> None:
        async def call() -> None:
            model = self.objects[name]
            if key not in model.used_keys:
                model.keyed.setdefault(key, None)
            self.note(f"{name}.once({key})")
            try:
                await self.host.post(self.stub(name), "once", {"key": key}, idempotency_key=key)
                if key in model.keyed:
                    model.keyed[key] = True
                self.note(f"{name}.once({key}): acknowledged")
            except StorageFailed as error:
                self.refused(f"{name}.once({key})", error)

        self.begin(call())

    @rule(name=st.sampled_from(NAMES))
    def read(self, name: str) -> None:
        async def call() -> None:
            try:
                seen = await self.stub(name).read.remote()
            except StorageFailed:
                return
            known = self.objects[name].log
            if [token for token in known if token in seen["log"]] != seen["log"]:
                raise AssertionError(self.report(name, "a read saw another log", seen))

        self.begin(call())

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.settle()
        self.note(f"{name} is deleted")

        async def call() -> None:
            while True:
                try:
                    await self.stub(name).delete()
                    return
                except StorageFailed:  # it may have happened
                    pass

        self.begin(call())
        self.wait()
        model = self.objects[name]
        used = model.used_keys | model.keyed.keys()
        self.objects[name] = Object(used_keys=used)
        self.settle()
        for client in model.sockets:
            assert client.socket.closed is not None

    # -- sockets ----------------------------------------------------------------------------

    @precondition(lambda self: sum(len(each.sockets) for each in self.objects.values()) < 4)
    @rule(name=st.sampled_from(NAMES))
    def connect(self, name: str) -> None:
        self.settle()
        opened: list[LocalSocket] = []

        async def call() -> None:
            try:
                opened.append(await self.host.connect(self.stub(name)))
                self.note(f"{name}: {opened[0].id} is open")
            except StorageFailed as error:
                # The gateway tells the object, as it does when a client has gone.
                self.refused(f"{name}: a socket", error)

        self.begin(call())
        self.wait()
        model = self.objects[name]
        model.sockets += [Client(socket, len(model.log)) for socket in opened]
        self.settle()

    @precondition(lambda self: any(each.sockets for each in self.objects.values()))
    @rule(pick=st.integers(0, 9), bad=st.booleans())
    def say(self, pick: int, bad: bool) -> None:
        clients = [client for each in self.objects.values() for client in each.sockets]
        client = clients[pick % len(clients)]
        token = self.token() + ("!" if bad else "")

        async def call() -> None:
            if not bad:
                client.said[token] = None
            self.note(f"{client.socket.id} says {token}")
            reply = await client.socket.post(token)
            self.note(f"{client.socket.id} says {token}: answered with status {reply.status}")
            if reply.status == OK:
                assert not bad
                client.said[token] = True

        self.begin(call())

    @precondition(lambda self: any(each.sockets for each in self.objects.values()))
    @rule(pick=st.integers(0, 9))
    def close(self, pick: int) -> None:
        self.settle()
        pairs = [(each, client) for each in self.objects.values() for client in each.sockets]
        model, client = pairs[pick % len(pairs)]
        self.note(f"{client.socket.id} is closed")
        self.begin(client.socket.close())
        self.wait()
        model.sockets.remove(client)
        self.settle()

    # -- disasters --------------------------------------------------------------------------

    @rule(operations=st.integers(0, 12))
    def stop_dead_soon(self, operations: int) -> None:
        files = self.host.files
        files.crash_at = files.operations + operations
        self.note(f"the process will stop dead after {operations} operations")

    @rule(again=st.one_of(st.none(), st.integers(0, 25)))
    def power_fails(self, again: int | None) -> None:
        self.note(f"the power fails; the next life stops dead at {again}")
        self.run(self.host.crash(crash_at=again))

    @rule()
    def process_dies(self) -> None:
        self.note("the process dies")
        self.run(self.host.kill())

    @rule()
    def another_host_takes_over(self) -> None:
        """It claims the shard, and dies before it does anything more: the one before must notice,
        and a process of its own must be the next to open it."""
        self.note("another host takes over")
        files = FaultyFiles(self.directory.name, beside=self.host.files)
        Ownership.claim(files, ".").release()

    @rule(step=st.sampled_from(["sync", "write"]), error=st.sampled_from([errno.EIO, errno.ENOSPC]))
    def disk_fails(self, step: str, error: int) -> None:
        self.host.files.fail(step, error, name="journal")
        self.note(f"the next {step} fails ({errno.errorcode[error]})")

    @rule(answers=st.integers(0, 2), polls=st.integers(0, 2))
    def answers_are_lost(self, answers: int, polls: int) -> None:
        self.host.client.lose_answers = answers
        self.host.gateway().channel.lose_polls = polls
        self.host.gateway().channel.lose_answers = answers
        self.note(f"{answers} answers and {polls} answers to standing requests are lost")

    # -- what passes ------------------------------------------------------------------------

    @rule(count=st.integers(1, 12))
    def ticks(self, count: int) -> None:
        async def some() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.run(some())

    @rule(seconds=st.sampled_from([1.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        if self.moved_s + seconds < MOVED_S_MAX:
            self.moved_s += seconds
            self.note(f"{seconds} s pass")
            self.run(self.host.move(seconds))

    @rule(name=st.sampled_from(NAMES))
    def evict(self, name: str) -> None:
        core = self.host.core
        activation = core.activations.get(("Book", name)) if core is not None else None
        if activation is not None:
            self.note(f"{name} leaves memory")
            activation.retire()

    @precondition(lambda self: self.folds < FOLDS_MAX and self.tokens > 9)
    @rule()
    def fold(self) -> None:
        self.folds += 1

        async def fold() -> None:
            if self.host.dead:  # looked at here: it may die while the loop comes to this
                return
            self.note("fold")
            try:
                await self.host.fold()
            except StorageFailed as error:
                self.refused("fold", error)

        self.run(fold())

    # -- the end ------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until every call is answered, starting the host whenever it is dead."""

        async def all_answered() -> None:
            everything = asyncio.ensure_future(asyncio.gather(*self.pending))
            while not everything.done():
                if self.host.dead:
                    self.note("the power had failed, and comes back")
                    await self.host.crash()
                death = asyncio.ensure_future(self.host.death())
                await asyncio.wait([everything, death], return_when=asyncio.FIRST_COMPLETED)
                death.cancel()
            await everything

        self.run(all_answered())
        self.pending = []

    @rule()
    def settle(self) -> None:
        self.wait()
        for name in NAMES:
            self.check(name)

    def check(self, name: str) -> None:
        model = self.objects[name]
        found: list[dict[str, Any]] = []

        async def call() -> None:
            while not found:
                try:
                    found.append(await self.stub(name).read.remote())
                except StorageFailed:
                    pass  # an injected failure that had not been met yet
            await self.host.settled()

        self.begin(call())
        self.wait()
        state = found[0]
        log = settled(model.log, state["log"])
        gifts = sorted(settled(model.gifts, state["gifts"]))
        keyed = sorted(settled(model.keyed, state["keyed"]))
        self.expect(name, "log", state, state["log"], log)
        self.expect(
            name, "storage", state, state["storage"], {each: n for n, each in enumerate(log, 1)}
        )
        self.expect(name, "gifts", state, sorted(state["gifts"]), gifts)
        self.expect(name, "keyed", state, sorted(state["keyed"]), keyed)
        said, attachments = state["said"], state["attachments"]
        for client in model.sockets:
            id, socket = client.socket.id, client.socket
            mine = settled(client.said, said)
            of_mine = [each for each in said if each in client.said]
            self.expect(name, f"what {id} said", state, of_mine, mine)
            self.expect(name, f"the attachment of {id}", state, attachments.get(id), mine)
            in_order = sorted(set(socket.positions))
            self.expect(name, f"the positions of {id}", state, socket.positions, in_order)
            expected = state["log"][client.since :]
            self.expect(name, f"what {id} received", state, socket.received, expected)
        ids = [client.socket.id for client in model.sockets]
        open = [id for id in attachments if id in ids]
        self.expect(name, "the order of the sockets", state, open, ids)

    def expect(
        self, name: str, what: str, state: dict[str, Any], found: object, expected: object
    ) -> None:
        if found != expected:
            what = f"{what}: {found} should be {expected}"
            raise AssertionError(self.report(name, what, state))

    def teardown(self) -> None:
        async def leave() -> None:
            # As after an error: nothing is folded, which takes most of a run's time.
            await self.host.__aexit__(AssertionError, None, None)

        try:
            if hasattr(self, "host"):
                try:
                    self.settle()
                finally:
                    self.run(leave())
        finally:
            self.loop.close()
            self.directory.cleanup()


def settled(model: dict[str, bool | None], found: list[str]) -> list[str]:
    """What must be there; what is not known counts as it was found."""
    for token in [token for token, known in model.items() if known is None]:
        if token in found:
            model[token] = True
        else:
            del model[token]
    return list(model)


def test_guarantees_through_disasters() -> None:
    run_machine(Disasters)
