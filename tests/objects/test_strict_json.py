"""JSON bodies that parsers take and that mean nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rayobjects as ro
from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import ObjectClass, describe
from rayobjects.objects.strict_json import mistake_in


class Sensor(ro.DurableObject):
    def put(self, value: float = 0.0, extra: Any = None) -> None:
        pass


SENSOR = ObjectClass(Sensor, describe(Sensor))


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ('{"value": NaN}', "value", "NaN is no JSON number"),
        ('{"value": Infinity}', "value", "Infinity is no JSON number"),
        ('{"value": 1e400}', "value", "1e400 is no JSON number"),
        ('{"extra": {"a": [1, -Infinity]}}', "extra.a.1", "-Infinity is no"),
        ('{"value": 1, "value": 2}', "value", "twice"),
        ('{"value": 1, "valu\\u0065": 2}', "value", "twice"),
        ('{"extra": [{"a:b": {"c": 1, "c": 1}}]}', "extra.0.a:b.c", "twice"),
    ],
)
def test_the_place_is_named(body: str, field: str, message: str) -> None:
    with pytest.raises(InvalidCall, match=message) as caught:
        SENSOR.methods["put"].parse_json(body.encode())
    assert caught.value.status == 422
    (error,) = caught.value.details["errors"]
    assert error["field"] == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"extra": "NaN: Infinity"}',
        b'{"value": 1, "extra": {"value": 1}}',
        b'{"extra": ":::"}',
        b'{"extra": 123456789012345678901234567890}',
    ],
)
def test_what_only_looks_like_it(body: bytes) -> None:
    SENSOR.methods["put"].parse_json(body)


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_json_passes(value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    assert mistake_in(body, len(value)) is None
