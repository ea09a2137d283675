"""The OpenAPI document of what is deployed.

Built from the catalog's JSON schemas when the catalog has changed, not per request. Each class is
a tag; its methods, its WebSocket, its raw requests and its listing are operations. Schemas that
two classes define differently under one name get the class's name in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from rayobjects.limits import IDEMPOTENCY_KEY_BYTES_MAX, OBJECT_NAME_BYTES_MAX, PAGE_KEYS_MAX
from rayobjects.serve.links import JsonSchema, Method, ObjectClass
from rayobjects.serve.problems import SCHEMA as PROBLEM

REFERENCE = "#/components/schemas/"

_DESCRIPTION = """\
Durable objects over HTTP. An object is there as soon as its name is used: the first call makes it.
A method is called with a JSON object of its keyword arguments.

A call with an `Idempotency-Key` is applied exactly once, however often it is sent: repeat it with
the same key when its outcome is not known (503, 504, a lost connection).

`Prefer: wait=5` ends a call that takes longer than so many seconds: it is rolled back, and the
answer is 504.
"""


def document(classes: Iterable[ObjectClass], *, title: str = "rayobjects") -> dict[str, Any]:
    """The OpenAPI 3.1 document of these classes, as JSON types."""
    ordered = sorted(classes, key=lambda info: info.name)
    schemas: dict[str, JsonSchema] = {"Problem": PROBLEM}
    paths: dict[str, Any] = {}
    for info in ordered:
        names = _claim_names(info, schemas)
        for name, schema in info.definitions.items():
            schemas[names[name]] = _rename(schema, names)
        paths.update(_paths(info, names))
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": _DESCRIPTION},
        "tags": [{"name": info.name, "description": info.doc} for info in ordered],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _claim_names(info: ObjectClass, schemas: Mapping[str, JsonSchema]) -> dict[str, str]:
    """Under which name each of the class's definitions goes into the document."""
    names = {}
    for name, schema in info.definitions.items():
        taken = name in schemas and schemas[name] != schema
        names[name] = f"{info.name}.{name}" if taken else name
    return names


def _rename(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema with its references pointing at the document's names."""
    if isinstance(schema, dict):
        renamed = {key: _rename(value, names) for key, value in schema.items()}
        reference = renamed.get("$ref")
        if isinstance(reference, str) and reference.startswith(REFERENCE):
            name = reference[len(REFERENCE) :]
            renamed["$ref"] = REFERENCE + names.get(name, name)
        return renamed
    if isinstance(schema, list):
        return [_rename(value, names) for value in schema]
    return schema


def _paths(info: ObjectClass, names: Mapping[str, str]) -> dict[str, Any]:
    root = f"/objects/{quote(info.name)}"
    paths: dict[str, Any] = {}
    for method in info.methods.values():
        if not method.internal:
            path = f"{root}/{{name}}/{method.name}"
            paths[path] = {"post": _method_operation(info, method, names)}
    if info.sockets:
        paths[f"{root}/{{name}}"] = {"get": _socket_operation(info)}
    if info.requests:
        operation = _request_operation(info)
        paths[f"{root}/{{name}}/fetch/{{path}}"] = {
            verb: {**operation, "operationId": f"{info.name}.fetch.{verb}"}
            for verb in ("get", "post", "put", "patch", "delete")
        }
    paths[root] = {"get": _list_operation(info)}
    return paths


def _method_operation(
    info: ObjectClass, method: Method, names: Mapping[str, str]
) -> dict[str, Any]:
    summary, _, description = method.doc.strip().partition("\n")
    parameters = _rename(method.parameters, names)
    returns: Any = {} if method.returns is None else _rename(method.returns, names)
    content = {"application/json": {"schema": returns}}
    if method.stream:
        content = {
            "application/json": {"schema": {"type": "array", "items": returns}},
            "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}},
        }
    operation: dict[str, Any] = {
        "tags": [info.name],
        "operationId": f"{info.name}.{method.name}",
        "summary": summary or method.name,
        "parameters": [_NAME, _IDEMPOTENCY_KEY],
        "responses": {
            "200": {
                "description": "What the method yielded."
                if method.stream
                else "What the method returned.",
                "content": content,
            },
            "default": _PROBLEM_RESPONSE,
        },
    }
    if description.strip():
        operation["description"] = description.strip()
    if parameters.get("properties") or parameters.get("additionalProperties"):
        operation["requestBody"] = {
            "required": bool(parameters.get("required")),
            "content": {"application/json": {"schema": parameters}},
        }
    return operation


def _socket_operation(info: ObjectClass) -> dict[str, Any]:
    return {
        "tags": [info.name],
        "operationId": f"{info.name}.socket",
        "summary": "Opens a WebSocket to the object",
        "description": "Use a WebSocket client (`new WebSocket(…)`); a plain request gets 426.",
        "parameters": [_NAME],
        "responses": {
            "101": {"description": "The socket is open."},
            "default": _PROBLEM_RESPONSE,
        },
    }


def _request_operation(info: ObjectClass) -> dict[str, Any]:
    path = {"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "tags": [info.name],
        "summary": "Hands the raw request to the object's on_request",
        "parameters": [_NAME, path],
        "responses": {
            "200": {"description": "What the object answered."},
            "default": _PROBLEM_RESPONSE,
        },
    }


def _list_operation(info: ObjectClass) -> dict[str, Any]:
    return {
        "tags": [info.name],
        "operationId": f"{info.name}.list",
        "summary": f"Lists the names of {info.name} objects",
        "parameters": [
            {
                "name": "prefix",
                "in": "query",
                "description": "Only names that begin with this.",
                "schema": {"type": "string", "default": ""},
            },
            {
                "name": "after",
                "in": "query",
                "description": "Only names after this one: the `next` of the page before.",
                "schema": {"type": "string", "default": ""},
            },
            {
                "name": "limit",
                "in": "query",
                "description": "Names on the page.",
                "schema": {
                    "type": "integer",
                    "default": 100,
                    "minimum": 1,
                    "maximum": PAGE_KEYS_MAX,
                },
            },
        ],
        "responses": {
            "200": {
                "description": "A page of names.",
                "content": {"application/json": {"schema": _LISTING}},
            },
            "default": _PROBLEM_RESPONSE,
        },
    }


_EVENTS = """\
Server-sent events, as the items come: `data:` has an item as JSON. The last event is `end`, or
`error` with a problem as its data."""

_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": f"The object's name: up to {OBJECT_NAME_BYTES_MAX:,} bytes of UTF-8.",
    "schema": {"type": "string", "minLength": 1},
}

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The call's id: a repetition with the same key is not applied again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES_MAX},
}

_PROBLEM_RESPONSE = {
    "description": "A problem, with what to do about it.",
    "content": {"application/problem+json": {"schema": {"$ref": f"{REFERENCE}Problem"}}},
}

_LISTING = {
    "type": "object",
    "required": ["names", "next"],
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}},
        "next": {
            "type": ["string", "null"],
            "description": "Pass it as `after` for the next page; null on the last.",
        },
    },
}
