"""What callers learn of a class, and how JSON arguments are checked."""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import pytest
from pydantic import BaseModel, Field, field_validator

from rayobjects.errors import InvalidCall, MethodError
from rayobjects.objects.catalog import ClassInfo, ObjectClass, describe
from rayobjects.objects.fields import durable
from rayobjects.objects.marks import internal
from rayobjects.objects.model import DurableObject

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


class Message(BaseModel):
    text: str
    at: datetime | None = None


@dataclass
class Point:
    x: int
    y: int = 0


class Strange:
    """A class that pydantic knows nothing of."""


class Fussy(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def _check(cls, n: int) -> int:
        return 1 // n


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Base(DurableObject):
    def inherited(self) -> str:
        return "base"

    def replaced(self) -> None: ...


class Room(Base, hosting="dedicated", ray_options={"num_cpus": 2}):
    """A chat room.

    With people in it.
    """

    count: int = durable(0)
    replaced = None  # type: ignore[assignment]

    def increment(self, by: int = 1) -> int:
        """Adds to the count."""
        return self.count + by

    def post(self, message: Message, tags: list[str], to: Literal["all", "me"] = "all") -> Message:
        return message

    def place(self, point: Point, *, scale: Annotated[float, Field(gt=0)] = 1.0) -> Point:
        return point

    def at(self, when: datetime, data: bytes = b"") -> datetime:
        return when

    def loose(self, a, b=None, *rest, **options):  # type: ignore[no-untyped-def]
        return (a, b, rest, options)

    def counts(self, **numbers: int) -> dict[str, int]:
        return numbers

    def positional(self, a: int, b: int = 2, /, c: int = 3) -> list[int]:
        return [a, b, c]

    def strange(self, a: Strange, b: Missing, c: Callable[[], int]) -> Missing:
        return a

    def fussy(self, value: Fussy) -> None: ...

    def model_json(self, schema: int, json: int, copy: int, model_x: int) -> int:
        return schema + json + copy + model_x

    def list(self, items: list[int]) -> list[int]:
        return items

    @internal
    def secret(self) -> None: ...

    @traced
    async def wrapped(self, n: int) -> int:
        return n

    async def stream(self) -> AsyncIterator[int]:
        yield 1

    def _hidden(self) -> None: ...

    @staticmethod
    def static() -> None: ...

    def on_message(self, ws: Any, data: Any) -> None: ...


INFO = describe(Room)
ROOM = ObjectClass(Room, INFO)


def parse(method: str, arguments: Any) -> dict[str, Any]:
    body = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
    return ROOM.methods[method].parse_json(body)


def test_the_class() -> None:
    assert INFO.name == "Room"
    assert INFO.doc == "A chat room.\n\nWith people in it."
    assert (INFO.hosting, INFO.ray_options) == ("dedicated", {"num_cpus": 2})
    assert INFO.sockets
    assert not INFO.requests
    assert re.fullmatch("[0-9a-f]{64}", INFO.digest)
    assert INFO.version == 0
    names = set(INFO.methods)
    assert {"increment", "inherited", "secret", "stream"} <= names
    assert names.isdisjoint({"replaced", "_hidden", "static", "on_message", "count"})
    assert INFO.methods["secret"].internal
    assert INFO.methods["stream"].stream
    assert not INFO.methods["increment"].stream
    assert INFO.methods["increment"].doc == "Adds to the count."
    assert ROOM.hook("on_message") is Room.on_message
    assert ROOM.hook("on_start") is None
    assert set(ROOM.fields) == {"count"}


def test_the_description_is_plain_data() -> None:
    for code in (msgspec.json, msgspec.msgpack):
        assert code.decode(code.encode(INFO), type=ClassInfo) == INFO

    class Odd(DurableObject, ray_options={"runtime_env": object()}):
        pass

    with pytest.raises(InvalidCall, match="plain data"):
        describe(Odd)


def test_schemas() -> None:
    assert INFO.methods["increment"].parameters == {
        "type": "object",
        "properties": {"by": {"type": "integer", "title": "By", "default": 1}},
        "additionalProperties": False,
    }
    assert INFO.methods["increment"].returns == {"type": "integer"}
    post = INFO.methods["post"]
    assert post.parameters["required"] == ["message", "tags"]
    assert post.parameters["properties"]["message"]["$ref"].startswith(
        "#/components/schemas/Room.Message"
    )
    assert post.returns is not None
    for reference in re.findall(r'"\$ref":"([^"]*)"', msgspec.json.encode(INFO).decode()):
        assert reference.removeprefix("#/components/schemas/") in INFO.definitions
    assert not any("arguments" in name for name in INFO.definitions)
    assert INFO.methods["counts"].parameters["additionalProperties"] == {"type": "integer"}
    assert INFO.methods["loose"].parameters["required"] == ["a"]
    assert INFO.methods["loose"].returns is None
    assert INFO.methods["strange"].parameters["properties"]["b"] == {"title": "B"}
    assert INFO.methods["fussy"].returns == {"type": "null"}
    assert INFO.methods["list"].returns == {"type": "array", "items": {"type": "integer"}}


def test_arguments_arrive_as_what_the_signature_says() -> None:
    assert parse("increment", b"") == {}
    assert parse("increment", {"by": 3}) == {"by": 3}
    posted = parse("post", {"message": {"text": "x"}, "tags": ["a"]})
    assert posted == {"message": Message(text="x"), "tags": ["a"]}
    assert parse("place", {"point": {"x": 1}}) == {"point": Point(1)}
    assert parse("at", {"when": "2026-01-02T03:04:05Z", "data": "AP8="})["data"] == b"\x00\xff"
    assert isinstance(parse("at", {"when": "2026-01-02"})["when"], datetime)
    assert parse("loose", {"a": [1], "z": None}) == {"a": [1], "z": None}
    assert parse("counts", {"x": 1}) == {"x": 1}
    assert parse("strange", {"a": 1, "b": [2], "c": {}}) == {"a": 1, "b": [2], "c": {}}
    assert parse("model_json", {"schema": 1, "json": 2, "copy": 3, "model_x": 4})["json"] == 2
    assert parse("wrapped", {"n": 1}) == {"n": 1}
    assert parse("list", {"items": [1]}) == {"items": [1]}


def test_positional_only_parameters_go_by_name_too() -> None:
    method = ROOM.methods["positional"]
    run = functools.partial(method.function, object())
    assert run(**parse("positional", {"a": 1})) == [1, 2, 3]
    assert run(**parse("positional", {"a": 1, "b": 5, "c": 6})) == [1, 5, 6]
    assert run(1, c=9) == [1, 2, 9]
    with pytest.raises(InvalidCall, match="a: this argument is required"):
        parse("positional", {"b": 1})


@pytest.mark.parametrize(
    ("method", "body", "message", "field"),
    [
        ("increment", {"by": "x"}, "wrong arguments for Room.increment: by: .*integer", "by"),
        ("increment", {"zz": 1}, "zz: there is no such argument; there are: by", "zz"),
        ("post", {"tags": []}, "message: this argument is required", "message"),
        ("post", {"message": {"text": 1}, "tags": []}, "message.text: .*string", "message.text"),
        ("post", {"message": {"text": ""}, "tags": [1]}, "tags.0", "tags.0"),
        ("place", {"point": {"x": 1}, "scale": 0}, "scale: .*greater", "scale"),
        ("counts", {"x": "y"}, "x: ", "x"),
        ("inherited", {"x": 1}, "there are: none", "x"),
        ("increment", b"[1]", "must be a JSON object", ""),
        ("increment", b"3", "must be a JSON object", ""),
    ],
)
def test_wrong_arguments(method: str, body: Any, message: str, field: str) -> None:
    with pytest.raises(InvalidCall, match=message) as caught:
        parse(method, body)
    assert caught.value.status == 422
    assert caught.value.details["errors"][0]["field"] == field
    assert caught.value.details["errors"][0]["message"]


@pytest.mark.parametrize("body", [b"{", b"by=1", b"\xff", b'{"by": 1} x', b"[" * 100_000])
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(InvalidCall, match=r"^body is not JSON: ") as caught:
        parse("increment", body)
    assert caught.value.status == 422


def test_many_wrong_fields_make_a_short_error() -> None:
    with pytest.raises(InvalidCall, match=r"\(and 997 more\)") as caught:
        parse("list", {"items": ["x"] * 1000})
    assert len(caught.value.details["errors"]) == 20


def test_a_check_of_the_users_own_that_raises() -> None:
    with pytest.raises(MethodError, match="ZeroDivisionError"):
        parse("fussy", {"value": {"n": 0}})


def test_functions_around_coroutine_functions_are_async() -> None:
    assert ROOM.methods["wrapped"].is_async
    assert not ROOM.methods["increment"].is_async


@pytest.mark.parametrize("thing", [DurableObject, Message, 3])
def test_only_classes_of_durable_objects_are_described(thing: Any) -> None:
    with pytest.raises(InvalidCall, match="no class of durable objects"):
        describe(thing)


def test_an_abstract_class_is_not_described() -> None:
    class Shape(DurableObject, ABC):
        @abstractmethod
        def area(self) -> float: ...

    class Square(Shape):
        def area(self) -> float:
            return 1.0

    with pytest.raises(InvalidCall, match=r"Shape is abstract, .* a subclass that defines area"):
        describe(Shape)
    assert set(describe(Square).methods) == {"area"}
