"""`ro.shutdown()` while something is under way: whoever waits is told, wherever it was."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.clock import SystemClock
from rayobjects.errors import InvalidCall, RayObjectsError, Unavailable
from rayobjects.messages import PICKLE, Call, Reply
from rayobjects.runtime import process
from rayobjects.runtime import router as router_module
from rayobjects.runtime.configuration import Catalog, Configuration
from rayobjects.runtime.router import Router
from rayobjects.runtime.stubs import Stub
from rayobjects.testing import LocalHost

WITHIN_S = 10.0
CONFIGURATION = Configuration("test", "", 2, "shared", 60.0, 30.0, "")


class LookUp:
    """The cluster's catalog, which is read as slowly as the test wants."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def read(self) -> Catalog:
        self.begun.set()
        self.go.wait(WITHIN_S)
        return Catalog(1, {})


@pytest.fixture
def look_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[LookUp]:
    look_up = LookUp()
    monkeypatch.setattr(router_module, "read_configuration", lambda: CONFIGURATION)
    monkeypatch.setattr(router_module, "read_catalog", look_up.read)
    process.attach(CONFIGURATION)
    yield look_up
    look_up.go.set()
    process.detach()


class Asking(threading.Thread):
    """Asks on a thread of its own.

    Attributes:
        outcome: what came of it.
    """

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._ask()
        except Exception as error:
            self.outcome = error

    def ended(self) -> Any:
        self.join(WITHIN_S)
        assert not self.is_alive(), "it waits for ever"
        return self.outcome


async def _list_async() -> list[str]:
    return await ro.namespace("Counter").list_async()


QUESTIONS: dict[str, Callable[[], Any]] = {
    "call": lambda: Stub("Counter", "x").add.remote().result(),
    "list": lambda: ro.namespace("Counter").list(),
    "list_async": lambda: asyncio.run(_list_async()),
    "exists": lambda: ro.namespace("Counter").exists("x"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_being_looked_up(look_up: LookUp, question: str) -> None:
    asking = Asking(QUESTIONS[question])
    assert look_up.begun.wait(WITHIN_S)
    began = time.monotonic()
    ro.shutdown()
    assert isinstance(asking.ended(), Unavailable)
    assert time.monotonic() - began < WITHIN_S / 2
    assert "ro.init()" in str(asking.outcome)


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_comes_a_moment_too_late(
    look_up: LookUp, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = process.router()
    ro.shutdown()
    monkeypatch.setattr(process, "router", lambda: before)  # the thread had asked for it before
    assert isinstance(Asking(QUESTIONS[question]).ended(), Unavailable)
    assert not look_up.begun.is_set()


def test_calls_of_many_threads_around_it(look_up: LookUp) -> None:
    """Each is answered, whether it was in the inbox, looked up, or came later."""
    look_up.go.set()
    for _ in range(20):
        router = process.attach(CONFIGURATION)
        outcomes: list[Reply | RayObjectsError] = []
        go = threading.Barrier(5)

        def calls(
            router: Router = router,
            outcomes: list[Any] = outcomes,
            go: threading.Barrier = go,
        ) -> int:
            go.wait(WITHIN_S)
            for _ in range(200):
                router.submit(Call(0, "Counter", "x", "add", PICKLE, b""), outcomes.append, None)
            return 200

        asking = [Asking(calls) for _ in range(4)]
        go.wait(WITHIN_S)
        process.detach()
        count = sum(each.ended() for each in asking)
        assert len(outcomes) == count


def test_a_call_that_follows_its_object(look_up: LookUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "REDIRECT_AGAIN_S", WITHIN_S * 10)
    router = process.router()
    outcomes: list[Any] = []
    call = Call(0, "Counter", "x", "add", PICKLE, b"")
    router.loop.call_soon_threadsafe(router.redirected, call, outcomes.append, None, 1)
    router.question(_nothing).result(WITHIN_S)
    ro.shutdown()
    assert [type(each) for each in outcomes] == [Unavailable]


def test_nothing_is_left_on_its_loop(look_up: LookUp) -> None:
    Asking(QUESTIONS["call"])
    assert look_up.begun.wait(WITHIN_S)
    loop = process.router().loop
    ro.shutdown()
    assert not asyncio.all_tasks(loop)
    assert not loop.is_running()


async def _nothing() -> None:
    pass


class Meddler(ro.DurableObject):
    notes: int = ro.durable(0)

    def leave(self) -> None:
        self.notes += 1
        ro.shutdown()

    def count(self) -> int:
        return self.notes


def test_it_belongs_to_programs() -> None:
    async def run() -> None:
        async with LocalHost([Meddler]) as host:
            meddler = host.get(Meddler, "m")
            with pytest.raises(ro.MethodError, match="belongs to programs"):
                await meddler.leave.remote()
            assert await meddler.count.remote() == 0

    asyncio.run(run())


def test_a_host_keeps_its_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a task or a thread asks that belongs to no call."""
    monkeypatch.setattr(process, "_router", None)
    loop = asyncio.new_event_loop()
    router = Router("host", loop, CONFIGURATION, SystemClock())
    process.adopt(router)
    with pytest.raises(InvalidCall, match="belongs to programs"):
        ro.shutdown()
    assert process.router() is router
    assert not router._closed
    loop.close()
