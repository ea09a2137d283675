"""What the gateway reads of an HTTP request, and the raw requests to `on_request`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rayobjects.errors import InvalidCall, RayObjectsError, info_from_wire
from rayobjects.limits import CALL_BYTES_MAX
from rayobjects.messages import OK, REQUEST, HttpRequest, decode_response, encode
from rayobjects.objects import carried
from rayobjects.serve.links import Router
from rayobjects.serve.paths import Target
from rayobjects.serve.problems import Headers, problem_of_info

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that belong to one connection and not to the request (RFC 9110, section 7.6.1)."""


_WAIT = re.compile(rb"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9}(?:\.\d{1,9})?)")


class Request:
    """The few headers that the gateway looks at, picked in one pass over them.

    Attributes:
        idempotency_key: None if there is none.
        wait_s: how long the client waits (Prefer: wait=5, RFC 7240); 0 if it does not say.
        fetch_site, fetch_mode: what a browser says of the page that asks (Sec-Fetch-*).
        carrying: the headers that its calls carry along (`objects.carried`); None if there is none.
    """

    __slots__ = (
        "accept",
        "carrying",
        "content_length",
        "content_type",
        "fetch_mode",
        "fetch_site",
        "host",
        "idempotency_key",
        "origin",
        "wait_s",
    )

    accept: bytes
    carrying: dict[bytes, bytes] | None
    content_length: bytes
    content_type: bytes
    fetch_mode: bytes
    fetch_site: bytes
    host: str
    idempotency_key: bytes | None
    origin: str
    wait_s: float

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Request:
        """Reads them from an ASGI scope, whose header names are lower case."""
        request = cls()
        request.accept = request.content_length = request.content_type = b""
        request.fetch_mode = request.fetch_site = b""
        request.idempotency_key = request.carrying = None
        request.wait_s = 0.0
        request.host = request.origin = ""
        for key, value in scope["headers"]:
            if key == b"accept":
                request.accept = value if not request.accept else request.accept + b"," + value
            elif key == b"content-type":
                request.content_type = value
            elif key == b"content-length":
                request.content_length = value
            elif key == b"host":
                request.host = value.decode("latin-1")
            elif key == b"idempotency-key":
                request.idempotency_key = value
            elif key == b"prefer":
                found = _WAIT.search(value)
                request.wait_s = float(found.group(1)) if found is not None else request.wait_s
            elif key == b"origin":
                request.origin = value.decode("latin-1")
            elif key == b"sec-fetch-site":
                request.fetch_site = value
            elif key == b"sec-fetch-mode":
                request.fetch_mode = value
            elif key in carried.HEADERS:
                request.carrying = {**(request.carrying or {}), key: value}
        return request

    def context(self) -> dict[str, str] | None:
        """What its calls carry along.

        Raises:
            InvalidCall: 431 if it is too large.
        """
        return carried.from_headers(self.carrying) if self.carrying is not None else None


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], content_length: bytes
) -> bytes:
    """Reads a request's body.

    Raises:
        InvalidCall: 413 if it has more than CALL_BYTES_MAX bytes; 400 if the client went away.
    """
    if content_length.isdigit() and (
        len(content_length) > 18 or int(content_length) > CALL_BYTES_MAX
    ):
        raise _too_large()
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        chunks = [body]
        size = len(body)
        while message.get("more_body"):
            message = await receive()
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > CALL_BYTES_MAX:
                raise _too_large()
            chunks.append(chunk)
        body = b"".join(chunks)
    if message["type"] == "http.disconnect":
        raise InvalidCall("the client went away before its request was complete", status=400)
    if len(body) > CALL_BYTES_MAX:
        raise _too_large()
    return body


def _too_large() -> InvalidCall:
    return InvalidCall(
        f"the body has more than {CALL_BYTES_MAX:,} bytes: store large data elsewhere and pass its "
        "address",
        status=413,
    )


async def forward(
    router: Router,
    target: Target,
    request: Request,
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    context: dict[str, str] | None,
) -> tuple[int, Headers, bytes]:
    """Hands the raw request to the object's `on_request` and returns what it answers.

    Raises:
        RayObjectsError: the object could not be reached.
    """
    body = await read_body(receive, request.content_length)
    raw = HttpRequest(
        method=scope["method"],
        path=target.path or "/",
        query=scope["query_string"].decode("latin-1"),
        headers=text_headers(scope),
        body=body,
    )
    future = router.call(
        target.class_name,
        target.name or "",
        "on_request",
        REQUEST,
        encode(raw),
        context=context,
    )
    reply = await asyncio.shield(future)
    if reply.status != OK:
        return problem_of_info(info_from_wire(reply.body))
    response = decode_response(reply.body)
    headers = [
        _header(key.lower(), value)
        for key, value in response.headers
        if key.lower() not in HOP_BY_HOP and key.lower() != "content-length"
    ]
    headers.append((b"content-length", b"%d" % len(response.body)))
    return response.status, headers, response.body


def _header(key: str, value: str) -> tuple[bytes, bytes]:
    """Encodes one header of an object's answer; a line break in it would end the header."""
    if not key.isascii() or any(character in key + value for character in "\r\n\0"):
        raise RayObjectsError(
            f"on_request answered with the header {key!r}, which cannot be sent: header names are "
            "ASCII, and neither name nor value has line breaks"
        )
    try:
        return key.encode(), value.encode("latin-1")
    except UnicodeEncodeError:
        return key.encode(), value.encode()


def text_headers(scope: MutableMapping[str, Any]) -> list[tuple[str, str]]:
    """The request's headers as text, without those that belong to the connection."""
    headers = []
    for key, value in scope["headers"]:
        name = key.decode("latin-1")
        if name not in HOP_BY_HOP:
            headers.append((name, value.decode("latin-1")))
    return headers
