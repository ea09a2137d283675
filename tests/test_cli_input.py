"""The command line without Ray: loading, arguments, settings, and one line for each error."""

import io
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from rich.console import Console
from served import ATTACHED, surroundings

import rayobjects as ro
from rayobjects.cli import output
from rayobjects.cli.app import main, parse_arguments
from rayobjects.cli.loading import load
from rayobjects.errors import InvalidCall, MethodError
from rayobjects.objects.catalog import describe
from rayobjects.runtime import registry
from rayobjects.runtime.class_store import to_delete
from rayobjects.runtime.configuration import Catalog
from rayobjects.settings import settings

COUNTER = """
import rayobjects as ro

class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def increment(self, by: int = 1) -> int:
        self.count += by
        return self.count
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(exit.value.code, int)
    return exit.value.code, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a command that must fail; nothing else is printed."""
    code, out, error = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("NAME = 'x'")
    path = tmp_path / "my_counter.py"
    path.write_text(f"import neighbour\n{COUNTER}\npages = {{'/': 'index.html'}}\napp = print\n")
    loaded = load(str(path))
    assert [each.__name__ for each in loaded.classes] == ["Counter"]
    assert loaded.classes[0].__module__ == "my_counter"
    assert loaded.pages == {"/": "index.html"}
    assert loaded.app is print


def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "cart.py").write_text(COUNTER)
    (tmp_path / "shop" / "all.py").write_text("from shop.cart import Counter")
    monkeypatch.chdir(tmp_path)
    assert load("shop.cart").name == "shop.cart"
    assert [each.__name__ for each in load("shop.all").classes] == ["Counter"]


def test_an_abstract_class_is_not_served(tmp_path: Path) -> None:
    path = tmp_path / "my_shapes.py"
    path.write_text(
        "from abc import ABC, abstractmethod\nimport rayobjects as ro\n"
        "class Shape(ro.DurableObject, ABC):\n    @abstractmethod\n    def area(self): ...\n"
        "class Square(Shape):\n    def area(self):\n        return 1\n"
    )
    assert [each.__name__ for each in load(str(path)).classes] == ["Square"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "has no durable object: write a class"),
        ("class Counter: pass", "has no durable object"),
        ("def (", "line 1: invalid syntax"),
        ("import surely_not_there", "needs the module 'surely_not_there', which is not installed"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (f"{COUNTER}\npages = ['/']", "`pages` in"),
        (
            f"{COUNTER}\ndef make():\n    class A(ro.DurableObject): pass\n    return A\n"
            "B = make()\nC = make()",
            "two classes of the name 'A', in B and in C",
        ),
        (f"{COUNTER}\nclass Bad(ro.DurableObject):\n    l = ro.durable([])", "factory=list"),
    ],
)
def test_a_bad_file(
    code: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad_application.py"
    path.write_text(code)
    assert message in fails(capsys, "serve", str(path))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nope.py", "the file nope.py does not exist"),
        ("./", "the file ./ is a directory"),
        (".", "the file . is a directory"),
        (".app", "the file .app does not exist"),
        ("", "no file is named"),
        ("no.such.module", "there is no module 'no'"),
    ],
)
def test_nothing_there(target: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, "serve", target)
    assert message in fails(capsys, "deploy", target)


