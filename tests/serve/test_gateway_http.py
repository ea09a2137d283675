"""The gateway's HTTP routes, in process."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_double import DoubleRouter, Info, Method
from hypothesis import given
from hypothesis import strategies as st

from rayobjects.errors import (
    Deadlock,
    InvalidCall,
    MethodError,
    Overloaded,
    StorageFailed,
    Unavailable,
)
from rayobjects.limits import CALL_BYTES_MAX, OBJECT_NAME_BYTES_MAX, PAGE_KEYS_MAX
from rayobjects.messages import (
    JSON,
    REQUEST,
    Call,
    HttpResponse,
    decode_request,
    encode,
)
from rayobjects.serve.gateway import Gateway
from rayobjects.serve.pages import load_pages
from rayobjects.serve.paths import PREFIX, Target, parse_target

JSON_TYPE = {"content-type": "application/json"}


def run(
    gateway: Gateway, use: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]
) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(gateway)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await use(client)

    return asyncio.run(main())


def post(router: DoubleRouter, path: str, **options: Any) -> httpx.Response:
    return run(Gateway(router), lambda client: client.post(path, **options))


def get(router: DoubleRouter, path: str, **options: Any) -> httpx.Response:
    return run(Gateway(router), lambda client: client.get(path, **options))


def test_call_forwards_the_bytes_and_returns_the_bytes() -> None:
    router = DoubleRouter(lambda call: b'[1, "two"]')
    answer = post(router, "/objects/Counter/home/increment", content=b'{"by": 2}')
    assert answer.status_code == 200
    assert answer.content == b'[1, "two"]'
    assert answer.headers["content-type"] == "application/json"
    (call,) = router.calls
    assert (call.class_name, call.name, call.method) == ("Counter", "home", "increment")
    assert (call.encoding, call.args, call.id) == (JSON, b'{"by": 2}', "")


@pytest.mark.parametrize("name", ["a/b", "ein Name", "größe", "100%", "?&=#", "..", "a\nb", "🦜"])
def test_any_name_can_be_percent_encoded(name: str) -> None:
    router = DoubleRouter()
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    assert post(router, f"/objects/Counter/{encoded}/increment").status_code == 200
    assert router.calls[0].name == name


@given(st.text(min_size=1, max_size=50), st.text(min_size=1, max_size=10))
def test_paths_come_back_as_they_were_encoded(name: str, method: str) -> None:
    def quote(text: str) -> bytes:
        return "".join(f"%{byte:02x}" for byte in text.encode()).encode()

    try:
        name.encode()
        method.encode()
    except UnicodeEncodeError:
        return
    path = PREFIX + b"Room/" + quote(name) + b"/" + quote(method)
    assert parse_target(path) == Target("Room", name, method)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/objects/Counter//increment", 422, "empty"),
        ("/objects/Counter/%FF/increment", 422, "UTF-8"),
        (f"/objects/Counter/{'x' * (OBJECT_NAME_BYTES_MAX + 1)}/increment", 422, "1,024"),
        ("/objects/Counter/a/b/increment", 404, "%2F"),
        ("/objects/Counter/home/_secret", 404, "_secret"),
        ("/objects/Counter/home/", 404, "no method"),
        ("/nowhere", 404, "/docs"),
    ],
)
def test_wrong_addresses(path: str, status: int, words: str) -> None:
    router = DoubleRouter()
    answer = post(router, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert answer.json()["status"] == status
    assert router.calls == []


def test_idempotency_key_is_the_call_id() -> None:
    router = DoubleRouter()
    post(router, "/objects/Counter/home/increment", headers={"Idempotency-Key": "order 7"})
    assert router.calls[0].id == "key:order 7"


@pytest.mark.parametrize(
    ("prefer", "timeout_s"),
    [
        ("wait=5", 5.0),
        ("respond-async, wait=0.5", 0.5),
        ('handling=lenient; wait="2"', 2.0),
        ("wait=soon", 0.0),
        ("await=5", 0.0),
    ],
)
def test_what_the_client_prefers_to_wait_is_the_calls_timeout(
    prefer: str, timeout_s: float
) -> None:
    router = DoubleRouter()
    post(router, "/objects/Counter/home/increment", headers={"Prefer": prefer})
    assert router.calls[0].timeout_s == timeout_s


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"tab\there", "naïve".encode()])
def test_bad_idempotency_keys(key: bytes) -> None:
    router = DoubleRouter()
    path = "/objects/Counter/home/increment"
    answer = post(router, path, headers=[(b"idempotency-key", key)])
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["detail"]
    assert router.calls == []


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (InvalidCall("no class 'X': deploy it", status=404), 404, "invalid-call", None),
        (Overloaded("too many calls: back off"), 429, "overloaded", "1"),
        (Unavailable("no host: try again"), 503, "unavailable", "1"),
        (StorageFailed("disk full: make room"), 503, "storage-failed", "1"),
        (Deadlock("calls wait in a circle: use tell"), 409, "deadlock", None),
    ],
)
def test_errors_are_problems(error: Exception, status: int, kind: str, retry: str | None) -> None:
    answer = post(DoubleRouter(lambda call: error), "/objects/Counter/home/increment")  # type: ignore[arg-type, return-value]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get("retry-after") == retry
    problem = answer.json()
    assert problem["type"] == f"urn:rayobjects:problem:{kind}"
    assert problem["detail"] == str(error)


def test_errors_of_the_router_are_problems_too() -> None:
    answer = post(DoubleRouter(), "/objects/Counter/home/busy")
    assert answer.status_code == 503
    assert answer.json()["title"] == "Unavailable"


def test_wrong_fields_are_named() -> None:
    errors = [{"field": "by", "message": "not a number"}]
    router = DoubleRouter(lambda call: InvalidCall("by: not a number", details={"errors": errors}))
    answer = post(router, "/objects/Counter/home/increment", content=b'{"by": "x"}')
    assert answer.status_code == 422
    assert answer.json()["errors"] == errors


def test_the_traceback_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(call: Call) -> MethodError:
        try:
            raise ValueError("no such seat")
        except ValueError as error:
            return MethodError.of("Show/one.reserve", error)

    answer = post(DoubleRouter(fail), "/objects/Show/one/reserve")
    assert answer.status_code == 500
    problem = answer.json()
    assert problem["exception"] == "ValueError"
    assert "no such seat" in problem["detail"]
    assert "Traceback" not in answer.text
    assert "Traceback" in caplog.text


def test_too_large_a_body_is_refused_unread() -> None:
    router = DoubleRouter()

    async def chunks() -> Any:
        for _ in range(CALL_BYTES_MAX // (8 * 2**20) + 1):
            yield b" " * (8 * 2**20)

    path = "/objects/Counter/home/increment"
    announced = {"content-length": str(CALL_BYTES_MAX + 1)}
    assert post(router, path, content=b"{}", headers=announced).status_code == 413
    assert post(router, path, content=chunks()).status_code == 413
    assert router.calls == []


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("application/merge-patch+json", 200),
        ("text/plain;charset=UTF-8", 200),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_a_body_must_be_json(content_type: str, status: int) -> None:
    headers = {"content-type": content_type}
    path = "/objects/Counter/home/increment"
    answer = post(DoubleRouter(), path, content=b"{}", headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert "application/json" in answer.json()["detail"]
        assert "--json" in answer.json()["detail"]
    assert post(DoubleRouter(), path, headers=headers).status_code == 200  # there is no body


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1", 200),
        ("http://localhost:5173", 200),
        ("http://127.0.0.1:9", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_other_sites_are_refused(origin: str, status: int) -> None:
    router = DoubleRouter()
    answer = post(router, "/objects/Counter/home/increment", headers={"origin": origin})
    assert answer.status_code == status
    assert len(router.calls) == (status == 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("LOCALHOST", 200),
        ("localhost.:8000", 200),
        ("[::1]:8000", 200),
        ("objects.example", 200),
        ("objects.example:443", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("[::2]", 421),
    ],
)
@pytest.mark.parametrize("path", ["/objects/Counter/home/increment", "/docs", "/mine"])
def test_only_names_of_loopback_and_those_that_are_allowed(
    host: str, status: int, path: str
) -> None:
    """A page whose name is made to point here (DNS rebinding) is of our own origin otherwise."""
    from fastapi import FastAPI

    app = FastAPI()
    app.get("/mine")(lambda: "mine")
    router = DoubleRouter()
    gateway = Gateway(router, app=app, allowed_hosts=["objects.example"])
    headers = {"host": host, "origin": f"http://{host}"}
    method = "POST" if "objects" in path else "GET"
    for _ in range(2):  # the second time the name is known
        answer = run(gateway, lambda client: client.request(method, path, headers=headers))
        assert answer.status_code == status
    if status == 421:
        assert "RAYOBJECTS_ALLOWED_HOSTS" in answer.json()["detail"]
        assert not router.calls


def test_every_name_can_be_allowed() -> None:
    gateway = Gateway(DoubleRouter(), allowed_hosts=["*"])
    headers = {"host": "anything.example"}
    path = "/objects/Counter/home/increment"
    assert run(gateway, lambda client: client.post(path, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("cross-site", "navigate", 426),
        ("same-origin", "cors", 426),
        ("same-site", "no-cors", 426),
        ("none", "navigate", 426),
    ],
)
def test_images_and_scripts_of_other_sites_are_refused(site: str, mode: str, status: int) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert get(DoubleRouter(), "/objects/Room/lobby", headers=headers).status_code == status


def test_other_verbs() -> None:
    router = DoubleRouter()
    answer = get(router, "/objects/Counter/home/increment")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "'increment' is a method" in answer.json()["detail"]
    assert "POST and not with GET" in answer.json()["detail"]
    for path in ("/objects/Counter/home", "/objects/Counter"):
        answer = post(router, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert "POST to /objects/Counter/NAME/METHOD" in answer.json()["detail"]
    answer = post(router, "/docs")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_an_object_without_upgrade_needs_one() -> None:
    answer = get(DoubleRouter(), "/objects/Room/lobby")
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"
    assert "WebSocket" in answer.json()["detail"]


def test_a_client_that_goes_away_does_not_cancel_its_call() -> None:
    async def main() -> None:
        router = DoubleRouter()
        router.held = asyncio.Event()
        transport = httpx.ASGITransport(Gateway(router))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            sent: asyncio.Future[asyncio.Future[Any]] = asyncio.get_running_loop().create_future()
            ask = router.ask

            def note(*arguments: Any, **options: Any) -> asyncio.Future[Any]:
                future = ask(*arguments, **options)
                sent.set_result(future)
                return future

            router.ask = note  # type: ignore[method-assign]
            request = asyncio.create_task(client.post("/objects/Counter/home/increment"))
            future = await sent
            request.cancel()
            await asyncio.wait({request})
            assert not future.cancelled()
            router.held.set()
            assert (await future).body == b""

    asyncio.run(main())


def test_listing_in_pages() -> None:
    router = DoubleRouter(classes={"Counter": Info("Counter")})
    router.names = [f"n{index:03}" for index in range(250)] + ["other"]
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        answer = get(router, "/objects/Counter", params={"prefix": "n", "after": after})
        page = answer.json()
        names += page["names"]
        after = page["next"]
    assert names == router.names[:250]
    assert router.listings[0] == ("Counter", "n", "", 100)
    get(router, f"/objects/Counter?limit={PAGE_KEYS_MAX}")
    assert router.listings[-1] == ("Counter", "", "", PAGE_KEYS_MAX)


@pytest.mark.parametrize(
    "query",
    ["limit=many", "limit=-1", "limit=", "limit=%C2%B2", "limit=0", "limit=1001", "limit=1e2"],
)
def test_a_bad_limit(query: str) -> None:
    answer = get(DoubleRouter(classes={"Counter": Info("Counter")}), f"/objects/Counter?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "limit"
    assert "from 1 to 1,000" in answer.json()["detail"]


def test_bad_listings() -> None:
    router = DoubleRouter(classes={"Counter": Info("Counter")})
    answer = get(router, "/objects/Nothing")
    assert answer.status_code == 404
    assert "Nothing" in answer.json()["detail"]
    assert get(router, "/objects/Counter?prefix=%FF").status_code == 422
    answer = get(router, "/objects/Counter?prefix=a&offset=10")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "offset"
    assert "a listing takes prefix, after, limit, and no 'offset'" in answer.json()["detail"]
    assert router.listings == []


@pytest.mark.parametrize("query", ["by=3", "x", "%FF=" + "y" * 5_000])
def test_a_call_takes_no_query(query: str) -> None:
    router = DoubleRouter()
    answer = post(router, f"/objects/Counter/home/increment?{query}", content=b"{}")
    assert answer.status_code == 422
    assert "arguments go into the JSON body" in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 200
    assert router.calls == []
    assert post(router, "/objects/Counter/home/increment?").status_code == 200


def test_raw_requests_reach_on_request() -> None:
    def answer_request(call: Call) -> bytes:
        request = decode_request(call.args)
        assert call.encoding == REQUEST
        assert call.method == "on_request"
        assert (request.method, request.path, request.query) == ("PUT", "/a b/c", "x=1&y=%20")
        assert ("x-mine", "1") in request.headers
        assert not {"connection", "te"} & {key for key, _ in request.headers}
        headers = [("X-Yours", "2"), ("Connection", "close"), ("Content-Length", "9")]
        return encode(HttpResponse(201, headers, request.body[::-1]))

    answer = run(
        Gateway(DoubleRouter(answer_request)),
        lambda client: client.put(
            "/objects/Site/home/fetch/a%20b/c?x=1&y=%20",
            content=b"\x00\xffraw",
            headers={"X-Mine": "1", "TE": "trailers"},
        ),
    )
    assert (answer.status_code, answer.content) == (201, b"war\xff\x00")
    assert answer.headers["x-yours"] == "2"
    assert answer.headers["content-length"] == "5"
    assert "connection" not in answer.headers


def test_a_raw_answer_cannot_split_headers() -> None:
    response = encode(HttpResponse(200, [("x-mine", "1\r\nset-cookie: a=b")], b""))
    answer = get(DoubleRouter(lambda call: response), "/objects/Site/home/fetch/")
    assert answer.status_code == 500
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("verb", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("class_name", ["Site", "Page"])
def test_fetch_without_its_slash(verb: str, class_name: str) -> None:
    def answer_request(call: Call) -> bytes:
        request = decode_request(call.args)
        return encode(HttpResponse(200, [], f"{request.path} {request.query}".encode()))

    site = Info("Site", requests=True, former=["Page"])
    router = DoubleRouter(answer_request, {"Other": Info("Other"), "Site": site})
    path = f"/objects/{class_name}/home/fetch?x=1"
    answer = run(Gateway(router), lambda client: client.request(verb, path))
    assert (answer.status_code, answer.text) == (200, "/ x=1")
    assert router.calls[0].method == "on_request"


def test_a_method_called_fetch() -> None:
    fetch = {"fetch": Method("fetch")}
    both = Info("Both", requests=True, methods=fetch)
    router = DoubleRouter(classes={"Both": both, "Only": Info("Only", methods=fetch)})
    for class_name in ("Both", "Only"):
        assert post(router, f"/objects/{class_name}/home/fetch", json={}).json() == {}
    assert [call.method for call in router.calls] == ["fetch", "fetch"]
    assert get(router, "/objects/Only/home/fetch").status_code == 405
    router.handler = lambda call: encode(HttpResponse(200, [], b"raw"))
    assert get(router, "/objects/Both/home/fetch").text == "raw"


def test_a_class_without_on_request() -> None:
    router = DoubleRouter(lambda call: InvalidCall("no on_request: write one", status=404))
    assert get(router, "/objects/Site/home/fetch/x").status_code == 404


def test_pages_come_from_memory(tmp_path: Path) -> None:
    file = tmp_path / "chat.html"
    file.write_text("<p>grüezi")
    pages = load_pages({"/": file, "/robots.txt": ("text/plain", "none")})
    file.unlink()
    gateway = Gateway(DoubleRouter(), pages=pages)
    answer = run(gateway, lambda client: client.get("/"))
    assert answer.text == "<p>grüezi"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert run(gateway, lambda client: client.get("/robots.txt")).text == "none"


@pytest.mark.parametrize(
    ("path", "page", "words"),
    [
        ("chat", ("text/plain", ""), "'/chat'"),
        ("/docs", ("text/plain", ""), "own"),
        ("/objects/x", ("text/plain", ""), "own"),
        ("/chat", "missing.html", "No such file"),
        ("/chat", 7, "int"),
    ],
)
def test_bad_pages(path: str, page: object, words: str) -> None:
    with pytest.raises(InvalidCall, match=words):
        load_pages({path: page})


def test_the_users_app_gets_the_rest() -> None:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    def home() -> str:
        return "mine"

    @app.get("/objects/{rest:path}")
    def shadowed(rest: str) -> str:
        raise AssertionError("the gateway's routes come first")

    gateway = Gateway(DoubleRouter(), app=app)
    assert run(gateway, lambda client: client.get("/")).json() == "mine"
    assert run(gateway, lambda client: client.get("/objects/A/b")).status_code == 426
    assert run(gateway, lambda client: client.get("/docs")).text.count("swagger-ui") >= 2


def test_docs_need_no_other_server() -> None:
    router = DoubleRouter(classes={"Counter": Info("Counter", doc="Counts <up>.")})
    page = get(router, "/docs").text
    assert "http" not in page
    for path in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"docs/{path}" in page
        answer = get(router, f"/docs/{path}")
        assert answer.status_code == 200
        assert len(answer.content) > 1_000
    index = get(router, "/").text
    assert "Counts &lt;up&gt;." in index
    assert "Counter" in index


def test_openapi_is_built_once_for_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayobjects.serve import docs

    builds: list[int] = []
    build = docs.document
    monkeypatch.setattr(docs, "document", lambda infos: builds.append(1) or build(infos))
    router = DoubleRouter(classes={"Counter": Info("Counter")})
    gateway = Gateway(router)

    def read() -> dict[str, Any]:
        answer = run(gateway, lambda client: client.get("/openapi.json"))
        document: dict[str, Any] = json.loads(answer.content)
        return document

    read()
    read()
    assert len(builds) == 1
    router.classes["Counter"] = Info("Counter", version=2, methods={"up": Method("up")})
    assert "/objects/Counter/{name}/up" in read()["paths"]
    assert len(builds) == 2
