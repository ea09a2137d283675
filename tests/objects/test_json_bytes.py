"""Bytes over HTTP: base64 both ways, also inside of other types, and the schema says so."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pydantic
import pydantic.dataclasses
import pytest

import rayobjects as ro
from rayobjects.messages import encode_json
from rayobjects.objects.catalog import ObjectClass, describe
from rayobjects.testing import LocalHost

RAW = bytes(range(256))
TEXT = base64.b64encode(RAW).decode()
BASE64 = {"type": "string", "contentEncoding": "base64"}


@dataclass
class Part:
    data: bytes
    more: list[bytes] = field(default_factory=list)


@pydantic.dataclasses.dataclass(config={"val_json_bytes": "base64"})
class Checked:
    data: bytes


class Typed(TypedDict):
    data: bytes


class Note(pydantic.BaseModel):
    data: bytes


class Own(pydantic.BaseModel, val_json_bytes="base64", ser_json_bytes="base64"):
    data: bytes


class Box(ro.DurableObject):
    def plain(self, it: bytes) -> bytes:
        return it

    def inside(self, it: dict[str, list[bytes | None]]) -> dict[str, list[bytes | None]]:
        return it

    def part(self, it: Part) -> Part:
        return it

    def checked(self, it: Checked) -> Checked:
        return it

    def typed(self, it: Typed) -> Typed:
        return it

    def pydantics(self, it: list[pydantic.Base64Bytes]) -> list[pydantic.Base64Bytes]:
        return it

    def note(self, it: Note) -> Note:
        return it

    def own(self, it: Own) -> Own:
        return it

    def bounded(self, it: Annotated[bytes, pydantic.Field(max_length=2)] = b"\xff") -> None: ...


INFO = describe(Box)
BOX = ObjectClass(Box, INFO)


@pytest.mark.parametrize(
    ("method", "sent", "arrived"),
    [
        ("plain", TEXT, RAW),
        ("plain", "", b""),
        ("inside", {"a": [TEXT, None]}, {"a": [RAW, None]}),
        ("part", {"data": TEXT, "more": [TEXT]}, Part(RAW, [RAW])),
        ("checked", {"data": TEXT}, Checked(RAW)),
        ("typed", {"data": TEXT}, {"data": RAW}),
        ("pydantics", [TEXT], [RAW]),
        ("note", {"data": "ä"}, Note(data="ä".encode())),
        ("own", {"data": "_w=="}, Own(data=b"\xff")),
    ],
)
def test_they_come_back_as_they_were_sent(method: str, sent: Any, arrived: Any) -> None:
    (value,) = BOX.methods[method].parse_json(json.dumps({"it": sent}).encode()).values()
    assert value == arrived
    assert json.loads(encode_json(value)) == sent


def test_in_a_call() -> None:
    async def main() -> None:
        async with LocalHost([Box]) as host:
            box = host.get(Box, "one")
            assert await host.post(box, "plain", {"it": TEXT}) == TEXT
            with pytest.raises(ro.InvalidCall, match=r"typed: it\.data: .*valid base64"):
                await host.post(box, "typed", {"it": {"data": "ä"}})

    asyncio.run(main())


@pytest.mark.parametrize("text", ["ä", "a", "AP 8="])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ro.InvalidCall, match="it: Data should be valid base64") as caught:
        BOX.methods["plain"].parse_json(json.dumps({"it": text}).encode())
    assert caught.value.status == 422
    assert caught.value.details["errors"][0]["field"] == "it"


def test_the_schemas() -> None:
    for method in ("plain", "bounded"):
        it = INFO.methods[method].parameters["properties"]["it"]
        assert {key: it[key] for key in BASE64} == BASE64
        assert it.keys().isdisjoint({"format", "maxLength"})
    assert INFO.methods["bounded"].parameters["properties"]["it"]["default"] == "/w=="
    assert INFO.methods["plain"].returns == BASE64
    formats = {
        name.partition(".")[2]: each["properties"]["data"].get("format")
        for name, each in INFO.definitions.items()
    }
    assert formats == {
        **{"Part": None, "Typed": None},
        **{"Note": "binary", "Checked": "binary", "Own": "base64url"},
    }
