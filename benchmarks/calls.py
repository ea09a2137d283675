"""Calls: durable objects beside plain Ray actors, in one run.

    python -m benchmarks.calls [--quick] [--json] [--callers 32 --callers 1000] [--objects 10000]

Starts Ray on this machine with a storage root of its own, and stops and removes both at the end.
The stages, in order, for each needs what the one before has left behind:

    latency     one caller: awaited reads and durable writes beside an awaited call of a plain actor
    throughput  many callers over many objects beside as many callers of plain actors
    at rest     the hosts are stopped, which folds the journals: bytes on disk
    activation  new hosts: how fast objects wake, one by one and all at once, and their memory
    dedicated   the first call to an object with a process of its own beside a new plain actor
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import rayobjects as ro
from benchmarks import measure, report
from benchmarks.report import Result, Target
from benchmarks.subjects import Counter, DedicatedCounter, PlainCounter
from rayobjects.runtime import cluster
from rayobjects.settings import shards_default

READ_RATIO = Target("ratio", "at most", 1.3)
WRITES_RATIO = {32: Target("ratio", "at least", 4.0), 1000: Target("ratio", "at least", 12.0)}
LIVE_KB = Target("value", "at most", 12.0)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        objects: durable objects in all.
        callers: for each number of callers one comparison.
        rounds: turns of each subject.
        latency_calls: calls of one caller in a turn.
        seconds: of throughput in a turn.
        woken_singly: objects that are activated one after the other.
        dedicated: objects with a process of their own.
    """

    objects: int = 10_000
    callers: tuple[int, ...] = (32, 1_000)
    rounds: int = 5
    latency_calls: int = 200
    seconds: float = 2.0
    woken_singly: int = 200
    dedicated: int = 5


QUICK = Plan(objects=1_000, rounds=2, latency_calls=100, seconds=0.6, woken_singly=50, dedicated=1)
"""For CI: shows that everything works, and little more."""


class Stages:
    """The stages of one run, on a cluster that has been started for it."""

    def __init__(self, plan: Plan, root: Path, progress: Progress) -> None:
        import ray

        self.ray: Any = ray
        self.plan = plan
        self.root = root
        self.progress = progress
        self.results: list[Result] = []
        self.actor_class: Any = ray.remote(num_cpus=0)(PlainCounter)
        self.actors: list[Any] = []
        self.sync_ms: list[float] = []
        self.written = 0
        self.found = 0
        order = list(range(plan.objects))
        random.Random(1).shuffle(order)
        self.order = order

    async def run(self) -> None:
        """All stages."""
        with self._stage("Hosts"):
            self.actors = [self.actor_class.remote() for _ in range(shards_default())]
            self._connect()
        with self._stage("Latency of one caller"):
            await self._latency()
        with self._stage("All objects live"):
            await measure.all_once(self._write, self.order, at_once=1_000)
        for callers in self.plan.callers:
            with self._stage(f"Throughput, {callers:,} callers"):
                await self._throughput(callers)
        with self._stage("To rest"):
            self._at_rest()
        with self._stage("Activation"):
            await self._activation()
        with self._stage("Dedicated objects"):
            await self._dedicated()

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        task = self.progress.add_task(name, total=1)
        yield
        self.progress.update(task, completed=1)

    def _connect(self) -> None:
        """Attaches to the objects, starting the hosts. None leaves by itself while it runs."""
        ro.init(storage=str(self.root), shards=shards_default(), idle_s=86_400)
        counters, dedicated = ro.deploy(Counter, DedicatedCounter)
        self.stubs = [counters.get(f"counter-{number}") for number in range(self.plan.objects)]
        self.dedicated_objects = dedicated

    # What is called.

    async def _write(self, number: int) -> None:
        await self.stubs[self.order[number % len(self.order)]].increment.remote()
        self.written += 1

    async def _read_once(self, number: int) -> None:
        count = await self.stubs[self.order[number]].read.remote()
        self.found += count  # only now: other callers have added to it during the await

    async def _plain(self, number: int) -> object:
        return await self.actors[number % len(self.actors)].increment.remote()

    # Stages.

    async def _latency(self) -> None:
        actor, stub = self.actors[0], self.stubs[self.order[0]]

        async def plain() -> object:
            return await actor.read.remote()

        async def read() -> object:
            return await stub.read.remote()

        async def write() -> None:
            await self._write(0)

        times = await measure.latencies(
            {"plain": plain, "read": read, "write": write},
            rounds=self.plan.rounds * 2,
            calls_a_round=self.plan.latency_calls // 2,
        )
        for name, label, target in (
            ("read", "read, one caller", READ_RATIO),
            ("write", "durable write, one caller", None),
        ):
            for percent in (50, 99):
                ours = measure.percentile(times[name], percent)
                theirs = measure.percentile(times["plain"], percent)
                self.results.append(
                    Result(
                        f"{name}_p{percent}_ms",
                        f"{label}, p{percent}",
                        "ms",
                        ours,
                        theirs,
                        ours / theirs,
                        target if percent == 50 else None,
                    )
                )

    async def _throughput(self, callers: int) -> None:
        self.sync_ms += measure.sync_times_ms(self.root)
        rounds = await measure.rates(
            {"plain_ray": self._plain, "rayobjects": self._write},
            callers=callers,
            seconds=self.plan.seconds,
            rounds=self.plan.rounds,
        )
        self.results.append(
            Result(
                f"writes_{callers}_callers",
                f"durable writes, {callers:,} callers",
                "calls/s",
                statistics.median(rounds["rayobjects"]),
                statistics.median(rounds["plain_ray"]),
                measure.median_ratio(rounds["rayobjects"], rounds["plain_ray"]),
                WRITES_RATIO.get(callers),
                rounds,
            )
        )

    def _at_rest(self) -> None:
        from rayobjects.runtime import admin

        admin.stop_hosts()
        ro.shutdown()
        size = measure.disk_bytes(self.root) / self.plan.objects
        self.results.append(Result("at_rest_bytes", "an object at rest, on disk", "bytes", size))

    async def _activation(self) -> None:
        self._connect()
        plan = self.plan
        singly = iter(range(plan.woken_singly))
        times = await measure.latencies(
            {"wake": lambda: self._read_once(next(singly))},
            rounds=1,
            calls_a_round=plan.woken_singly - 1,
        )
        pids = self._host_pids()
        before = measure.memory_bytes(pids)
        rest = range(plan.woken_singly, plan.objects)
        rest_s = await measure.all_once(self._read_once, rest, at_once=1_000)
        grown = measure.memory_bytes(pids) - before
        if self.found != self.written:
            raise RuntimeError(f"{self.written:,} writes were answered, {self.found:,} are stored")
        self.results += [
            Result(
                "activation_ms",
                "activation, one after the other",
                "ms",
                statistics.median(times["wake"]),
            ),
            Result(
                "activations_per_s", "activation, 1,000 at a time", "objects/s", len(rest) / rest_s
            ),
            Result(
                "live_kb", "a live object, memory", "KB", grown / len(rest) / 1e3, target=LIVE_KB
            ),
        ]

    def _host_pids(self) -> list[int]:
        from rayobjects.runtime import admin

        return [host.figures["pid"] for host in admin.status().hosts]

    async def _dedicated(self) -> None:
        """The first answer of a new process, in turns. All come from Ray's warm processes."""
        times: dict[str, list[float]] = {"plain_ray": [], "rayobjects": []}
        kept = []
        for number in range(self.plan.dedicated):
            started = time.perf_counter()
            kept.append(self.actor_class.remote())
            await kept[-1].increment.remote()
            times["plain_ray"].append((time.perf_counter() - started) * 1e3)
            started = time.perf_counter()
            await self.dedicated_objects.get(f"own-{number}").increment.remote()
            times["rayobjects"].append((time.perf_counter() - started) * 1e3)
        self.results.append(
            Result(
                "dedicated_ms",
                "a new dedicated object, first reply",
                "ms",
                statistics.median(times["rayobjects"]),
                statistics.median(times["plain_ray"]),
                measure.median_ratio(times["rayobjects"], times["plain_ray"]),
                None,
                times,
            )
        )


