"""What JSON parsers let through and JSON does not mean: NaN, Infinity, numbers too large for a
float, and keys that an object has twice.

A value that is no number comes back as null, and of a key's two values one is lost without a word;
both are a mistake of whoever sent them. So arguments that came in over HTTP are refused with the
place. The check runs after a body has been parsed, and is quick where nothing is wrong: a second,
stricter parser for the numbers, and for the keys the count of colons, of which every key has one.
Only a body that does not pass so is walked.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode


class _NotANumber:
    """Stands for a number that is none, as it was written."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Pairs(list[tuple[str, Any]]):
    """An object with all of its keys."""


def mistake_in(body: bytes, keys: int) -> tuple[str, str] | None:
    """What is wrong with a body: (field, message), the field as `a.b.0`; None if nothing is.

    Args:
        body: a JSON object that a lenient parser has taken.
        keys: how many keys of the outermost object that parser found.
    """
    try:
        _decode(body)
    except (msgspec.DecodeError, RecursionError):
        pass
    else:
        if body.count(b":") == keys:
            return None
    try:
        value = json.loads(
            body,
            object_pairs_hook=_Pairs,
            parse_constant=_NotANumber,
            parse_float=_as_float,
        )
    except (ValueError, RecursionError):  # stricter in yet another way: the first parser decides
        return None
    return _walk(value, "")


def _as_float(text: str) -> Any:
    value = float(text)
    return value if math.isfinite(value) else _NotANumber(text)


def _walk(value: Any, path: str) -> tuple[str, str] | None:
    if isinstance(value, _NotANumber):
        shown = value.text if len(value.text) <= 40 else value.text[:40] + "…"
        return path, f"{shown} is no JSON number: send null, or a string"
    if isinstance(value, _Pairs):
        seen = set()
        for key, item in value:
            field = f"{path}.{key}" if path else key
            if key in seen:
                return field, "this key is there twice: send it once"
            seen.add(key)
            found = _walk(item, field)
            if found is not None:
                return found
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found = _walk(item, f"{path}.{index}" if path else str(index))
            if found is not None:
                return found
    return None
