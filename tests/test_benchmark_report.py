"""The benchmark's report, and its arithmetic. The figures themselves come from a run of it."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import measure
from benchmarks.report import WIDTH, Report, Result, Target, figure, show, to_json

MACHINE = {"cpus": 2, "python": "3.11", "ray": "2", "duckdb": "2", "rayobjects": "1"}


def report_of(*results: Result) -> Report:
    return Report(MACHINE | {"sync_ms": 0.2}, {"objects": 10}, list(results))


REPORT = report_of(
    Result("read_p50_ms", "read", "ms", 1.2, 1.0, 1.2, Target("ratio", "at most", 1.3)),
    Result("writes", "writes", "calls/s", 3000.0, 1000.0, 3.0, Target("ratio", "at least", 4.0)),
    Result("live_kb", "memory", "KB", 8.0, target=Target("value", "at most", 12.0)),
    Result("at_rest_bytes", "disk", "bytes", 280.0),
)


def test_targets() -> None:
    assert [result.met for result in REPORT.results] == [True, False, True, None]


def test_json_has_everything_and_whether_targets_are_met() -> None:
    body = json.loads(to_json(REPORT))
    assert [entry["met"] for entry in body["results"]] == [True, False, True, None]
    assert body["results"][1]["target"] == {"of": "ratio", "relation": "at least", "limit": 4.0}
    assert body["machine"]["sync_ms"] == 0.2
    assert body["settings"] == {"objects": 10}


def test_table_shows_figures_and_targets_unclipped() -> None:
    output = io.StringIO()
    show(REPORT, Console(file=output, width=WIDTH))
    lines = {line.split()[0]: line for line in output.getvalue().splitlines() if line.split()}
    assert "1.20 ×" in lines["read"]
    assert "≤ 1.3 ×" in lines["read"]
    assert lines["read"].rstrip().endswith("met")
    assert lines["writes"].rstrip().endswith("not met")
    assert "3,000" in lines["writes"]
    assert "…" not in output.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"), [(12345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23"), (0.0, "0.00")]
)
def test_figures(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_percentiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert measure.percentile(values, 50) == 51
    assert measure.percentile(values, 99) == 100
    assert measure.percentile([7.0], 99) == 7


def test_ratio_is_that_of_the_rounds() -> None:
    assert measure.median_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == 3.0


def test_every_number_is_called_once() -> None:
    seen: list[int] = []

    async def call(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    asyncio.run(measure.all_once(call, range(50), at_once=7))
    assert sorted(seen) == list(range(50))


def test_subjects_take_turns() -> None:
    order: list[str] = []

    async def first() -> None:
        order.append("first")

    async def second() -> None:
        order.append("second")

    times = asyncio.run(
        measure.latencies({"first": first, "second": second}, rounds=2, calls_a_round=1)
    )
    assert order == ["first", "first", "second", "second"] * 2
    assert [len(each) for each in times.values()] == [2, 2]


def test_disk_bytes_counts_all_files(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "journal").write_bytes(b"x" * 10_000)
    assert measure.disk_bytes(tmp_path) >= 10_000
