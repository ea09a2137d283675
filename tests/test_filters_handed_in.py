"""Filters on their way to the hosts: from a module that is served, pickled, named by their code."""

import subprocess
import sys
from pathlib import Path

import pytest

import rayobjects as ro
from rayobjects.cli.loading import load as load_application
from rayobjects.runtime.around import Handed, hand_in, load

APP = """
import rayobjects as ro

LIMIT = {"a": 1, "b": 2}

class NotAllowed(Exception):
    pass

class Guard:
    def __init__(self, tenant):
        self.tenant = tenant

    async def __call__(self, call, proceed):
        if call.context.get("tenant") != self.tenant:
            raise NotAllowed(LIMIT)
        return await proceed()

async def note(call, proceed):
    result = await proceed()
    return result

def process_setup():
    return LIMIT["a"]

class Thing(ro.DurableObject):
    pass

filters = [note, Guard("acme")]
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    file = tmp_path / "filters_app.py"
    file.write_text(APP)
    return file


def test_a_served_module_brings_its_filters(app: Path) -> None:
    application = load_application(str(app))
    assert application.filters is not None
    assert [getattr(each, "__name__", "Guard") for each in application.filters] == ["note", "Guard"]
    assert application.process_setup is not None
    app.write_text(APP.rpartition("filters =")[0] + "process_setup = None\n")
    without = load_application(str(app))
    assert (without.filters, without.process_setup) == (None, None)
    app.write_text(APP + "filters = {}\n")
    with pytest.raises(ro.InvalidCall, match=r"`filters` in .* is a dict: make it a list"):
        load_application(str(app))


def test_the_same_code_has_the_same_name_in_every_process(app: Path) -> None:
    script = (
        "from rayobjects.cli.loading import load\n"
        "from rayobjects.runtime.around import hand_in\n"
        f"found = load({str(app)!r})\n"
        "print(hand_in(found.filters, found.process_setup).name)\n"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1
    app.write_text(APP.replace('"a": 1', '"a": 3'))
    found = load_application(str(app))
    assert found.filters is not None
    assert hand_in(found.filters, found.process_setup).name + "\n" not in names


def test_they_are_loaded_without_their_module(app: Path) -> None:
    application = load_application(str(app))
    assert application.filters is not None
    handed = hand_in(application.filters, application.process_setup)
    app.unlink()
    del sys.modules["filters_app"]
    filters, setup = load(handed.bundle)
    assert len(filters) == 2
    assert setup is not None
    assert setup() == 1


def test_nothing() -> None:
    assert hand_in([], None) == Handed("", b"")
    assert load(b"") == ((), None)


def test_mistakes() -> None:
    lock = __import__("threading").Lock()

    async def locked(call: ro.MethodCall, proceed: object) -> None:
        with lock:
            return

    with pytest.raises(ro.InvalidCall, match="can be pickled"):
        hand_in([locked], None)
    with pytest.raises(ro.InvalidCall, match="is a function without arguments"):
        hand_in([], 3)  # type: ignore[arg-type]
    with pytest.raises(ro.InvalidCall, match="is no filter"):
        hand_in([print], None)  # type: ignore[list-item]
