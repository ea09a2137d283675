"""Every kind of method at once, and everything that can happen to an object in its life.

`test_guarantees_machine.py` has the disasters of the disk and plain methods; here methods stand
still at gates, run beside each other, hand out items, tell, plan and call others, while their
object wakes slowly, leaves slowly, is evicted, gets a new class, is killed, and while callers take
their calls back. Whatever happens

    what needs no turn is answered though something else has it                     (liveness)
    in the end every call has been answered, all is delivered, and nothing is left of it
    what was acknowledged is there exactly once, what failed or was taken back not at all

`RAYOBJECTS_EXAMPLES=5000 pytest --timeout=0 tests/guarantees/test_everything_machine.py` runs for
longer and at random; without it the same few examples run each time.
"""

from __future__ import annotations

import asyncio
import contextvars
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from guarantee_objects import GATES
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
)
from machine_report import run_machine
from promise_objects import kept

import rayobjects as ro
from rayobjects.errors import Cancelled, InvalidCall, MethodError, StorageFailed, Unavailable
from rayobjects.testing import FaultyFiles, LocalHost, LocalStub
from rayobjects.testing.stubs import LocalResponse

T = TypeVar("T")


NAMES = ("a", "b", "c")
GATE_NAMES = ("g", "h")
WITHIN_S = 20.0
"""More than anything takes: what has no answer then has been lost."""

TICKS = 400
"""Far more turns of the loop than an answer needs that waits for nothing."""

GONE = 410
"""The status of a stream that has taken effect, but whose items are there no more."""

MOVED_S_MAX = 400.0
"""All of a run's time: less than the window in which replies are kept."""


async def passed(gate: str) -> None:
    await GATES[gate].wait()


class Worker(ro.DurableObject):
    """Does things, and writes down what it has done."""

    done: list[str] = ro.durable(factory=list)
    upgraded: int = ro.durable(0)

    async def on_start(self) -> None:
        await passed("start")

    async def on_stop(self) -> None:
        await passed("stop")

    async def on_upgrade(self, from_version: int) -> None:
        await asyncio.sleep(0)
        self.upgraded += 1

    def add(self, token: str) -> None:
        self.done.append(token)

    def fail(self, token: str) -> None:
        self.add(token)
        raise ValueError(token)

    async def hold(self, token: str, gate: str) -> None:
        self.add(token)
        await passed(gate)

    async def call(self, token: str, other: ro.Stub, gate: str) -> None:
        self.add(token)
        await other.add.remote(f"{token} called")
        await passed(gate)

    def tell(self, token: str, other: ro.Stub) -> None:
        self.add(token)
        other.add.tell(f"{token} told")

    def plan(self, token: str) -> None:
        self.add(token)
        self.schedule(self.add, f"{token} planned", after=0.5)

    async def items(self, token: str, gate: str) -> AsyncIterator[int]:
        self.add(token)
        yield 1
        await passed(gate)
        yield 2

    @ro.concurrent
    async def peek(self) -> list[str]:
        return self.done

    @ro.concurrent
    async def blocks(self, token: str, gate: str) -> None:
        async with self.turn():
            self.add(f"{token} first")
        await passed(gate)
        async with self.turn():
            self.add(f"{token} second")

    @ro.concurrent
    async def call_beside(self, token: str, other: ro.Stub, gate: str) -> None:
        await other.add.remote(f"{token} called")
        await passed(gate)
        async with self.turn():
            self.add(token)

    @ro.concurrent
    async def watch(self, gate: str) -> AsyncIterator[int]:
        yield len(self.done)
        await passed(gate)
        yield len(self.done)


class NewWorker(Worker):
    """The same, so that there is another class to deploy."""


NewWorker.__name__ = NewWorker.__qualname__ = "Worker"


