"""Calls that end their host's process: lives and deaths of a host that is only pretended; and that
the calls of one object keep their order meanwhile."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import rayobjects as ro
from rayobjects.errors import from_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import ERROR, OK, PICKLE, Call
from rayobjects.runtime import probation
from rayobjects.runtime.death_notes import SLOTS, DeathNotes, key_of
from rayobjects.runtime.probation import DEATHS_MAX, PROBATION_S, CoreOnProbation, Probation
from rayobjects.testing import LocalHost, ManualClock, life
from rayobjects.testing.life import LocalCore

SLOW, QUICK, DEADLY = "slow", "quick", "deadly"


class Died(Exception):
    pass


class Life:
    """One life of a host: calls are answered, or are not, or end it. Each is another object's."""

    def __init__(self, path: Path, clock: ManualClock, *, tell: bool = True) -> None:
        self.notes, running = DeathNotes.open(path)
        self.on_probation = running is not None
        self.probation = Probation(self.notes, clock, running) if running is not None else None
        self.began: list[str] = []
        self.answers: dict[str, object] = {}

    def send(self, *names: str) -> None:
        for name in names:
            call = Call(0, "Room", name, name.partition(" ")[0], PICKLE, b"", id=name)
            respond = self._respond(name)
            if self.probation is None:
                self._run(call, respond)
            else:
                self.probation.take(call, respond, self._run)

    def _respond(self, name: str):  # type: ignore[no-untyped-def]
        def respond(status: int, body: bytes, sequence: int) -> None:
            assert name not in self.answers
            self.answers[name] = "done" if status == OK else from_wire(body)

        return respond

    def _run(self, call: Call, respond) -> None:  # type: ignore[no-untyped-def]
        self.began.append(call.id)
        if call.method == DEADLY:
            raise Died
        if call.method == QUICK:
            respond(OK, b"", 0)


def live(path: Path, clock: ManualClock, *names: str, seconds: float = 0.0) -> Life:
    """A life in which these calls come, until it dies or `seconds` are over."""
    life = Life(path, clock)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        died = loop.create_future()
        loop.set_exception_handler(lambda _, what: died.done() or died.set_result(what))
        try:
            life.send(*names)
        except Died:
            return
        await asyncio.wait([died], timeout=seconds)

    asyncio.run(run())
    return life


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes" / "host"


def test_an_orderly_end_leaves_no_probation(path: Path) -> None:
    clock = ManualClock()
    life = live(path, clock, "quick 1", "slow 1")
    assert not life.on_probation
    life.notes.close()
    assert not Life(path, clock).on_probation
    assert Life(path, clock).on_probation  # that one died


def test_a_deadly_call_is_stopped_and_all_others_are_answered(path: Path) -> None:
    clock = ManualClock()
    calls = ["quick 1", "deadly 1", "quick 2", "quick 3"]
    answered: dict[str, object] = {}
    lives = 0
    while len(answered) < len(calls):
        lives += 1
        assert lives < 12
        life = live(path, clock, *(call for call in calls if call not in answered), seconds=0.05)
        answered |= life.answers
    assert [answered[call] for call in ("quick 1", "quick 2", "quick 3")] == ["done"] * 3
    stopped = answered["deadly 1"]
    assert isinstance(stopped, ro.MethodError)
    assert stopped.cause_type == "ProcessDied"
    assert f"ended its host's process {DEATHS_MAX} times" in stopped.message
    assert lives == DEATHS_MAX + 2
    # Asked again, it is not run; another call of the same method is.
    life = live(path, clock, "deadly 1", "quick 4")
    assert life.began == ["quick 4"]
    assert isinstance(life.answers["deadly 1"], ro.MethodError)
    assert live(path, clock, "deadly 2").began == ["deadly 2"]


def test_who_runs_beside_it_for_long_is_not_blamed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probation, "STAGGER_S", 0.02)
    clock = ManualClock()
    slow = [f"slow {number}" for number in range(5)]
    for _ in range(DEATHS_MAX + 2):
        life = live(path, clock, *slow, "deadly 1", seconds=1.0)
        if life.answers:
            break
    assert isinstance(life.answers["deadly 1"], ro.MethodError)
    assert life.answers.keys() == {"deadly 1"}
    assert set(life.began) == set(slow)


