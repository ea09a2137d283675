"""How things are measured: times of awaited calls, calls per second, memory, disk.

What is compared is measured in turns, a little of each, again and again: noise of the machine then
hits both sides, and their ratio stays.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import psutil

Call = Callable[[], Awaitable[object]]
NumberedCall = Callable[[int], Awaitable[object]]

SETTLE_S = 0.4
"""How long callers run before counting begins: the first calls of all come at once."""


async def latencies(
    calls: Mapping[str, Call], *, rounds: int, calls_a_round: int
) -> dict[str, list[float]]:
    """Milliseconds of each awaited call of one caller, in turns.

    Args:
        calls: what to call, by name.
        rounds: how often each has its turn.
        calls_a_round: calls in one turn; one more before them is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            await call()
            for _ in range(calls_a_round):
                started = time.perf_counter()
                await call()
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


async def rate(call: NumberedCall, *, callers: int, seconds: float) -> float:
    """Calls per second of callers that each send the next call when the last one has answered.

    Args:
        call: gets numbers that count upwards, each caller's from its own start.
        seconds: how long calls are counted.
    """
    finished = 0
    stopped = False

    async def caller(number: int) -> None:
        nonlocal finished
        number *= 7919  # spreads the callers over the objects
        while not stopped:
            await call(number)
            finished += 1
            number += 1

    tasks = [asyncio.ensure_future(caller(number)) for number in range(callers)]
    await asyncio.sleep(SETTLE_S)
    before, started = finished, time.perf_counter()
    await asyncio.sleep(seconds)
    counted, elapsed = finished - before, time.perf_counter() - started
    stopped = True
    await asyncio.gather(*tasks)
    return counted / elapsed


async def rates(
    calls: Mapping[str, NumberedCall], *, callers: int, seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Calls per second of each, in turns; `seconds` is for one turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(await rate(call, callers=callers, seconds=seconds))
    return found


async def all_once(call: NumberedCall, numbers: Iterable[int], *, at_once: int) -> float:
    """Calls each number once, at most `at_once` at a time; returns how many seconds it took."""
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return time.perf_counter() - started


def percentile(values: Iterable[float], percent: int) -> float:
    """The value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios: each round's two values were measured side by side."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of processes, each page that several share counted in parts (PSS)."""
    return sum(int(psutil.Process(pid).memory_full_info().pss) for pid in pids)


def disk_bytes(directory: Path) -> int:
    """What the disk gives up for the files in a directory."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def sync_times_ms(directory: Path) -> list[float]:
    """Milliseconds to append 200 bytes and sync them: what a durable write must wait for."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(50):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 200)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1e3)
    return times