class Everything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.context = contextvars.copy_context()
        self.directory = tempfile.TemporaryDirectory()
        # What must be there, by token: True exactly once, False not at all, None once or not.
        self.expected: dict[str, dict[str, bool | None]] = {name: {} for name in NAMES}
        self.pending: list[asyncio.Task[None]] = []
        self.responses: list[LocalResponse] = []
        self.peeks: list[tuple[str, LocalResponse]] = []
        self.history: list[str] = []
        self.tokens = 0
        self.moved_s = 0.0
        self.versions = 1

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        waiting = asyncio.wait_for(coroutine, WITHIN_S)
        return self.loop.run_until_complete(self.loop.create_task(waiting, context=self.context))

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        async def enter() -> LocalHost:
            GATES.reset()
            GATES["start"].set()
            GATES["stop"].set()
            files = FaultyFiles(self.directory.name, seed=seed)
            host = LocalHost([Worker], files=files)
            await host.__aenter__()
            self.context = contextvars.copy_context()  # in which objects find the host
            return host

        self.host = self.run(enter())

    def stub(self, name: str) -> LocalStub:
        return self.host.get("Worker", name)

    def note(self, text: str) -> None:
        self.history.append(text)

    def ticks(self, count: int) -> None:
        async def some() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.run(some())

    def begin(self, call: Coroutine[Any, Any, None]) -> None:
        self.pending.append(self.loop.create_task(call, context=self.context))
        self.ticks(1)

    async def outcome(self, name: str, tokens: list[tuple[str, str]], response: Any) -> None:
        """Waits for a call that applies these tokens, each at an object."""
        what = ", ".join(token for _, token in tokens)
        try:
            await response
        except Cancelled:
            # What it had asked of others before that is not undone.
            for at, token in tokens:
                if at == name and not token.endswith((" first", " second")):
                    self.expected[at][token] = False
            self.note(f"{name}: {what}: cancelled")
        except (StorageFailed, Unavailable) as error:
            self.note(f"{name}: {what}: not known ({error.message})")
        except InvalidCall as error:
            if error.status != GONE:
                raise
            self.acknowledged(name, tokens)  # though not all items have arrived
        else:
            self.acknowledged(name, tokens)

    def acknowledged(self, name: str, tokens: list[tuple[str, str]]) -> None:
        for at, token in tokens:
            self.expected[at][token] = True
        self.note(f"{name}: {', '.join(token for _, token in tokens)}: acknowledged")

    def called(self, name: str, tokens: list[tuple[str, str]], method: str, *args: Any) -> None:
        for at, token in tokens:
            self.expected[at][token] = None
        self.note(f"{name}.{method}{args}")

        async def call() -> None:
            response = getattr(self.stub(name), method).remote(*args)
            self.responses.append(response)
            await self.outcome(name, tokens, response)

        self.begin(call())

    def token(self) -> str:
        self.tokens += 1
        return f"t{self.tokens}"

    # -- calls ------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 3))
    def add(self, name: str, count: int) -> None:
        for _ in range(count):
            token = self.token()
            self.called(name, [(name, token)], "add", token)

    @rule(name=st.sampled_from(NAMES))
    def fail(self, name: str) -> None:
        token = self.token()
        self.expected[name][token] = False

        async def call() -> None:
            try:
                await self.stub(name).fail.remote(token)
                raise AssertionError("it should have failed")
            except (MethodError, StorageFailed):
                pass

        self.begin(call())

    @rule(name=st.sampled_from(NAMES), gate=st.sampled_from(GATE_NAMES))
    def hold(self, name: str, gate: str) -> None:
        token = self.token()
        self.called(name, [(name, token)], "hold", token, gate)

    @rule(
        # In one direction only: two objects that wait for each other get a Deadlock.
        pair=st.sampled_from([("a", "b"), ("a", "c"), ("b", "c")]),
        gate=st.sampled_from(GATE_NAMES),
        beside=st.booleans(),
    )
    def call(self, pair: tuple[str, str], gate: str, beside: bool) -> None:
        (name, other), token = pair, self.token()
        tokens = [(name, token), (other, f"{token} called")]
        method = "call_beside" if beside else "call"
        self.called(name, tokens, method, token, self.stub(other), gate)

    @rule(pair=st.sampled_from([("a", "b"), ("b", "a"), ("c", "c"), ("b", "c")]))
    def tell(self, pair: tuple[str, str]) -> None:
        (name, other), token = pair, self.token()
        tokens = [(name, token), (other, f"{token} told")]
        self.called(name, tokens, "tell", token, self.stub(other))

    @rule(name=st.sampled_from(NAMES))
    def plan(self, name: str) -> None:
        token = self.token()
        self.called(name, [(name, token), (name, f"{token} planned")], "plan", token)

    @rule(name=st.sampled_from(NAMES), gate=st.sampled_from(GATE_NAMES))
    def blocks(self, name: str, gate: str) -> None:
        token = self.token()
        tokens = [(name, f"{token} first"), (name, f"{token} second")]
        self.called(name, tokens, "blocks", token, gate)

    @rule(name=st.sampled_from(NAMES), gate=st.sampled_from(GATE_NAMES), ends=st.booleans())
    def read_items(self, name: str, gate: str, ends: bool) -> None:
        token = self.token()
        self.expected[name][token] = None
        self.note(f"{name}.items({token}, {gate}), {'to its end' if ends else 'one'}")

        async def read() -> None:
            response = self.stub(name).items.remote(token, gate)
            if ends:  # else it may not be told apart from one whose reader has gone
                self.responses.append(response)
            found = []
            async for item in response:
                found.append(item)
                if not ends:
                    break
            if ends and found != [1, 2]:
                raise AssertionError(f"{token}: its items were {found}")

        async def call() -> None:
            if ends:
                await self.outcome(name, [(name, token)], read())
                return
            try:
                await read()
            except (StorageFailed, Unavailable):
                pass
            except InvalidCall as error:
                if error.status != GONE:
                    raise

        self.begin(call())

    @rule(name=st.sampled_from(NAMES), gate=st.sampled_from(GATE_NAMES))
    def watch(self, name: str, gate: str) -> None:
        async def read() -> None:
            try:
                found = [item async for item in self.stub(name).watch.remote(gate)]
            except (StorageFailed, Unavailable):
                return
            if len(found) != 2 or found != sorted(found):
                raise AssertionError(f"{name}.watch gave {found}")

        self.begin(read())

    @rule(name=st.sampled_from(NAMES))
    def peek(self, name: str) -> None:
        self.note(f"{name}.peek()")
        self.peeks.append((name, self.stub(name).peek.remote()))
        self.ticks(1)

    @rule()
    def all_have_peeked(self) -> None:
        """They need no turn: whatever stands still, they are answered, unless the object itself
        comes or goes, or is to go as soon as it may."""
        if not GATES["start"].is_set() or not GATES["stop"].is_set():
            return

        async def all_answered() -> None:
            for name, response in self.peeks:
                while not response.done() and not self.may_wait(name):  # noqa: ASYNC110
                    await asyncio.sleep(0)

        try:
            self.run(all_answered())
        except TimeoutError:
            self.failed("a peek is not answered")
        self.peeks = [each for each in self.peeks if not each[1].done()]

    def may_wait(self, name: str) -> bool:
        """Whether the object's calls wait for another life, or for its next activation."""
        core = self.host.core
        if core is None or core.failed is not None:
            return True
        activation = core.activations.get(("Worker", name))
        return activation is not None and activation.outdated and activation.running is None

    @rule(pick=st.integers(0, 9))
    def cancel(self, pick: int) -> None:
        # No precondition: what has ended by now may differ from run to run.
        under_way = [each for each in self.responses if not each.done()]
        if under_way:
            self.note(f"{under_way[pick % len(under_way)]} is taken back")
            under_way[pick % len(under_way)].cancel()
            self.ticks(1)

    # -- what happens to objects ------------------------------------------------------------------

    @rule(gate=st.sampled_from([*GATE_NAMES, "start", "stop"]), open=st.booleans())
    def gate(self, gate: str, open: bool) -> None:
        self.note(f"gate {gate} is {'open' if open else 'closed'}")
        (GATES[gate].set if open else GATES[gate].clear)()

    @rule(name=st.sampled_from(NAMES))
    def evict(self, name: str) -> None:
        async def leave() -> None:
            core = self.host.core
            activation = core.activations.get(("Worker", name)) if core is not None else None
            if activation is not None:
                self.note(f"{name} leaves memory")
                activation.retire()

        self.run(leave())

    @rule(
        name=st.sampled_from(NAMES),
        calls=st.lists(st.sampled_from(["add", "hold", "peek", "blocks", "plan"]), min_size=2),
        killed=st.booleans(),
    )
    def comes_while_calls_come(self, name: str, calls: list[str], killed: bool) -> None:
        GATES["start"].clear()
        if killed:
            self.process_dies()
        else:
            self.evict(name)
        for call in calls[:6]:
            arguments = {"hold": ("g",), "blocks": ("h",), "add": (1,)}.get(call, ())
            getattr(self, call)(name, *arguments)
        GATES["start"].set()
        self.all_have_peeked()

    @rule()
    def deploy(self) -> None:
        self.versions += 1
        self.note(f"version {self.versions} is deployed")
        self.run(self.host.deploy(NewWorker if self.versions % 2 == 0 else Worker))

    @rule()
    def power_fails(self) -> None:
        self.note("the power fails")
        self.run(self.host.crash())

    @rule()
    def process_dies(self) -> None:
        self.note("the process dies")
        self.run(self.host.kill())

    @rule(operations=st.integers(0, 12))
    def stop_dead_soon(self, operations: int) -> None:
        files = self.host.files
        files.crash_at = files.operations + operations
        self.note(f"the process will stop dead after {operations} operations")

    @rule(answers=st.integers(0, 2), polls=st.integers(0, 2))
    def answers_are_lost(self, answers: int, polls: int) -> None:
        self.host.client.lose_answers = answers
        self.host.client.lose_polls = polls
        self.note(f"{answers} answers and {polls} answers to standing requests are lost")

    @rule(count=st.sampled_from([1, 3, 10, 50]))
    def some_ticks(self, count: int) -> None:
        self.ticks(count)

    @rule(seconds=st.sampled_from([0.3, 1.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        if self.moved_s + seconds < MOVED_S_MAX and not self.waits():
            self.moved_s += seconds
            self.note(f"{seconds} s pass")
            self.run(self.host.move(seconds))

    def waits(self) -> bool:
        """Whether a gate is closed: what waits there costs `move` a second of real time."""
        return not all(GATES[gate].is_set() for gate in (*GATE_NAMES, "start", "stop"))

    # -- the end ------------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        """All gates open, everything comes to its end, and all that was promised is kept."""
        self.note("all comes to its end")

        async def all_answered() -> None:
            for gate in (*GATE_NAMES, "start", "stop"):
                GATES[gate].set()
            peeks = [ended(response) for _, response in self.peeks]
            everything = asyncio.ensure_future(asyncio.gather(*self.pending, *peeks))
            while not everything.done():
                if self.host.dead:
                    await self.host.crash()
                death = asyncio.ensure_future(self.host.death())
                await asyncio.wait([everything, death], return_when=asyncio.FIRST_COMPLETED)
                death.cancel()
            await everything
            # Second attempts of schedules and messages, whose host has died, take a moment.
            while not (kept(self.host) and not self.host.shard.promises()):  # type: ignore[union-attr]
                if self.host.dead:
                    await self.host.crash()
                await self.host.move(0.5)
                await asyncio.sleep(0)  # where nothing is due it takes no turn of the loop

        try:
            self.run(all_answered())
        except TimeoutError:
            self.failed("not everything comes to its end")
        self.pending, self.responses, self.peeks = [], [], []
        for gate in (*GATE_NAMES, "start", "stop"):
            GATES[gate].set()
        for name in NAMES:
            self.check(name)
        self.leave()

    def check(self, name: str) -> None:
        async def read() -> list[str]:
            while True:
                response = self.stub(name).peek.remote()
                while not response.done():
                    if self.host.dead:
                        await self.host.crash()
                    await asyncio.sleep(0)
                try:
                    found: list[str] = await response
                    return found
                except StorageFailed:
                    pass  # an injected failure that had not been met yet

        found = self.run(read())
        expected = self.expected[name]
        for token, there in list(expected.items()):
            count = found.count(token)
            if there is None and count < 2:
                expected[token] = bool(count)
            elif count != there:
                self.failed(f"{name} has {token} {count} times, expected {there}: {found}")
        for token in found:
            if token not in expected:
                self.failed(f"{name} has {token}, which nobody has sent")

    def leave(self) -> None:
        """Nothing is left of what has ended: all objects can leave."""

        async def left() -> None:
            core = self.host.core
            if core is None:
                return
            for activation in list(core.activations.values()):
                activation.retire()
            for _ in range(TICKS):
                if core is not self.host.core or not core.activations:
                    return
                await asyncio.sleep(0)
            self.failed(f"these do not leave: {list(core.activations)}")

        self.run(left())

    def failed(self, what: str) -> None:
        lines = [what, "", "expected:", *(f"  {name}: {x}" for name, x in self.expected.items())]
        core = self.host.core
        lines += ["", f"host: {'dead' if core is None else 'alive'}"]
        for id, each in (core.activations if core is not None else {}).items():
            state = {key: getattr(each, key) for key in ("busy", "ready", "outdated", "running")}
            lines.append(f"  {id}: {state} {each.concurrent}, waiting {each.queue}")
        if self.host.shard is not None:
            lines += ["", "promised:", *(f"  {each}" for each in self.host.shard.promises())]
        lines += ["", "responses:", *(f"  {x}" for x in self.responses if not x.done())]
        lines += ["", "history:", *(f"  {each}" for each in self.history)]
        raise AssertionError("\n".join(lines))

    def teardown(self) -> None:
        async def leave() -> None:
            # As after an error: nothing is folded, which takes most of a run's time.
            await self.host.__aexit__(AssertionError, None, None)

        try:
            if hasattr(self, "host"):
                try:
                    self.settle()
                finally:
                    for task in self.pending:
                        task.cancel()
                    self.run(leave())
        finally:
            self.loop.close()
            self.directory.cleanup()


async def ended(response: LocalResponse) -> None:
    with suppress(StorageFailed):
        await response


def test_everything_comes_to_its_end() -> None:
    run_machine(Everything)