def test_who_is_killed_from_outside_loses_no_call(path: Path) -> None:
    """However often: what was running when it was killed ends in the next life, or is alone."""
    clock = ManualClock()
    calls = {f"quick {number}" for number in range(20)}
    life = live(path, clock, *[call.replace("quick", "slow") for call in calls])
    for _ in range(10):
        life = live(path, clock, *calls)
        assert set(life.answers.values()) <= {"done"}
        assert len(life.answers) == len(calls)


def test_probation_and_suspicion_end(path: Path) -> None:
    clock = ManualClock()
    live(path, clock, "deadly 1")
    for _ in range(DEATHS_MAX):
        live(path, clock, "deadly 1", seconds=0.05)
    life = live(path, clock, "deadly 1", seconds=0.05)
    assert life.began == []
    clock.move(FINISHED_WINDOW_S + 1)
    assert live(path, clock, "deadly 1", seconds=0.05).began == ["deadly 1"]
    life = live(path, clock, seconds=0)
    assert life.probation is not None
    clock.move(PROBATION_S + 1)
    clock.move(FINISHED_WINDOW_S)
    life = live(path, clock)
    clock.move(PROBATION_S + 1)
    noted = life.notes.begin(key_of("Room", "lobby", "one"))
    life.notes.end(noted)
    asyncio.run(_send(life, "slow 9"))
    assert DeathNotes.open(path)[1] == []  # it was not noted any more


async def _send(life: Life, name: str) -> None:
    life.send(name)


# -- the calls of one object ----------------------------------------------------------------------

CALLS: list[str] = []
"""What began, in order."""

GATE: list[asyncio.Event] = []


class Clerk(ro.DurableObject):
    steps: int = ro.durable(0)

    async def work(self, name: str, at: str) -> str:
        """Asks another object before and after it waits."""
        CALLS.append(name)
        other = ro.namespace("Clerk").get(at)
        await other.step.remote()
        await GATE[-1].wait()
        await other.step.remote()
        return name

    def step(self) -> int:
        self.steps += 1
        return self.steps

    def look(self, name: str) -> int:
        CALLS.append(name)
        return self.steps


class Watched(CoreOnProbation, LocalCore):
    pass


class Lives:
    """Lives of a `LocalHost`, each of which notes what it runs."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._patch = monkeypatch
        CALLS.clear()
        self.begin()

    def begin(self) -> None:
        """The next life of the host is on probation."""
        GATE.append(asyncio.Event())
        notes, running = DeathNotes.open(self._path)
        probation = Probation(notes, ManualClock(), running or [])
        self._patch.setattr(life, "LocalCore", functools.partial(Watched, probation))


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async def waiting() -> None:
        while not condition():  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0)

    await asyncio.wait_for(waiting(), 20)


def test_guarantee_5_a_call_that_was_begun_goes_before_a_new_one_on_probation(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is suspected more: what is new waits behind the rerun of its object."""

    async def main() -> None:
        lives = Lives(path, monkeypatch)
        async with LocalHost([Clerk]) as host:
            a, b, c = (host.get(Clerk, name) for name in "abc")
            begun = [a.work.remote("a", "x"), b.work.remote("b", "y")]
            await until(lambda: len(host.shard.promises()) == 4)
            await until(lambda: CALLS == ["a", "b"])
            lives.begin()
            await host.kill()  # both were running, so both are suspected; one has the host first
            new = [stub.look.remote(f"new {stub.id.name}") for stub in (b, c, a)]
            await new[1]
            await until(lambda: CALLS[3:])
            assert sorted(CALLS[2:]) == ["a", "new c"]
            GATE[-1].set()
            assert await asyncio.gather(*begun) == ["a", "b"]
            await asyncio.gather(*new)
            assert CALLS[4:].index("b") < CALLS[4:].index("new b")
            assert "new a" in CALLS[4:]

    asyncio.run(main())


def test_a_suspect_that_waits_for_a_new_call_does_not_hold_it_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probation, "STAGGER_S", 0.02)
    clock = ManualClock()
    DeathNotes.open(path)
    notes, _ = DeathNotes.open(path)
    ids = ["slow 1", "slow 2"]
    for id in ids:
        notes.begin(key_of("Room", "lobby", id))
    notes, running = DeathNotes.open(path)
    assert running is not None
    watched = Probation(notes, clock, running)
    began: list[str] = []

    async def main() -> None:
        def send(id: str) -> None:
            call = Call(0, "Room", "lobby", "slow", PICKLE, b"", id=id)
            watched.take(call, lambda *_: None, lambda call, _: began.append(call.id))

        send("slow 1")
        send("new 1")
        await until(lambda: began == ["slow 1", "new 1"])
        send("new 2")  # no suspect waits here any more
        assert began.pop() == "new 2"
        monkeypatch.setattr(probation, "STAGGER_ALL_S", 0.1)
        send("slow 2")
        send("new 3")
        await until(lambda: began[2:] == ["slow 2", "new 3"])

    asyncio.run(main())


