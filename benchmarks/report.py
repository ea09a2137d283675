"""Results, their targets, and how they are shown: as a table or as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 110
"""Columns of the table where it is not printed to a terminal."""


@dataclass(frozen=True)
class Target:
    """What a figure should reach.

    Attributes:
        of: "ratio" or "value": which of a result's figures.
        relation: "at most" or "at least".
        limit: the figure's bound.
    """

    of: str
    relation: str
    limit: float

    def met_by(self, figure: float) -> bool:
        """Whether the figure reaches it."""
        return figure <= self.limit if self.relation == "at most" else figure >= self.limit


@dataclass(frozen=True)
class Result:
    """One figure, of rayobjects and, where there is such a thing, of plain Ray.

    Attributes:
        name: for programs; stays the same from version to version.
        label: for people.
        unit: of both figures.
        rayobjects: the figure.
        plain_ray: plain Ray's.
        ratio: rayobjects' to plain Ray's; where rounds were measured side by side the median of
            their ratios, so not always the quotient of the two.
        rounds: every round's figures, by subject.
    """

    name: str
    label: str
    unit: str
    rayobjects: float
    plain_ray: float | None = None
    ratio: float | None = None
    target: Target | None = None
    rounds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        figure = self.ratio if self.target.of == "ratio" else self.rayobjects
        return figure is not None and self.target.met_by(figure)


@dataclass(frozen=True)
class Report:
    """All results of a run, with what they depend on.

    Attributes:
        machine: the machine and the versions.
        settings: how much was measured.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result]


def machine(sync_ms: float) -> dict[str, Any]:
    """What the figures depend on.

    Args:
        sync_ms: of the disk below the storage root.
    """
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "ray": version("ray"),
        "duckdb": version("duckdb"),
        "rayobjects": version("rayobjects"),
        "sync_ms": round(sync_ms, 3),
    }


def to_json(report: Report) -> str:
    """The report as one JSON object; `met` says whether each target was reached."""
    body = asdict(report)
    for entry, result in zip(body["results"], report.results, strict=True):
        entry["met"] = result.met
    return json.dumps(body, indent=2)


def show(report: Report, console: Console) -> None:
    """Prints the report as a table."""
    about = report.machine
    console.print(
        f"{about['cpus']} CPUs, Python {about['python']}, Ray {about['ray']}, DuckDB "
        f"{about['duckdb']}; one synced append takes {about['sync_ms']:.2f} ms on this disk"
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("unit", "plain Ray", "rayobjects", "ratio", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in report.results:
        table.add_row(
            result.label,
            result.unit,
            "" if result.plain_ray is None else figure(result.plain_ray),
            figure(result.rayobjects),
            "" if result.ratio is None else f"{figure(result.ratio)} ×",
            _target(result.target),
            {None: "", True: "[green]met[/]", False: "[red]not met[/]"}[result.met],
        )
    console.print(table)


def figure(value: float) -> str:
    """A figure with as many digits as mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _target(target: Target | None) -> str:
    if target is None:
        return ""
    sign = "≤" if target.relation == "at most" else "≥"
    return f"{sign} {target.limit:g}{' ×' if target.of == 'ratio' else ''}"
