"""How the random machines are run, and what a shard's files hold, in words: for the report of a run
that fails."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from rayobjects.storage.journal import first_of, read_segment
from rayobjects.storage.records import Record

# Read here: no RAYOBJECTS_ variable is left when tests run (see tests/conftest.py).
EXAMPLES = int(os.environ.get("RAYOBJECTS_EXAMPLES", "0"))


def run_machine(machine: type[RuleBasedStateMachine]) -> None:
    """Runs EXAMPLES long examples at random, or else always the same few."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES or 30,
            stateful_step_count=50 if EXAMPLES else 30,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


def files_report(directory: str) -> list[str]:
    """One line a file, and one a record of the journal. Reads what is there now and changes
    nothing; the checkpoint is named only, because its owner may have it open."""
    lines: list[str] = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.isdir(path):
            continue
        with open(path, "rb") as file:
            data = file.read()
        if first_of(name) is None:
            text = f" {data.decode().strip()}" if name == "epoch" else ""
            lines.append(f"{name}: {len(data):,} bytes{text}")
            continue
        segment = read_segment(name, data)
        epoch = segment.header.epoch if segment.header is not None else "?"
        lines.append(
            f"{name}: {len(data):,} bytes, epoch {epoch}, {segment.tail.value} at "
            f"{segment.offset:,} {segment.problem}".rstrip()
        )
        lines += [f"    {_in_words(record)}" for record in segment.records]
    return lines


def _in_words(record: Record) -> str:
    words = [f"{record.sequence} (epoch {record.epoch}) {record.class_name}/{record.name}"]
    words.append(record.call_id or "no call")
    words += [word for word in ("delete", "clear", "claims") if getattr(record, word)]
    for key, _, data in record.writes:
        words.append(f"{key}={data[-40:].decode('utf-8', 'replace')}")
    words += [f"socket {each.socket} {'+' if each.open else '-'}" for each in record.sockets]
    words += [f"send {each.data[:20].decode('utf-8', 'replace')}" for each in record.sends]
    return ", ".join(words)
