"""How values look in JSON: the table of docs/serving.md."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pydantic
import pytest

import rayobjects as ro
from rayobjects.testing import LocalHost


class Note(pydantic.BaseModel):
    text: str
    at: datetime | None = None


@dataclass
class Point:
    x: int


class Forms(ro.DurableObject):
    def moment(self, it: datetime) -> datetime:
        return it

    def money(self, it: Decimal) -> Decimal:
        return it

    def number(self, it: float) -> bool:
        return it != it

    def note(self, it: Note) -> Note:
        return it

    def point(self, it: Point) -> Point:
        return it

    def more(self, a: int, **kwargs: int) -> dict[str, int]:
        return {"a": a, **kwargs}

    def many(self, *args: int) -> list[int]:
        return list(args)

    def anything(self, it) -> Any:  # type: ignore[no-untyped-def]
        return it

    def results(self) -> dict[str, Any]:
        return {
            "nan": [float("nan"), float("inf")],
            "date": date(2026, 1, 1),
            "span": timedelta(seconds=90),
            "id": uuid.UUID(int=5),
            "set": {1},
            "pair": (1, 2),
            "keys": {1: "a"},
        }

    def without(self) -> object:
        return object()

    @property
    def size(self) -> int:
        return 1

    @staticmethod
    def fixed() -> int:
        return 1

    @classmethod
    def made(cls) -> int:
        return 1


@pytest.mark.parametrize(
    ("method", "given", "result"),
    [
        ("moment", "2026-01-01T12:00:00Z", "2026-01-01T12:00:00Z"),
        ("moment", "2026-01-01T12:00:00", "2026-01-01T12:00:00"),
        ("moment", 1767225600, "2026-01-01T00:00:00Z"),
        ("money", "1.10", "1.10"),
        ("money", 1.5, "1.5"),
        ("number", "NaN", True),
        ("note", {"text": "a", "other": 1}, {"text": "a", "at": None}),
        ("point", {"x": 1}, {"x": 1}),
        ("anything", {"x": [1]}, {"x": [1]}),
    ],
)
def test_arguments_and_results(method: str, given: Any, result: Any) -> None:
    async def main() -> None:
        async with LocalHost([Forms]) as host:
            assert await host.post(host.get(Forms, "a"), method, {"it": given}) == result

    asyncio.run(main())


def test_results_of_other_types() -> None:
    async def main() -> None:
        async with LocalHost([Forms]) as host:
            forms = host.get(Forms, "a")
            assert await host.post(forms, "results") == {
                "nan": [None, None],
                "date": "2026-01-01",
                "span": "PT90S",
                "id": "00000000-0000-0000-0000-000000000005",
                "set": [1],
                "pair": [1, 2],
                "keys": {"1": "a"},
            }
            with pytest.raises(ro.InvalidCall, match="no JSON form") as raised:
                await host.post(forms, "without")
            assert raised.value.status == 500

    asyncio.run(main())


def test_further_arguments() -> None:
    async def main() -> None:
        async with LocalHost([Forms]) as host:
            forms = host.get(Forms, "a")
            assert await host.post(forms, "more", {"a": 1, "b": 2}) == {"a": 1, "b": 2}
            with pytest.raises(ro.InvalidCall, match="b: Input should be a valid integer"):
                await host.post(forms, "more", {"a": 1, "b": "x"})
            with pytest.raises(ro.InvalidCall, match="there is no such argument"):
                await host.post(forms, "many", {"args": [1]})

    asyncio.run(main())


@pytest.mark.parametrize("name", ["size", "fixed", "made", "on_start"])
def test_what_is_no_remote_method(name: str) -> None:
    async def main() -> None:
        async with LocalHost([Forms]) as host:
            forms = host.get(Forms, "a")
            with pytest.raises(ro.InvalidCall, match=f"has no method '{name}'"):
                await getattr(forms, name).remote()
            with pytest.raises(ro.InvalidCall, match=f"has no method '{name}'"):
                await host.post(forms, name)

    asyncio.run(main())
