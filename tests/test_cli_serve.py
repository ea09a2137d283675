"""`rayobjects serve` and its companions as a user runs them: start, look, stop, start again."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import EXAMPLES, Served, is_running, surroundings, wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def counter(directory: Path) -> Iterator[Served]:
    """The counter example, served, in its second life: in its first one it was killed."""
    with Served(EXAMPLES / "counter.py", directory) as first:
        assert first.post("Counter/home/increment", {"by": 2}) == 2
        assert first.post("Counter/a%2Fb/increment") == 1
        processes = first.processes()
        assert len(processes) > 5
        first.process.kill()
        first.process.wait()
        # Nobody has stopped them: they notice.
        wait_until(lambda: not any(map(is_running, processes)), "all processes have ended")
    with Served(EXAMPLES / "counter.py", directory, first.port) as second:
        yield second


def test_it_says_where(counter: Served) -> None:
    assert f"{counter.url}/docs" in counter.printed
    assert str(counter.directory / "data") in counter.printed
    assert "Counter" in counter.printed
    assert httpx.get(f"{counter.url}/docs").status_code == 200


def test_state_survives(counter: Served) -> None:
    assert counter.post("Counter/home/value") == 2
    found = counter.run("get", "Counter", "home")
    assert json.loads(found.stdout) == {"attributes": {"count": 2}, "storage": {}}


def test_status(counter: Served) -> None:
    status = json.loads(counter.run("status", "--json").stdout)
    assert status["url"] == counter.url
    assert status["storage"] == str(counter.directory / "data")
    assert [each["name"] for each in status["classes"]] == ["Counter"]
    assert status["classes"][0]["methods"] == ["increment", "value"]
    assert all(host["state"] == "alive" for host in status["hosts"])
    for_people = counter.run("status").stdout
    assert counter.url in for_people
    assert "increment, value" in for_people


def test_the_gateways_address_names_the_cluster(counter: Served) -> None:
    """As well as Ray's own does."""
    found = counter.run("list", "Counter", "--address", counter.url)
    assert found.stdout.split() == ["a/b", "home"], found.stderr


def test_storage_in_use(counter: Served, tmp_path: Path) -> None:
    """A second cluster on the same storage is refused, and leaves nothing running."""
    environment = surroundings(tmp_path) | {"RAYOBJECTS_STORAGE": str(counter.directory / "data")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "rayobjects", "serve", str(EXAMPLES / "counter.py")]
    found = subprocess.run(
        [*command, "--port", port],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=90,
    )
    assert found.returncode == 1
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, found.stderr
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "clusters").iterdir())
    assert counter.post("Counter/home/value") == 2  # the first one goes on


def test_down(counter: Served) -> None:
    """The last test of this module."""
    processes = counter.processes()
    found = counter.run("down")
    assert (found.returncode, found.stdout) == (0, "")
    assert counter.process.wait(30) == 0
    wait_until(lambda: not any(map(is_running, processes)), "all processes have ended")
    assert "no cluster runs here" in counter.run("status").stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(counter.url)
