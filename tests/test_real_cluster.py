"""A Ray cluster that rayobjects has not started: the commands of cluster.yaml start its head, and
`rayobjects serve --address` serves there. As on a real one, but for what keeps it on loopback and
to itself: programs named `ray` and `rayobjects` in front of the real ones add the options for it.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from served import EXAMPLES, Served, free_port, surroundings, wait_until

from rayobjects.runtime.keeper import MARK, sweep

pytestmark = pytest.mark.timeout(400)

COMMANDS = yaml.safe_load((EXAMPLES.parent / "cluster.yaml").read_text())["head_start_ray_commands"]
PROGRAMS = Path(sys.executable).parent
START_S = 120.0

RAY = """#!/bin/bash
# `ray stop` would stop every Ray of this machine. The autoscaler has no machines to look after.
echo "$@" >> "$ASKED"
[ "$1" = start ] || exit 0
for option; do
  case "$option" in
    --port=*) options+=("--port=$RAY_PORT") ;;
    --autoscaling-config=*) ;;
    *) options+=("$option") ;;
  esac
done
exec {ray} "${{options[@]}}" --node-ip-address=127.0.0.1 --temp-dir="$DIRECTORY" --num-cpus=4 \\
  --object-store-memory=100000000 --include-dashboard=false --block
"""

RAYOBJECTS = """#!/bin/bash
exec {rayobjects} "$@" --directory "$DIRECTORY/ha"
"""


@dataclass
class Head:
    """The head of a running cluster."""

    address: str
    variables: dict[str, str]
    asked: list[str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Ray, started by what `ray up cluster.yaml` would run on the head."""
    directory = Path(tempfile.mkdtemp(prefix="ro-head-", dir="/tmp"))  # short: sockets' paths are
    programs = tmp_path_factory.mktemp("bin")
    for name, text in (("ray", RAY), ("rayobjects", RAYOBJECTS)):
        program = programs / name
        program.write_text(text.format(**{name: PROGRAMS / name}))
        program.chmod(0o755)
    port, mark = free_port(), secrets.token_hex(8)
    # Everything that touches this cluster has them: loopback only, and a token.
    variables = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment = surroundings(tmp_path_factory.mktemp("head")) | variables
    environment |= {
        "PATH": f"{programs}:{PROGRAMS}:{os.environ['PATH']}",
        "DIRECTORY": str(directory),
        "RAY_PORT": str(port),
        "ASKED": str(programs / "asked"),
        MARK: mark,
    }
    log = directory / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-ec", "\n".join(COMMANDS)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def has_started() -> bool:
            assert process.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        wait_until(has_started, log.read_text, START_S)
        asked = (programs / "asked").read_text().splitlines()
        yield Head(f"127.0.0.1:{port}", variables, asked)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(START_S)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        sweep(mark, 0)
        shutil.rmtree(directory)


def test_a_port_that_is_taken(head: Head, tmp_path: Path) -> None:
    """Refused before any host is started."""
    command = [sys.executable, "-m", "rayobjects"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        options = ["--address", head.address, "--port", port, "--storage", str(tmp_path / "data")]
        refused = subprocess.run(
            [*command, "serve", str(EXAMPLES / "counter.py"), *options],
            env=surroundings(tmp_path) | head.variables,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
    assert (refused.returncode, refused.stdout) == (1, "")
    connecting, error = refused.stderr.splitlines()
    assert connecting == f"Connecting to {head.address}"
    assert error.startswith(f"error: port {port} is in use: ")
    assert not (tmp_path / "data").exists()


def test_serve_on_it(head: Head, tmp_path: Path) -> None:
    """Objects and HTTP on that cluster, calls from another process that knows the address only,
    and Ray goes on when it stops; the next one finds the objects."""
    assert head.asked == [
        "stop",
        "start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml",
    ]
    options = ["--address", head.address, "--storage", str(tmp_path / "data")]
    with Served(
        EXAMPLES / "counter.py", tmp_path, options=options, variables=head.variables
    ) as first:
        assert first.post("Counter/home/increment", {"by": 2}) == 2
        script = f"""
import rayobjects as ro
ro.init(address={head.address!r})
print(ro.namespace("Counter").get("home").increment.remote(40).result(timeout_s=60))
"""
        found = subprocess.run(
            [sys.executable, "-c", script],
            env=surroundings(tmp_path) | head.variables,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert found.stdout == "42\n", found.stderr
        status = json.loads(first.run("status", "--address", head.address, "--json").stdout)
        assert status["storage"] == str(tmp_path / "data")
        assert {host["state"] for host in status["hosts"]} == {"alive"}

        refused = first.run(
            "serve",
            str(EXAMPLES / "chat.py"),
            *("--address", head.address, "--storage", str(tmp_path / "other")),
        )
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"the cluster at {head.address} is served already: " in refused.stderr
        assert f"rayobjects deploy {EXAMPLES / 'chat.py'} --address" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert first.post("Counter/home/value") == 42  # it did not stop what others run
        assert first.stop(signal.SIGINT) == 0
    assert first.log.read_text().endswith("Stopping\nStopped; the Ray cluster goes on.\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(first.url)

    with Served(
        EXAMPLES / "counter.py", tmp_path, options=options, variables=head.variables
    ) as second:
        assert second.post("Counter/home/value") == 42
        down = second.run("down", "--address", head.address)
        assert (down.returncode, down.stdout) == (0, ""), down.stderr
        assert second.process.wait(60) == 0
    assert "Stopped by another process" in second.log.read_text()