def test_port_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYOBJECTS_ADDRESS", raising=False)  # of the tests' cluster
    path = tmp_path / "port_counter.py"
    path.write_text(COUNTER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = fails(capsys, "serve", str(path), "--port", str(port))
    assert f"port {port} cannot be used" in error
    assert "--port" in error


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def increment(self) -> None:\n        with LOCK:\n            pass", "global 'LOCK' of"),
        ("...\n\nasync def f(call, proceed):\n    LOCK\n\nfilters = [f]", "can be pickled"),
        ("...\n\nfilters = [print]", "is no filter"),
        ("...\n\ndef process_setup() -> None:\n    LOCK", "can be pickled"),
    ],
)
def test_what_cannot_be_deployed_is_told_before_ray_starts(
    code: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ATTACHED:  # of a test before
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("rayobjects.cli.serving.check_storage", lambda *_: pytest.fail("too late"))
    path = tmp_path / "undeployable_counter.py"
    head = "import threading\nimport rayobjects as ro\n\nLOCK = threading.Lock()\n\n"
    path.write_text(f"{head}class Counter(ro.DurableObject):\n    {code}\n")
    assert message in fails(capsys, "serve", str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "0"], "--port cannot be 0"),
        (["--shards", "5000"], "--shards cannot be 5000"),
        (["--hosting", "cloud"], "--hosting cannot be 'cloud'"),
        (["--storage", "s3://bucket"], "not supported yet"),
        (["--storage", "/proc/x"], "/proc/x cannot be written"),
        (["--storage", __file__], f"{__file__} is a file: choose a directory"),
    ],
)
def test_bad_settings(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ATTACHED:  # of a test before
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "settings_counter.py"
    path.write_text(COUNTER)
    assert message in fails(capsys, "serve", str(path), *options)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYOBJECTS_PORT", "8123")
    assert settings().port == 8123
    assert settings(port=9000).port == 9000
    assert settings(port=None).port == 8123
    monkeypatch.setenv("RAYOBJECTS_IDLE_S", "-1")
    with pytest.raises(InvalidCall, match="RAYOBJECTS_IDLE_S cannot be '-1'"):
        settings()


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["list", "Counter"],
        ["get", "Counter", "home"],
        ["call", "Counter", "home", "increment"],
        ["delete", "Counter", "home", "--yes"],
        ["down"],
    ],
)
def test_no_cluster(command: list[str], tmp_path: Path) -> None:
    # In a process of its own: this one may be connected to the tests' cluster.
    ended = subprocess.run(
        [sys.executable, "-m", "rayobjects", *command],
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert "start one with `rayobjects serve FILE`" in ended.stderr


def test_a_bad_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no address of a Ray cluster" in fails(capsys, "status", "--address", "nonsense")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"127.0.0.1:{port}"
    assert f"no Ray cluster answers at {address}" in fails(capsys, "status", "--address", address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "8000"])
