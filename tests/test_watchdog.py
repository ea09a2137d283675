"""The watchdog names the method that blocks the loop, while it is still at it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import rayobjects as ro
from rayobjects.clock import SystemClock
from rayobjects.runtime.watchdog import Watchdog, culprit
from rayobjects.testing import LocalHost

REPORTED: dict[str, threading.Event] = {}


class Worker(ro.DurableObject):
    async def until_named(self) -> bool:
        return self.compute()

    def compute(self) -> bool:
        return REPORTED["event"].wait(30)  # blocks the loop, which this test is about

    async def polite(self) -> None:
        await asyncio.sleep(0.3)


@pytest.fixture
def reported() -> Iterator[tuple[list[str], threading.Event]]:
    found: list[str] = []
    event = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "blocked" in record.getMessage():
                found.append(record.getMessage())
                event.set()

    handler = Handler()
    logging.getLogger("rayobjects").addHandler(handler)
    REPORTED.clear()
    yield found, event
    logging.getLogger("rayobjects").removeHandler(handler)


def test_a_method_that_blocks_is_named_while_it_runs(
    reported: tuple[list[str], threading.Event],
) -> None:
    reports, event = reported

    async def main() -> None:
        async with LocalHost([Worker]) as host:
            REPORTED["event"] = event  # not before: the class cannot be pickled with it
            watchdog = Watchdog(SystemClock())
            worker = host.get(Worker, "w")
            assert await worker.until_named.remote(), "it was named before it ended"
            await worker.until_named.remote()
            watchdog.stop()

    asyncio.run(main())
    assert len(reports) == 1, "and not again and again"
    assert "Worker/w.until_named has blocked its host" in reports[0]
    assert "ro.blocking" in reports[0]
    assert "test_watchdog.py" in reports[0]


def test_a_method_that_awaits_is_not_named(
    reported: tuple[list[str], threading.Event],
) -> None:
    reports, _ = reported

    async def main() -> None:
        async with LocalHost([Worker]) as host:
            watchdog = Watchdog(SystemClock())
            await host.get(Worker, "w").polite.remote()
            watchdog.stop()

    asyncio.run(main())
    assert not [each for each in reports if "polite" in each]


def test_only_what_is_the_users_is_named() -> None:
    async def look() -> tuple[str, str] | None:
        return culprit(sys._getframe())

    async def main() -> None:
        found = await look()
        assert found is not None
        assert found[0].endswith("test_only_what_is_the_users_is_named.<locals>.main")

        thread = threading.get_ident()
        frames = asyncio.to_thread(lambda: sys._current_frames()[thread])
        idle = await frames  # the loop waits for it, and runs nothing
        assert culprit(idle) is None

        named = {"__name__": "rayobjects.storage.shard", "culprit": culprit, "sys": sys}
        exec("def recover(): seen.append(culprit(sys._getframe()))", named)
        named["seen"] = seen = []
        asyncio.get_running_loop().call_soon(named["recover"])
        await asyncio.sleep(0)
        assert seen == [None], "the runtime itself"

    asyncio.run(main())


def test_it_ends_with_its_loop() -> None:
    async def main() -> None:
        Watchdog(SystemClock())

    asyncio.run(main())
    until = time.monotonic() + 30
    while any(each.name == "rayobjects-watchdog" for each in threading.enumerate()):
        assert time.monotonic() < until
        threading.Event().wait(0.01)