def warm_processes(plan: Plan) -> int:
    """Actors that a run needs: plain ones, hosts, hosts anew, and the dedicated ones."""
    return 3 * shards_default() + 2 * plan.dedicated


def measured(plan: Plan, directory: Path | None, progress: Progress) -> report.Report:
    """Runs all stages on a cluster of their own, and leaves nothing behind.

    Args:
        directory: where the storage root and Ray's files go for the time; None is the system's
            temporary directory.
    """
    work = Path(tempfile.mkdtemp(prefix="rob-", dir=directory))
    # The cluster is nobody else's to find, and no other is found here.
    os.environ["RAYOBJECTS_CLUSTERS_DIRECTORY"] = str(work / "clusters")
    for name in ("RAY_ADDRESS", "RAYOBJECTS_ADDRESS", "RAYOBJECTS_STORAGE"):
        os.environ.pop(name, None)
    try:
        task = progress.add_task("Ray and its warm processes", total=1)
        warm = warm_processes(plan)
        # Ray starts so many before the driver gets in: a cold process would take a second of
        # somebody's stage.
        concurrency = {"RAY_worker_maximum_startup_concurrency": str(warm)}
        with cluster.start_local(num_cpus=warm, environment=concurrency) as started:
            cluster.connect(started.address)
            progress.update(task, completed=1)
            stages = Stages(plan, work / "storage", progress)
            asyncio.run(stages.run())
            ro.shutdown()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report.Report(
        report.machine(statistics.median(stages.sync_ms)), asdict(plan), stages.results
    )


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Little of each; for CI.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    callers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=50_000, help="Numbers of callers; may be given several times."),
    ] = None,
    objects: Annotated[
        int | None, typer.Option(min=500, max=1_000_000, help="Number of durable objects.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="On the disk that is to be measured."),
    ] = None,
) -> None:
    """Compares durable objects with plain Ray actors."""
    plan = QUICK if quick else Plan()
    if callers:
        plan = replace(plan, callers=_distinct(callers))
    if objects is not None:
        plan = replace(plan, objects=objects)
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        found = measured(plan, directory, progress)
    if as_json:
        sys.stdout.write(report.to_json(found) + "\n")
    else:
        report.show(found, Console(width=None if sys.stdout.isatty() else report.WIDTH))


def _distinct(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))


if __name__ == "__main__":
    typer.run(main)
