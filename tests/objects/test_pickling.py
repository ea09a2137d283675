"""Classes travel to hosts that do not have their file."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from rayobjects.errors import InvalidCall
from rayobjects.objects.model import DurableObject
from rayobjects.objects.pickling import load_classes, pickle_class, pickle_classes

LOCK = threading.Lock()


class Locked(DurableObject):
    def use(self) -> None:
        with LOCK:
            pass


HELPERS = """
    from __future__ import annotations
    STEP = 2
    def twice(value: int) -> int:
        return value * STEP
"""

APP = """
    from __future__ import annotations
    from dataclasses import dataclass, field
    from enum import Enum
    from pydantic import BaseModel
    import helpers
    from helpers import twice
    import rayobjects.objects.fields as fields
    from rayobjects.objects.model import DurableObject

    class Kind(Enum):
        A = "a"

    @dataclass
    class Point:
        x: int
        tags: list[Tag] = field(default_factory=list)
        def shown(self):
            return f"version {VERSION}: {self.x}"

    @dataclass
    class Tag:
        text: str

    class Body(BaseModel):
        kind: Kind
        point: Point

    VERSION = 1

    class Room(DurableObject):
        point: Point | None = fields.durable(None)
        kind: Kind | None = fields.durable(None)
        def put(self, body: Body) -> Point:
            self.point, self.kind = body.point, body.kind
            return body.point
        def move(self, by: int) -> int:
            self.point.x += helpers.twice(by) + twice(by)
            return self.point.x
        def show(self) -> str:
            assert self.kind is None or self.kind is Kind.A
            return self.point.shown()
        def replace(self, point):
            assert type(point) is Point
            self.point = point
        def membership(self, word):
            return word in {"some", "words", "in", "a", "set", "that", "is", "hashed"}

    class Derived(Room):
        def show(self) -> str:
            return "derived " + super().show()
"""

DEPLOY = """
    import pickle, sys, pathlib
    from rayobjects.objects.catalog import describe
    from rayobjects.objects.pickling import pickle_classes
    try:
        from app import Room, Derived, Point
    except ImportError:
        Room, Derived, Point = (globals()[n] for n in ("Room", "Derived", "Point"))
    before = dict(Point.__annotations__), dict(Room.put.__annotations__)
    blob = pickle_classes([Room, Derived])
    assert (Point.__annotations__, Room.put.__annotations__) == before
    pathlib.Path("classes.pickle").write_bytes(blob)
    import cloudpickle
    pathlib.Path("argument.pickle").write_bytes(cloudpickle.dumps(Point(9)))
    print(describe(Room).digest)
"""

HOST = """
    import pathlib, pickle, sys
    from objects_double import Live, MemoryLedger
    from rayobjects.objects.catalog import ClassInfo, ObjectClass
    from rayobjects.objects.pickling import load_classes
    blob = pathlib.Path("classes.pickle").read_bytes()
    classes = load_classes(blob)
    room = ObjectClass(classes["Room"], ClassInfo("Room"))
    ledger = MemoryLedger()
    state = pathlib.Path("state.pickle")
    if state.exists():
        ledger.objects = pickle.loads(state.read_bytes())
        live = Live(classes["Room"], ledger)
        print(live.call(lambda r: r.show()))
        raise SystemExit
    live = Live(classes["Room"], ledger)
    arguments = room.methods["put"].parse_json(
        b'{"body": {"kind": "a", "point": {"x": 1, "tags": [{"text": "t"}]}}}'
    )
    assert type(arguments["body"].point).__name__ == "Point"
    assert arguments["body"].point.tags[0].text == "t"
    live.call(lambda r: r.put(**arguments))
    assert live.call(lambda r: r.move(1)) == 5
    point = live.ledger.objects[live.id]["@point"][1]
    assert b":Point" in point and len(point) < 200, point
    argument = pickle.loads(pathlib.Path("argument.pickle").read_bytes())
    live.call(lambda r: r.replace(argument))
    assert live.call(lambda r: r.membership("set"))
    print(live.reloaded().call(lambda r: r.show()))
    other = Live(classes["Derived"], MemoryLedger(), "x")
    other.call(lambda r: r.replace(argument))
    print(other.call(lambda r: r.show()))
    state.write_bytes(pickle.dumps(ledger.objects))
"""


def run(code: str, folder: Path, *path: Path) -> str:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    paths = [str(p) for p in (*path, Path(__file__).parent, Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("as_script", [False, True])
def test_a_host_needs_no_file_of_the_users(tmp_path: Path, as_script: bool) -> None:
    """Deploys from one process, runs in another, and again after the next deployment."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "helpers.py").write_text(textwrap.dedent(HELPERS))

    def deploy(app: str) -> str:
        if as_script:
            return run(textwrap.dedent(app) + textwrap.dedent(DEPLOY), tmp_path, source)
        (source / "app.py").write_text(textwrap.dedent(app))
        return run(DEPLOY, tmp_path, source)

    first = deploy(APP)
    assert deploy(APP) == first  # though it is another process
    assert run(HOST, tmp_path) == "version 1: 9\nderived version 1: 9"
    assert deploy(APP.replace("VERSION = 1", "VERSION = 2")) != first
    assert run(HOST, tmp_path) == "version 2: 9"


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(InvalidCall, match=r"Locked cannot be deployed: the global 'LOCK' of .*on_"):
        pickle_class(Locked)


