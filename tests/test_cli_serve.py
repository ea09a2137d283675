"""`rayobjects serve` and its companions as a user runs them: start, look, stop, start again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import EXAMPLES, Served, free_port, is_running, surroundings, wait_until

pytestmark = pytest.mark.timeout(300)


FAILING = """\
import rayobjects as ro


class Failing(ro.DurableObject):
    def fail(self, why: str) -> None:
        raise LookupError(why)


ro.init()
try:
    ro.deploy(Failing).get("home").fail.remote("from a stub").result(timeout_s=60)
except ro.MethodError:
    print("caught")
"""


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
    assert status["classes"][0]["methods"] == ["increment", "value", "watch"]
    assert all(host["state"] == "alive" for host in status["hosts"])
    for_people = counter.run("status").stdout
    assert counter.url in for_people
    assert "increment, value" in for_people


def test_the_gateways_address_names_the_cluster(counter: Served) -> None:
    """As well as Ray's own does."""
    found = counter.run("list", "Counter", "--address", counter.url)
    assert found.stdout.split() == ["a/b", "home"], found.stderr


def serve(directory: Path, storage: Path, port: int) -> subprocess.CompletedProcess[str]:
    """A `rayobjects serve` that must be refused before it has started anything, in surroundings of
    its own."""
    command = [sys.executable, "-m", "rayobjects", "serve", str(EXAMPLES / "counter.py")]
    clusters = directory / "clusters"
    before = sorted(clusters.glob("*"))
    found = subprocess.run(
        [*command, "--port", str(port), "--storage", str(storage)],
        capture_output=True,
        text=True,
        check=False,
        env=surroundings(directory),
        timeout=90,
    )
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("error: "), found.stderr
    assert found.stderr.count("\n") == 1, found.stderr
    assert sorted(clusters.glob("*")) == before
    return found


def test_storage_in_use(counter: Served) -> None:
    """The second one says who has it."""
    found = serve(counter.directory, counter.directory / "data", free_port())
    assert (
        f"{counter.directory / 'data'} is in use by process {counter.process.pid}" in found.stderr
    )
    assert f"rayobjects down --address {counter.url}`" in found.stderr
    assert f"rayobjects deploy {EXAMPLES / 'counter.py'} --address" in found.stderr
    assert counter.post("Counter/home/value") == 2  # the first one goes on


def test_storage_in_use_by_somebody_elses_cluster(counter: Served, tmp_path: Path) -> None:
    """One that this user's list does not name."""
    found = serve(tmp_path, counter.directory / "data", free_port())
    assert f"{counter.directory / 'data'} is in use by the cluster" in found.stderr
    assert counter.post("Counter/home/value") == 2


CHANGED = """\
import rayobjects as ro


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def value(self) -> int:
        return self.count

    def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def doubled(self) -> int:
        return 2 * self.count
"""


def test_deploy_while_it_is_served(counter: Served, tmp_path: Path) -> None:
    same = counter.run("deploy", str(EXAMPLES / "counter.py"), "--json")
    (told,) = json.loads(same.stdout)
    assert (told["name"], told["changed"]) == ("Counter", False), same.stderr
    changed = tmp_path / "counter.py"
    changed.write_text(CHANGED)
    found = counter.run("deploy", str(changed), "--address", counter.url)
    assert found.stdout == f"Counter  version {told['version'] + 1}  changed\n", found.stderr
    assert counter.post("Counter/home/doubled") == 4
    changed.write_text(f"{CHANGED}\nfilters = 3\n")
    wrong = counter.run("deploy", str(changed))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    back = counter.run("deploy", str(EXAMPLES / "counter.py"))
    assert back.stdout == f"Counter  version {told['version'] + 2}  changed\n", back.stderr


def test_a_second_serve_on_the_same_cluster_is_refused(counter: Served) -> None:
    """Its end would take hosts and gateway away from the first."""
    command = ["serve", str(EXAMPLES / "counter.py"), "--port", str(free_port())]
    found = counter.run(*command, "--address", counter.url)
    assert found.returncode == 1
    assert (
        f"is served already: hand it new code with `rayobjects deploy {command[1]}" in found.stderr
    )
    assert counter.post("Counter/home/value") == 2


