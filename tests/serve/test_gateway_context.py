"""What HTTP requests and WebSockets carry along, and the gateway's spans."""

from collections.abc import Iterator

import pytest
from gateway_double import DoubleRouter, EchoRoom
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from test_gateway_http import get, post
from test_gateway_sockets import run, until
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from rayobjects.errors import InvalidCall
from rayobjects.limits import CONTEXT_BYTES_MAX, CONTEXT_ENTRIES_MAX
from rayobjects.messages import REQUEST, Call, HttpResponse, encode

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

HEADERS = {"traceparent": PARENT, "baggage": "tenant=acme", "x-request-id": "r-1"}
CARRIED = {"traceparent": PARENT, "tenant": "acme", "request_id": "r-1"}

LARGE = {"baggage": "k=" + "x" * CONTEXT_BYTES_MAX}
MANY = {"baggage": ",".join(f"k{number}=1" for number in range(CONTEXT_ENTRIES_MAX + 1))}


def answering(call: Call) -> bytes:
    return encode(HttpResponse(200, [], b"")) if call.encoding == REQUEST else b"1"


def test_calls_carry_what_the_headers_say() -> None:
    router = DoubleRouter(answering)
    post(router, "/objects/Counter/home/add", headers=HEADERS)
    get(router, "/objects/Counter/home/fetch/x", headers=HEADERS)
    post(router, "/objects/Counter/home/add")
    assert [call.context for call in router.calls] == [CARRIED, CARRIED, None]


def test_too_much_is_refused() -> None:
    router = DoubleRouter(answering)
    for answer in (
        post(router, "/objects/Counter/home/add", headers=LARGE),
        get(router, "/objects/Counter/home/fetch/x", headers=LARGE),
    ):
        assert answer.status_code == 431
        assert "8,192 bytes" in answer.json()["detail"]
    assert router.calls == []


def test_a_sockets_calls_carry_what_it_was_opened_with() -> None:
    async def use(router: EchoRoom, url: str) -> None:
        async with connect(url, additional_headers=HEADERS) as socket:
            await socket.send("hello")
            await socket.recv()
        await until(lambda: not router.open)
        contexts = {call.method: call.context for call in router.calls}
        assert contexts == {"on_connect": CARRIED, "on_message": CARRIED, "on_close": None}
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=MANY)
        assert refused.value.response.status_code == 431

    run(EchoRoom(), use)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def test_the_gateways_span_is_above_the_hosts(spans: InMemorySpanExporter) -> None:
    router = DoubleRouter(answering)
    post(router, "/objects/Counter/home/add", headers=HEADERS)
    post(router, "/objects/Counter/home/add")
    with_parent, root = spans.get_finished_spans()
    for call, span in zip(router.calls, (with_parent, root), strict=True):
        assert (span.name, span.kind) == (
            "POST /objects/{class}/{name}/{method}",
            SpanKind.SERVER,
        )
        assert dict(span.attributes or {}) == {
            "http.request.method": "POST",
            "http.route": "/objects/{class}/{name}/{method}",
            "http.response.status_code": 200,
        }
        assert call.context is not None
        trace_id, span_id = call.context["traceparent"].split("-")[1:3]
        assert int(trace_id, 16) == span.get_span_context().trace_id
        assert int(span_id, 16) == span.get_span_context().span_id
    assert with_parent.parent is not None
    assert f"{with_parent.parent.span_id:016x}" == PARENT.split("-")[2]
    assert root.parent is None


def test_errors_on_the_gateways_span(spans: InMemorySpanExporter) -> None:
    def failing(call: Call) -> bytes:
        raise InvalidCall("broken", status=int(call.method.removeprefix("s")))

    for status in (404, 500):
        post(DoubleRouter(failing), f"/objects/Counter/home/s{status}")
    get(DoubleRouter(answering), "/objects/Counter/home/fetch/a/b")
    found = [
        ((span.attributes or {})["http.response.status_code"], span.status.status_code, span.name)
        for span in spans.get_finished_spans()
    ]
    assert found == [
        (404, StatusCode.UNSET, "POST /objects/{class}/{name}/{method}"),
        (500, StatusCode.ERROR, "POST /objects/{class}/{name}/{method}"),
        (200, StatusCode.UNSET, "GET /objects/{class}/{name}/fetch/{path}"),
    ]