def test_a_gateways_address_where_none_is(
    address: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYOBJECTS_CLUSTERS_DIRECTORY", str(tmp_path))
    error = fails(capsys, "status", "--address", address)
    assert f"no cluster of this machine serves {address}: none runs here" in error
    record = registry.Record("127.0.0.1:1", "t", "a", 1, 0.0, "", facts={"url": "http://x:1"})
    monkeypatch.setattr("rayobjects.runtime.cluster.running", lambda: [record])
    assert "name one that runs (http://x:1)" in fails(capsys, "status", "--address", address)


def test_files_of_dead_clusters_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYOBJECTS_CLUSTERS_DIRECTORY", str(tmp_path))
    path = tmp_path / "1-a.json"
    left = tmp_path / "ray"
    left.mkdir()
    record = registry.Record(
        "127.0.0.1:1", "t", "a", 2**22 - 1, 0.0, str(left), temporary=True, path=str(path)
    )
    registry.write(record)
    (tmp_path / "2-b.json").write_text("{")  # being written
    assert path.stat().st_mode & 0o777 == 0o600
    assert registry.running() == []
    assert not path.exists()
    assert not left.exists()


def test_a_stopped_owner_whose_parent_takes_no_notice(tmp_path: Path) -> None:
    """It stays in the list of processes, and is not waited for."""
    owner = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        facts = {"address": "", "token": "", "mark": "none", "owner": owner.pid, "started_at": 0.0}
        facts |= {"directory": str(tmp_path), "path": str(tmp_path / "record.json")}
        script = "from rayobjects.runtime import registry; registry.stop(registry.Record(**{}))"
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", script.format(facts)], check=True)
        assert time.monotonic() - began < registry.STOP_S
        assert psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE
    finally:
        owner.kill()
        owner.wait()


def test_arguments() -> None:
    given = ["a=1", "b=text", 'c={"d": [1, null]}', "e=", "f=x=y", 'g="1"', "h=true", "i=1.5"]
    assert parse_arguments(given) == {
        "a": 1,
        "b": "text",
        "c": {"d": [1, None]},
        "e": "",
        "f": "x=y",
        "g": "1",
        "h": True,
        "i": 1.5,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["call", "Counter", "home", "increment", "by"],
        ["call", "Counter", "home", "increment", "=1"],
        ["call", "Counter", "home", "increment", "by=1", "by=2"],
        ["call", "Counter", "home", "increment", "--context", "user=a", "--context", "user=b"],
        ["call", "Counter", "home"],
        ["list"],
        ["serve"],
        ["serve", "a.py", "--port", "many"],
        ["dance"],
        ["status", "--loud"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in error


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"rayobjects {metadata.version('rayobjects')}\n", "")


def test_names_that_a_class_cannot_get(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is called so already" in fails(capsys, "rename", "Counter", "Counter")
    assert "'_Counter' cannot be the name" in fails(capsys, "rename", "Counter", "_Counter")


def test_deleting_a_class_by_a_former_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hall(ro.DurableObject):
        pass

    info = describe(Hall)
    info.former = ["Room"]
    catalog = Catalog(1, {"Hall": info})

    def ask_host(host: str, ask: Any) -> bytes:
        return msgspec.msgpack.encode(to_delete("Room", catalog))

    monkeypatch.setattr("rayobjects.cli.app.connect", lambda address: "")
    monkeypatch.setattr("rayobjects.runtime.configuration.read_catalog", lambda: catalog)
    monkeypatch.setattr("rayobjects.runtime.class_changes.ask_host", ask_host)
    for options in ([], ["--yes"]):
        error = fails(capsys, "delete-class", "Room", *options)
        assert "the class that is called Hall now, and nothing was deleted" in error


@pytest.mark.parametrize(
    ("command", "count", "title"),
    [
        ("schedules", 1, "1 tell"),
        ("schedules", 2, "2 schedules and tells"),
        ("intents", 1, "1 intent"),
        ("intents", 2, "2 intents"),
    ],
)
def test_one_is_no_plural(
    command: str,
    count: int,
    title: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = "intent" if command == "intents" else "tell"
    promise = {"class": "Counter", "name": "home", "kind": kind, "method": "count"}
    promise |= {"key": "k", "due": 1.0, "failed": ""}
    monkeypatch.setattr("rayobjects.cli.app.connect", lambda address: "")
    monkeypatch.setattr("rayobjects.runtime.admin.list_promises", lambda *_: [promise] * count)
    code, out, _ = run(capsys, command)
    assert (code, out.splitlines()[0].rstrip()) == (0, title)
    assert output.counted(1, "object") == "1 object"
    assert output.counted(2_000, "object") == "2,000 objects"


def test_help_says_the_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "serve", "--help")
    for text in ("(default: 8000)", "(default: one for each CPU)", "shared (default)"):
        assert text in out


def test_tables_are_folded_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["x" * 300, "y" * 300, "a word " * 40]
    output.print_table("Things", ["one", "two", "three"], [cells])
    printed = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in cells] == [each.strip() for each in printed[-1].split("  ")]

    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=80, soft_wrap=True)
    output.print_table("Things", ["one", "two", "three"], [cells], console)
    assert terminal.getvalue().count("x") == 300
    assert terminal.getvalue().count("y") == 300


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "--debug", "serve", "nope.py")
    assert code == 1
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: the file nope.py")


@pytest.mark.parametrize("error", [KeyError("x"), MethodError("a raised\nB: c")])
def test_any_error_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_it(address: str | None) -> str:
        raise error

    monkeypatch.setattr("rayobjects.cli.app.connect", raise_it)
    assert "--debug" in fails(capsys, "status")


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(address: str | None) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("rayobjects.cli.app.connect", interrupt)
    assert run(capsys, "status") == (130, "", "")


def test_the_environment_of_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "environment", "--directory", str(tmp_path))
    assert code == 0
    assert "export RAY_SERVE_ENABLE_HA_PROXY=1\n" in out
    assert "export RAY_preload_python_modules=" in out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("serve", "status", "list", "get", "call", "delete", "down"):
        assert command in out