def test_port_in_use(counter: Served, tmp_path: Path) -> None:
    found = serve(counter.directory, tmp_path / "new", counter.port)
    assert f"port {counter.port} cannot be used: process {counter.process.pid}" in found.stderr
    assert not (tmp_path / "new").exists()


def test_storage_of_another_version(tmp_path: Path) -> None:
    root = tmp_path / "newer"
    root.mkdir()
    (root / "manifest.json").write_text('{"format": 999}')
    found = serve(tmp_path, root, free_port())
    assert f"{root / 'manifest.json'} has the format 999, this version knows 1" in found.stderr
    assert [path.name for path in root.iterdir()] == ["manifest.json"]


def test_storage_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    found = serve(tmp_path, tmp_path / "thesis", free_port())
    assert "is no storage root and not empty (it has 'chapter1.tex')" in found.stderr


def test_what_methods_raise_is_shown(counter: Served) -> None:
    """Where it happened, whoever called; nothing but that is on the terminal."""
    before = counter.log.read_text()
    script = counter.directory / "failing.py"
    script.write_text(FAILING)
    deployed = subprocess.run(
        [sys.executable, script],
        env=counter.environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert deployed.stdout == "caught\n", deployed.stderr
    url = f"{counter.url}/objects/Failing/home/fail"
    assert httpx.post(url, json={"why": 1}).status_code == 422  # the caller's mistake
    assert httpx.post(url, json={"why": "over HTTP"}).status_code == 500

    def shown() -> str:
        return counter.log.read_text().removeprefix(before)

    wait_until(lambda: "over HTTP" in shown(), shown)
    where = f"""\
  Traceback (most recent call last):
    File "{script}", line 6, in fail
      raise LookupError(why)
  LookupError: """
    assert shown() == "".join(
        f"error: Failing/home.fail raised LookupError: {why}\n{where}{why}\n"
        for why in ("from a stub", "over HTTP")
    )


PRINTING = """\
import logging

import rayobjects as ro


class Printing(ro.DurableObject, hosting="{hosting}"):
    def speak(self) -> None:
        print("hello", 1)
        logging.warning("careful")
        logging.info("not shown")
"""


@pytest.mark.parametrize("hosting", ["shared", "dedicated"])
def test_what_methods_print_is_shown(counter: Served, tmp_path: Path, hosting: str) -> None:
    file = tmp_path / "printing.py"
    file.write_text(PRINTING.format(hosting=hosting).replace("Printing", f"Printing{hosting}"))
    deployed = counter.run("deploy", str(file))
    assert deployed.returncode == 0, deployed.stderr
    before = counter.log.read_text()
    counter.post(f"Printing{hosting}/a/speak")

    def shown() -> str:
        return counter.log.read_text().removeprefix(before)

    name = f"Printing{hosting}/a"
    wait_until(lambda: "careful" in shown(), shown)
    lines = shown().splitlines()
    assert lines[0] == f"{name}: hello 1"
    assert lines[1].startswith(f"{name}: ")
    assert lines[1].endswith("careful")
    assert len(lines) == 2


def test_a_killed_host_is_named_and_makes_no_other_noise(counter: Served) -> None:
    before = counter.log.read_text()
    status = json.loads(counter.run("status", "--json").stdout)
    for host in status["hosts"]:
        os.kill(host["figures"]["pid"], signal.SIGKILL)
    assert counter.post("Counter/home/value") == 2
    names = sorted(host["name"] for host in status["hosts"])
    lines = [
        f"warning: the host {name} is back: its process had ended, and its calls go on"
        for name in names
    ]
    wait_until(
        lambda: sorted(counter.log.read_text().removeprefix(before).splitlines()) == lines,
        "all of them are named, and nothing else",
    )


def test_down(counter: Served) -> None:
    """The last test of this module."""
    processes = counter.processes()
    found = counter.run("down")
    assert (found.returncode, found.stdout) == (0, "")
    assert counter.process.wait(30) == 0
    assert "raylet" not in counter.log.read_text()
    assert counter.log.read_text().endswith("Stopping\nStopped.\n")
    wait_until(lambda: not any(map(is_running, processes)), "all processes have ended")
    assert "no cluster runs here" in counter.run("status").stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(counter.url)
