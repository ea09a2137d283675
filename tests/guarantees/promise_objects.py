"""What the tests of chains, told messages and schedules share."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

from guarantee_objects import run, ticks

from rayobjects.ids import ObjectId
from rayobjects.messages import SYSTEM, encode_json
from rayobjects.objects import failures
from rayobjects.objects.model import DurableObject
from rayobjects.storage.records import INTENT, STEP, TELL, Promise
from rayobjects.testing import FaultyFiles, LocalHost, LocalStub
from rayobjects.testing.stubs import send

STEPS_MAX = 4_000
"""Of time that is moved: more than any test needs."""


def promises(host: LocalHost, *kinds: int) -> list[tuple[ObjectId, Promise]]:
    """What is promised, as it is on disk; all kinds if none is named."""
    assert host.shard is not None
    return [each for each in host.shard.promises() if not kinds or each[1].kind in kinds]


def kept(host: LocalHost) -> bool:
    """Whether every message is delivered, and every call that was begun has ended."""
    return not host.dead and not promises(host, TELL, INTENT, STEP)


def listed(host: LocalHost) -> list[dict[str, Any]]:
    """What has failed for good, as people see it."""
    return [failures.described(promise) for _, promise in promises(host) if promise.failed]


async def settle(stub: LocalStub, how: str, kind: str, key: str) -> str:
    """Retries or discards something that has failed."""
    done: str = await send(stub, how, SYSTEM, encode_json({"kind": kind, "key": key}))
    return done


async def moved_until(
    host: LocalHost,
    condition: Callable[[], object],
    *,
    step_s: float = 1.0,
    end: str = "crash",
) -> None:
    """Moves the time on until something is so, starting the host whenever it has died."""
    for _ in range(STEPS_MAX):
        await ticks(60)
        if host.dead:
            await getattr(host, end)()
        elif condition():
            return
        else:
            await host.move(step_s)
    raise AssertionError(f"{STEPS_MAX} steps of {step_s:g} s were not enough")


def dying_everywhere(
    classes: list[type[DurableObject]],
    begin: Callable[[LocalHost], Awaitable[Any]],
    check: Callable[[LocalHost], Awaitable[None]],
    *,
    prepare: Callable[[LocalHost], Awaitable[Any]] | None = None,
    again: int | None = None,
) -> int:
    """Tells a story with a host that dies at its first operation on its files, at its second, and
    so on, until it comes to the end alive; returns how many there were.

    Args:
        begin: the story. What it awaits may take until the host is back.
        check: looks whether all is well, when everything that was promised is kept.
        again: after so many operations the next life dies too.
    """

    async def told(number: int) -> bool:
        end = ("crash", "kill")[number % 2]
        with tempfile.TemporaryDirectory() as directory:
            host = LocalHost(classes, files=FaultyFiles(directory, seed=number))
            await host.__aenter__()
            if prepare is not None:
                await prepare(host)
            host.files.crash_at = host.files.operations + number
            story = asyncio.ensure_future(begin(host))
            died = False
            for _ in range(STEPS_MAX):
                await ticks(60)
                if host.dead:
                    crash_at = again if not died else None
                    died = True
                    await getattr(host, end)(crash_at=crash_at)
                elif story.done() and kept(host):
                    break
                else:
                    await host.move(0.2)
            else:
                raise AssertionError(f"dead at {number}: the story does not come to its end")
            host.files.crash_at = None
            await story
            try:
                await check(host)
            except AssertionError as error:
                raise AssertionError(f"after a death at operation {number}: {error}") from error
            # As after an error: nothing is folded, which takes most of the time.
            await host.__aexit__(AssertionError, None, None)
            return died

    number = 0
    while run(lambda number=number: told(number)):  # type: ignore[misc]
        number += 1
    return number
