"""What Python code hands around and JSON cannot: stubs.

Where a method takes one it is called from Python. Over HTTP, where it would name any object for
whoever calls, the argument is refused with an error that says what to take instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from rayobjects.messages import STUB_NO_JSON

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

TAKE_NAME = "a stub cannot come over HTTP: let the method take the object's name"


class PythonOnly:
    """A base of stubs: tells pydantic, and what encodes results, that there is no JSON of them."""

    __slots__ = ()

    rayobjects_no_json = STUB_NO_JSON

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema  # where classes are deployed, and not where they call

        return core_schema.no_info_plain_validator_function(_refuse)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"not": {}, "description": TAKE_NAME}


def _refuse(value: Any) -> NoReturn:
    raise ValueError(TAKE_NAME)
