"""`rayobjects serve`, started as a user would start it, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

START_S = 90.0
STOP_S = 60.0
EXAMPLES = Path(__file__).parent.parent / "examples"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


ATTACHED = ("RAYOBJECTS_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
"""What this process has in its environment while it is attached to the session's cluster."""


def surroundings(directory: Path) -> dict[str, str]:
    """The environment of a shell that sees only the clusters listed in this directory."""
    inherited = {name: value for name, value in os.environ.items() if name not in ATTACHED}
    return inherited | {"RAYOBJECTS_CLUSTERS_DIRECTORY": str(directory / "clusters")}


class Served:
    """A running `rayobjects serve`.

    Args:
        target: the file or module.
        directory: for storage and log; also where its cluster is listed.
        port: the gateway's; a free one unless given.
        options: further ones of the command.
        variables: further ones of its environment, which win.
    """

    def __init__(
        self,
        target: Path | str,
        directory: Path,
        port: int | None = None,
        *,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = (
            surroundings(directory)
            | {"RAYOBJECTS_STORAGE": str(directory / "data")}
            | dict(variables or {})
        )
        self.log = directory / "serve.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "rayobjects",
                    "serve",
                    str(target),
                    "--port",
                    str(self.port),
                    *options,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
        self.printed = self._read_addresses()

    def _read_addresses(self) -> str:
        """What it prints when it is ready; its last line names the storage."""
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if "storage" in line:
                return printed
        raise AssertionError(f"it did not start: {self.log.read_text()}")

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Another `rayobjects` command in the same surroundings."""
        return subprocess.run(
            [sys.executable, "-m", "rayobjects", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            timeout=START_S,
            **options,
        )

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """Calls a method; its result."""
        answer = httpx.post(f"{self.url}/objects/{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def processes(self) -> list[int]:
        """The ids of all processes that it has started."""
        return [each.pid for each in psutil.Process(self.process.pid).children(recursive=True)]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Sends a signal as Ctrl-C does; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def wait_until(
    condition: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 30.0
) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"still not so after {timeout_s} s: {text}")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