def test_a_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "only_here.py").write_text("class Base: pass")
    monkeypatch.syspath_prepend(str(packages))
    import only_here  # type: ignore[import-not-found]

    class Needs(DurableObject):
        def use(self) -> object:
            return only_here.Base()

    blob = pickle_class(Needs)
    monkeypatch.delitem(sys.modules, "only_here")
    (packages / "only_here.py").unlink()
    with pytest.raises(InvalidCall, match=r"module 'only_here' is missing there.*install it") as e:
        load_classes(blob)
    assert e.value.status == 500


def test_damaged_code_is_an_error_of_ours() -> None:
    with pytest.raises(InvalidCall, match="deploy it again"):
        load_classes(b"nonsense")


def test_several_classes_keep_their_relation() -> None:
    class Parent(DurableObject):
        pass

    class Child(Parent):
        pass

    loaded = load_classes(pickle_classes([Parent, Child]))
    assert issubclass(loaded["Child"], loaded["Parent"])


VALUES = """
    from dataclasses import dataclass
    import rayobjects.objects.fields as fields
    from rayobjects.objects.model import DurableObject

    @dataclass
    class Bid:
        price: int

    class Keeper(DurableObject):
        kept: object = fields.durable(None)
        def put(self, price):
            self.kept = Bid(price)
        def show(self):
            return f"{type(self.kept).__name__} {self.kept.price}"
        def hold(self, value):
            pass
"""

DEPLOY_VALUES = """
    import pathlib
    import market
    from rayobjects.objects.catalog import describe
    from rayobjects.objects.pickling import pickle_classes
    pathlib.Path("classes.pickle").write_bytes(pickle_classes([market.Keeper]))
    print(describe(market.Keeper).digest)
"""

HOST_VALUES = """
    import pathlib, pickle
    from objects_double import Live, MemoryLedger
    from rayobjects.objects.pickling import load_classes
    classes = load_classes(pathlib.Path("classes.pickle").read_bytes())
    ledger = MemoryLedger()
    state = pathlib.Path("state.pickle")
    if state.exists():
        ledger.objects = pickle.loads(state.read_bytes())
    live = Live(classes["Keeper"], ledger)
    if not state.exists():
        live.call(lambda r: r.put(7))
    print(live.call(lambda r: r.show()))
    live.call(lambda r: r.put(8))
    stored = live.ledger.objects[live.id]["@kept"][1]
    names = "market:Bid", "market:Offer", "prices:Offer"
    print([name for name in names if name.encode() in stored])
    state.write_bytes(pickle.dumps(ledger.objects))
"""


@pytest.mark.parametrize("moved", [False, True])
def test_a_renamed_or_moved_class_of_a_stored_value_is_found_by_its_old_name(
    tmp_path: Path, moved: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()

    def deploy(app: str) -> str:
        (source / "market.py").write_text(textwrap.dedent(app))
        return run(DEPLOY_VALUES, tmp_path, source)

    first = deploy(VALUES)
    assert run(HOST_VALUES, tmp_path) == "Bid 7\n['market:Bid']"
    renamed = VALUES.replace("Bid", "Offer")
    if moved:
        klass = "    @dataclass\n    class Offer:\n        price: int\n"
        (source / "prices.py").write_text(
            textwrap.dedent("    from dataclasses import dataclass\n" + klass)
        )
        renamed = renamed.replace(klass, "    from prices import Offer\n")
    without = deploy(renamed)
    with pytest.raises(AssertionError, match="the deployed code has no class market:Bid"):
        run(HOST_VALUES, tmp_path)
    also = deploy(renamed + "\n    Bid = Offer\n")
    assert len({first, without, also}) == 3  # a new version each
    own = "prices:Offer" if moved else "market:Offer"
    assert run(HOST_VALUES, tmp_path) == f"Offer 8\n['{own}']"


def test_a_class_that_is_not_referred_to_does_not_travel(tmp_path: Path) -> None:
    """And the error says so."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "market.py").write_text(
        textwrap.dedent(VALUES + "\n    class Spare:\n        pass\n")
    )
    deploy = (
        DEPLOY_VALUES
        + """
    pathlib.Path("argument.pickle").write_bytes(
        __import__("pickle").dumps(((market.Spare(),), {}))
    )
    """
    )
    run(deploy, tmp_path, source)
    host = """
    import asyncio, pathlib
    from rayobjects.messages import PICKLE
    from rayobjects.objects.pickling import load_classes
    from rayobjects.testing import LocalHost
    from rayobjects.testing.stubs import send
    classes = load_classes(pathlib.Path("classes.pickle").read_bytes())
    async def main():
        async with LocalHost([classes["Keeper"]]) as host:
            argument = pathlib.Path("argument.pickle").read_bytes()
            try:
                await send(host.get(classes["Keeper"], "k"), "hold", PICKLE, argument)
            except Exception as error:
                print(repr(error))
    asyncio.run(main())
    """
    said = run(host, tmp_path)
    assert "the arguments of Keeper/k.hold could not be unpickled" in said
    assert "Can't get attribute 'Spare'" in said
    assert "those of your own to which the deployed class refers" in said