def test_what_waits_here_can_be_taken_back(path: Path) -> None:
    DeathNotes.open(path)
    notes, _ = DeathNotes.open(path)
    notes.begin(key_of("Room", "lobby", "slow 1"))
    notes, running = DeathNotes.open(path)
    assert running is not None
    watched = Probation(notes, ManualClock(), running)
    began: list[str] = []
    answers: dict[str, object] = {}

    async def main() -> None:
        def send(id: str) -> None:
            def respond(status: int, body: bytes, sequence: int) -> None:
                answers[id] = from_wire(body)

            call = Call(0, "Room", "lobby", "slow", PICKLE, b"", id=id)
            watched.take(call, respond, lambda call, _: began.append(call.id))

        for id in ("slow 1", "new 1", "new 2"):
            send(id)
        id = ObjectId("Room", "lobby")
        assert watched.take_back(id, "new 1", ro.Cancelled("taken back"))
        assert watched.take_back(id, "slow 1", ro.Cancelled("taken back"))
        assert not watched.take_back(id, "slow 1", ro.Cancelled("taken back"))
        assert {str(error) for error in answers.values()} == {"taken back"}
        assert list(answers) == ["new 1", "slow 1"]
        await until(lambda: began == ["new 2"])
        send("new 3")
        assert began == ["new 2", "new 3"]

    asyncio.run(main())


def test_what_has_waited_here_for_too_long_does_not_begin(path: Path) -> None:
    DeathNotes.open(path)
    notes, _ = DeathNotes.open(path)
    for id in ("slow 1", "slow 2"):
        notes.begin(key_of("Room", "lobby", id))
    notes, running = DeathNotes.open(path)
    assert running is not None
    clock = ManualClock()
    watched = Probation(notes, clock, running)
    answers: dict[str, object] = {}
    ends: dict[str, Callable[[], None]] = {}
    left: dict[str, float] = {}

    async def main() -> None:
        def send(id: str, timeout_s: float) -> None:
            def respond(status: int, body: bytes, sequence: int) -> None:
                answers[id] = "done" if status == OK else from_wire(body)

            def run(call: Call, respond) -> None:  # type: ignore[no-untyped-def]
                left[id] = call.timeout_s
                ends[id] = lambda: respond(OK, b"", 0)

            call = Call(0, "Room", "lobby", "slow", PICKLE, b"", id=id, timeout_s=timeout_s)
            watched.take(call, respond, run)

        for id, timeout_s in (("slow 1", 1), ("new 1", 2), ("slow 2", 2), ("new 2", 5)):
            send(id, timeout_s)
        await until(lambda: "slow 1" in ends)
        clock.move(3)
        ends["slow 1"]()
        await until(lambda: "new 2" in ends)
        ends["new 2"]()
        assert left == {"slow 1": 1, "new 2": pytest.approx(2)}
        late = [answers[id] for id in ("new 1", "slow 2")]
        assert all(isinstance(error, ro.DeadlineExceeded) for error in late)
        assert answers["new 2"] == "done"

    asyncio.run(main())


def test_notes(path: Path) -> None:
    notes, running = DeathNotes.open(path)
    assert running is None
    keys = [key_of("Room", "lobby", str(number)) for number in range(SLOTS + 1)]
    slots = [notes.begin(key) for key in keys]
    assert slots[-1] == -1  # there is no room for it
    for slot in slots[2:]:
        notes.end(slot)
    notes.end(slots[0])
    again = notes.begin(keys[7])
    assert again >= 0
    notes, running = DeathNotes.open(path)
    assert running == [keys[1], keys[7]]
    path.write_bytes(b"damaged")
    assert DeathNotes.open(path)[1] == []
    path.with_suffix(".suspects").write_bytes(b"damaged")
    assert DeathNotes.open(path)[0].suspects() == {}
    assert ERROR != OK
