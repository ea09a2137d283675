"""Raw requests and responses."""

from __future__ import annotations

from typing import Any

import pytest

from rayobjects.errors import InvalidCall
from rayobjects.messages import HttpRequest, HttpResponse
from rayobjects.objects.http import Request, Response


def test_a_request() -> None:
    request = Request.from_message(
        HttpRequest("POST", "/a/b", "x=1&x=2&y=", [("X-A", "1"), ("x-a", "2")], b'{"a": 1}')
    )
    assert (request.method, request.path, request.query_string) == ("POST", "/a/b", "x=1&x=2&y=")
    assert request.query == {"x": "2", "y": ""}
    assert request.headers == {"x-a": "1, 2"}
    assert request.json() == {"a": 1}
    assert request.text() == '{"a": 1}'
    with pytest.raises(InvalidCall, match="not JSON"):
        Request("GET", "/").json()
    with pytest.raises(InvalidCall, match="not UTF-8"):
        Request("GET", "/", body=b"\xff").text()


@pytest.mark.parametrize(
    ("response", "status", "headers", "body"),
    [
        (Response(), 200, [], b""),
        (Response(None), 204, [], b""),
        (Response(b"x"), 200, [("content-type", "application/octet-stream")], b"x"),
        (Response("ä", 201), 201, [("content-type", "text/plain; charset=utf-8")], "ä".encode()),
        (Response({"a": [1]}), 200, [("content-type", "application/json")], b'{"a":[1]}'),
        (Response([]), 200, [("content-type", "application/json")], b"[]"),
        (Response("<p>", media_type="text/html"), 200, [("content-type", "text/html")], b"<p>"),
        (Response("x", headers={"Content-Type": "a/b"}), 200, [("content-type", "a/b")], b"x"),
        (Response(headers=[("A", "1"), ("A", "2")]), 200, [("a", "1"), ("a", "2")], b""),
    ],
)
def test_a_response(response: Response, status: int, headers: Any, body: bytes) -> None:
    assert response.to_message() == HttpResponse(status, headers, body)


def test_what_may_not_be_sent() -> None:
    with pytest.raises(ValueError, match="100 to 599"):
        Response(status=99)
    with pytest.raises(ValueError, match="value of an HTTP header"):
        Response(headers={"a": "b\r\nc: d"})
    with pytest.raises(ValueError, match="name of an HTTP header"):
        Response(headers={"a b": "c"})
    with pytest.raises(TypeError, match="JSON form"):
        Response(object())
