"""Errors as HTTP answers: `application/problem+json`, RFC 9457.

The status is the error's own (the table of `rayobjects.errors`); `type` is a URN that names the
kind, `detail` the message that says what to do, `errors` the fields that were wrong. A method's
traceback stays in the server's log: it may hold what a client must not see.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec

from rayobjects.errors import ErrorInfo, RayObjectsError

RETRY_AFTER_S = 1
"""What 429 and 503 ask a client to wait. A host that died is back after about a second."""

CONTENT_TYPE = b"application/problem+json"

Headers = list[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder().encode

SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong and what to do (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:rayobjects:problem:invalid-call"]},
        "title": {"type": "string", "examples": ["Invalid call"]},
        "status": {"type": "integer", "examples": [422]},
        "detail": {"type": "string"},
        "exception": {
            "type": "string",
            "description": "The type's name of the exception that the method raised.",
        },
        "errors": {
            "type": "array",
            "description": "The fields that were wrong.",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
"""The JSON schema of a problem, for the OpenAPI document."""


def problem_of_error(error: RayObjectsError) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error that was raised here."""
    return _problem(type(error).__name__, error.status, error.message, error.details)


def problem_of_info(info: ErrorInfo) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error that came from a host."""
    return _problem(info.kind, info.status, info.message, info.details, info.cause_type)


def problem_of_status(status: int, detail: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body of a plain HTTP error (404, 405, 413, 415, 426)."""
    title = HTTPStatus(status).phrase
    return _problem(title, status, detail, {})


def _problem(
    kind: str, status: int, detail: str, details: dict[str, Any], exception: str = ""
) -> tuple[int, Headers, bytes]:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind)
    body: dict[str, Any] = {
        "type": f"urn:rayobjects:problem:{words.lower().replace(' ', '-')}",
        "title": words.capitalize(),
        "status": status,
        "detail": detail,
    }
    if exception:
        body["exception"] = exception
    if details.get("errors"):
        body["errors"] = details["errors"]
    encoded = _encode(body)
    headers = [
        (b"content-type", CONTENT_TYPE),
        (b"content-length", str(len(encoded)).encode()),
    ]
    if status in (429, 503):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return status, headers, encoded
