"""Raw HTTP requests and responses, for `on_request`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from rayobjects.errors import InvalidCall
from rayobjects.messages import HttpRequest, HttpResponse, encode_json

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\r\n\0]*")


class Request:
    """One HTTP request.

    Attributes:
        method: "GET", "POST", …
        path: what follows `/fetch` in the address.
        query_string: what follows the question mark, as it came.
        query: its parameters; of a repeated one the last.
        headers: names in lower case; repeated ones joined by commas.
        body: the bytes.
    """

    __slots__ = ("body", "headers", "method", "path", "query", "query_string")

    def __init__(
        self,
        method: str,
        path: str,
        query_string: str = "",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.query = parse_query(query_string)
        self.headers = join_headers(headers)
        self.body = body

    @classmethod
    def from_message(cls, message: HttpRequest) -> Request:
        """The request that a gateway sent."""
        return cls(message.method, message.path, message.query, message.headers, message.body)

    def text(self) -> str:
        """The body as text.

        Raises:
            InvalidCall: it is not UTF-8.
        """
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise InvalidCall(f"the request's body is not UTF-8: {error}") from error

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            InvalidCall: it is not JSON.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise InvalidCall(f"the request's body is not JSON: {error}") from error

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"


class Response:
    """The answer to a `Request`.

    Args:
        body: bytes, text, or anything that has a JSON form; None for no body (status 204, if none
            is given).
        status: 100 to 599.
        headers: names to values, or pairs where a name comes twice.
        media_type: replaces what follows from the body's type.

    Raises:
        TypeError: the body has no JSON form.
        ValueError: the status or a header may not be sent.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        body: Any = b"",
        status: int | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        media_type: str | None = None,
    ) -> None:
        if status is None:
            status = 204 if body is None else 200
        if type(status) is not int or not 100 <= status <= 599:
            raise ValueError(f"an HTTP status is 100 to 599, not {status!r}")
        self.status = status
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        self.headers = [(_name(name), _value(value)) for name, value in pairs]
        own_type: str | None
        if body is None:
            self.body, own_type = b"", None
        elif isinstance(body, bytes | bytearray | memoryview):
            self.body, own_type = bytes(body), "application/octet-stream"
        elif isinstance(body, str):
            self.body, own_type = body.encode(), "text/plain; charset=utf-8"
        else:
            self.body, own_type = encode_json(body), "application/json"
        given = any(name == "content-type" for name, _ in self.headers)
        content_type = media_type or (own_type if self.body and not given else None)
        if content_type is not None:
            self.headers = [pair for pair in self.headers if pair[0] != "content-type"]
            self.headers.append(("content-type", _value(content_type)))

    def to_message(self) -> HttpResponse:
        """The response as it goes to the gateway."""
        return HttpResponse(self.status, self.headers, self.body)

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


def parse_query(query_string: str) -> dict[str, str]:
    """The parameters of a query string; of a repeated one the last."""
    return dict(parse_qsl(query_string, keep_blank_values=True))


def join_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their name in lower case; repeated ones joined by commas."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        seen = headers.get(name)
        headers[name] = value if seen is None else f"{seen}, {value}"
    return headers


def _name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of an HTTP header")
    return name.lower()


def _value(value: str) -> str:
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"{value!r} cannot be the value of an HTTP header")
    return value
