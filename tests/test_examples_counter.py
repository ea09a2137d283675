"""examples/counter.py as its reader would run it: plain Python, twice."""

import subprocess
import sys
from pathlib import Path

import pytest
from served import EXAMPLES, surroundings

pytestmark = pytest.mark.timeout(240)


def test_it_counts_on(tmp_path: Path) -> None:
    environment = surroundings(tmp_path)
    for count in ("1", "2"):
        found = subprocess.run(
            [sys.executable, str(EXAMPLES / "counter.py")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert (found.returncode, found.stdout) == (0, f"{count}\n"), found.stderr
    assert (tmp_path / "rayobjects-data").is_dir()
