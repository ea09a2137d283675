"""Types of arguments, in a process that has the class by value only, as hosts have it."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

import rayobjects as ro
from rayobjects.objects.catalog import describe
from rayobjects.objects.pickling import pickle_classes
from rayobjects.testing import LocalHost

if TYPE_CHECKING:
    from decimal import Decimal

APPLICATION = """
import enum
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Literal, NamedTuple, NotRequired, Optional, TypedDict

from pydantic import BaseModel, Field

import rayobjects as ro


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Base:
    sku: str
    tags: list[str] = field(default_factory=list)


@dataclass
class Item(Base):
    amount: int = 1
    _: KW_ONLY
    colour: Colour = Colour.RED


class Part(TypedDict):
    x: int


class Whole(Part, total=False):
    parts: list[Part]
    also: NotRequired[Part]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Model(BaseModel):
    item: Item
    many: dict[str, Pair] = {}


class Node(TypedDict):
    next: "Node | None"


class Probe(ro.DurableObject):
    def item(self, v: Item) -> Item: return repr(v)
    def items(self, v: list[Item]) -> None: return repr(v)
    def maybe(self, v: Optional[Item] = None) -> None: return repr(v)
    def whole(self, v: Whole) -> Whole: return repr(v)
    def wholes(self, v: "dict[str, Whole | None]") -> Iterator[Part]: return repr(v)
    def pair(self, v: Pair) -> None: return repr(v)
    def model(self, v: Model) -> Model: return repr(v)
    def colour(self, v: Colour) -> None: return repr(v)
    def literal(self, v: Literal["a", "b"]) -> None: return repr(v)
    def bounded(self, v: Annotated[int, Field(ge=0)]) -> None: return repr(v)
"""

HOST = """
import json, sys
from pathlib import Path
from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import ClassInfo, ObjectClass, load_classes

cls = load_classes(Path(sys.argv[1]).read_bytes())["Probe"]
methods = ObjectClass(cls, ClassInfo("Probe")).methods
found = []
for method, body in json.load(sys.stdin):
    try:
        v = methods[method].parse_json(json.dumps({"v": body}).encode())["v"]
        found.append(repr(v))
    except InvalidCall as error:
        found.append(["refused", error.details["errors"][0]["field"]])
print(json.dumps(found))
"""

CASES: list[tuple[str, Any, Any]] = [
    ("item", {"sku": "a"}, "Item(sku='a', tags=[], amount=1, colour=<Colour.RED: 'red'>)"),
    ("item", {"sku": "a", "amount": "x"}, ["refused", "v.amount"]),
    ("item", "s", ["refused", "v"]),
    ("items", [{"sku": "a"}, {}], ["refused", "v.1.sku"]),
    ("maybe", None, "None"),
    ("maybe", {"sku": 1}, ["refused", "v.sku"]),
    ("whole", {"x": 1, "parts": [{"x": 2}]}, "{'x': 1, 'parts': [{'x': 2}]}"),
    ("whole", {"x": 1, "parts": [{"x": "q"}]}, ["refused", "v.parts.0.x"]),
    ("whole", {"parts": []}, ["refused", "v.x"]),
    ("wholes", {"k": {"x": 1}, "n": None}, "{'k': {'x': 1}, 'n': None}"),
    ("wholes", {"k": {"x": "q"}}, ["refused", "v.k.x"]),
    ("pair", {"left": 1}, "Pair(left=1, right='r')"),
    ("pair", ["x", "y"], ["refused", "v.0"]),
    (
        "model",
        {"item": {"sku": "a"}, "many": {"p": [1, "b"]}},
        "Model(item=Item(sku='a', tags=[], amount=1, colour=<Colour.RED: 'red'>), "
        "many={'p': Pair(left=1, right='b')})",
    ),
    ("model", {"item": {}}, ["refused", "v.item.sku"]),
    ("colour", "red", "<Colour.RED: 'red'>"),
    ("colour", "blue", ["refused", "v"]),
    ("literal", "c", ["refused", "v"]),
    ("bounded", -1, ["refused", "v"]),
]


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    (tmp_path / "types_of_the_user.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "types_of_the_user", raising=False)
    cls: type = importlib.import_module("types_of_the_user").Probe
    return cls


def test_they_are_checked_and_converted(
    probe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rayobjects"):
        info = describe(probe)
    assert not caplog.records
    assert info.methods["whole"].parameters["properties"]["v"] == {
        "$ref": "#/components/schemas/Probe.Whole"
    }
    blob = tmp_path / "blob"
    blob.write_bytes(pickle_classes([probe]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    answered = subprocess.run(
        [sys.executable, "-c", HOST, str(blob)],
        input=json.dumps([(method, body) for method, body, _ in CASES]),
        capture_output=True,
        text=True,
        cwd=elsewhere,
    )
    assert answered.returncode == 0, answered.stderr
    found = json.loads(answered.stdout)
    for (method, body, expected), got in zip(CASES, found, strict=True):
        assert got == expected, (method, body)


def test_whoever_deploys_is_told_what_is_not_checked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strange:
        pass

    class Odd(ro.DurableObject):
        def take(self, one: Strange, two: int) -> None: ...

    Odd.take.__annotations__.update(one=Strange, two=int)
    with caplog.at_level(logging.WARNING, "rayobjects"):
        describe(Odd)
    (record,) = caplog.records
    assert record.getMessage().startswith("Odd.take takes any one over HTTP")


def test_a_type_that_is_there_for_type_checkers_only(caplog: pytest.LogCaptureFixture) -> None:
    class Item(TypedDict):
        price: Decimal

    class Shop(ro.DurableObject):
        def add(self, item: Item) -> Item: ...

    Shop.add.__annotations__.update({"item": Item, "return": Item})
    with caplog.at_level(logging.WARNING, "rayobjects"):
        info = describe(Shop)
    assert info.methods["add"].parameters["properties"]["item"] == {"title": "Item"}
    assert "Shop.add takes any item over HTTP" in caplog.text
    assert "Decimal" in caplog.text


def test_a_stub_comes_from_python_only(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with LocalHost([Guest]) as host:
            guest, other = host.get(Guest, "a"), host.get(Guest, "b")
            assert await guest.meet.remote(other, [other]) == ["b", "b"]
            for arguments, field in (({"other": "b"}, "other"), ({"others": ["b"]}, "others.0")):
                with pytest.raises(ro.InvalidCall, match="take the object's name") as refused:
                    await host.post(guest, "meet", arguments)
                assert refused.value.status == 422
                assert field in refused.value.message

    with caplog.at_level(logging.WARNING, "rayobjects"):
        asyncio.run(main())
        parameters = describe(Guest).methods["meet"].parameters
    assert not caplog.records, "it is no mistake of the class"
    assert "take the object's name" in json.dumps(parameters)


class Guest(ro.DurableObject):
    def meet(self, other: ro.Stub | None = None, others: Sequence[ro.Stub] = ()) -> list[str]:
        return [each.id.name for each in (other, *others) if each is not None]
