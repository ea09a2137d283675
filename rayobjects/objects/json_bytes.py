"""Bytes in JSON: base64, in arguments as in results, and the schemas say so.

Results are encoded by msgspec, which makes base64 of the bytes in plain data, dataclasses and typed
dictionaries; pydantic would take them as UTF-8 text. So a validator is built here from pydantic's
core schema with another setting. What is pydantic's own, a model or one of its dataclasses, is left
alone with all that is in it: it has a validator already, and its config says how it takes bytes.
"""

from __future__ import annotations

from typing import Any

from pydantic import EncodedBytes
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, SchemaValidator, core_schema


def validator_of(schema: CoreSchema) -> SchemaValidator:
    """A validator that takes bytes as base64."""
    return SchemaValidator(_with_base64(schema))


class JsonSchemas(GenerateJsonSchema):
    """Makes JSON schemas that say base64 where it is."""

    _in_model = False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        before, self._in_model = self._in_model, True
        try:
            return super().model_schema(schema)
        finally:
            self._in_model = before

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        before, self._in_model = self._in_model, self._in_model or _is_pydantics(schema)
        try:
            return super().dataclass_schema(schema)
        finally:
            self._in_model = before

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        if self._in_model:
            return super().bytes_schema(schema)
        # Without the bounds of a length, which are those of the bytes and not of the text.
        return {"type": "string", "contentEncoding": "base64"}


_DATA = frozenset({"cls", "default", "expected", "metadata", "serialization"})
"""Keys under which there are no schemas of what is validated."""


def _with_base64(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(map(_with_base64, schema))
    kind = schema.get("type") if isinstance(schema, dict) else "model"
    if kind == "model" or (kind == "dataclass" and _is_pydantics(schema)):
        return schema
    if kind == "function-after" and _decodes(schema):
        return schema["schema"]  # pydantic's Base64Bytes: once is enough
    copy = {key: each if key in _DATA else _with_base64(each) for key, each in schema.items()}
    if kind in ("dataclass", "typed-dict"):
        copy["config"] = {**schema.get("config", {}), "val_json_bytes": "base64"}
    return copy


def _is_pydantics(schema: Any) -> bool:
    return "__pydantic_validator__" in vars(schema["cls"])


def _decodes(schema: Any) -> bool:
    owner = getattr(schema["function"]["function"], "__self__", None)
    return isinstance(owner, EncodedBytes) and schema["schema"]["type"] == "bytes"
