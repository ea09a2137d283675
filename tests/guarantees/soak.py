"""Long random runs, for as long as one likes: `make soak MINUTES=60`.

Round after round, each with a seed of its own:

    the machine of all guarantees      random calls, sockets and disasters, without Ray
    the machine of every method        what stands still, comes and goes, without Ray
    the tests of the storage           their random ones with many examples
    the tests under kill               hosts of a real cluster, killed again and again

The first failure ends it, with exit code 1. What failed is then in a file that is named, with the
command that runs it again.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = ("-q", "--timeout=0", "-p", "no:cacheprovider", "-p", "no:logging")
"""Without logs: pytest would keep those of hours in memory."""


@dataclass
class Part:
    """A run of some tests: what of a round, with what in its environment."""

    name: str
    tests: str
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, seed: int) -> list[str]:
        return [sys.executable, "-m", "pytest", *PYTEST, f"--hypothesis-seed={seed}", self.tests]


def parts(examples: int, rounds: int) -> Iterator[Part]:
    """One round. The other examples are slower and cover less ground each."""
    yield Part(
        "guarantees",
        "tests/guarantees/test_guarantees_machine.py",
        {"RAYOBJECTS_EXAMPLES": str(examples)},
    )
    yield Part(
        "everything",
        "tests/guarantees/test_everything_machine.py",
        {"RAYOBJECTS_EXAMPLES": str(max(1, examples // 5))},
    )
    yield Part("storage", "tests/storage", {"RAYOBJECTS_EXAMPLES": str(max(1, examples // 5))})
    if rounds:
        for name in ("counters", "bank"):
            yield Part(
                name, f"tests/ray/test_{name}_under_kill.py", {"RAYOBJECTS_ROUNDS": str(rounds)}
            )


def run(part: Part, seed: int, logs: Path) -> bool:
    """Runs a part; says what it was and how it ended."""
    command = part.command(seed)
    log = logs / f"soak-{part.name}-{seed}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        code = subprocess.run(
            command, cwd=ROOT, env=os.environ | part.environment, stdout=file, stderr=file
        ).returncode
    took = time.monotonic() - began
    if code == 0:
        log.unlink()
        print(f"{part.name:<12} seed {seed:<12} {took:6.0f} s  ok", flush=True)
        return True
    again = [*(f"{name}={value}" for name, value in part.environment.items()), *command]
    print(
        f"{part.name:<12} seed {seed:<12} {took:6.0f} s  FAILED, see {log}; again with", flush=True
    )
    print(f"    {shlex.join(again)}", flush=True)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=30, help="no part begins after that (default 30)"
    )
    parser.add_argument(
        "--examples", type=int, default=1_000, help="of the machine, a round (default 1000)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="kills of every host, a round; 0: without Ray (default 5)",
    )
    parser.add_argument("--seed", type=int, help="of the first round; else it is drawn")
    parser.add_argument(
        "--logs",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the logs of failures stay (default: the temporary directory)",
    )
    arguments = parser.parse_args()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(31)
    end = time.monotonic() + arguments.minutes * 60
    while True:
        for part in parts(arguments.examples, arguments.rounds):
            if time.monotonic() >= end:
                return 0
            if not run(part, seed, arguments.logs):
                return 1
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
