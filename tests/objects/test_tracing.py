"""OpenTelemetry spans: who makes them, what links them, and that they cost nothing unasked."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from itertools import pairwise

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import rayobjects as ro
from rayobjects.limits import STREAM_ITEMS_AHEAD_MAX
from rayobjects.objects import tracing
from rayobjects.testing import LocalHost

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Node(ro.DurableObject):
    visits: int = ro.durable(0)

    def visit(self) -> str:
        self.visits += 1
        return ro.context().trace_id

    async def through(self, name: str) -> str:
        with trace.get_tracer("user").start_as_current_span("inner"):
            return str(await ro.namespace("Node").get(name).visit.remote())

    def tell(self, name: str) -> None:
        ro.namespace("Node").get(name).visit.tell()

    def plan(self) -> None:
        self.schedule(self.visit, after=timedelta(seconds=5))

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    def plain_count(self, to: int) -> Iterator[int]:
        yield from range(to)
        raise ValueError("no more")

    def fail(self) -> None:
        raise ValueError("broken")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A provider of this process for the time of a test: OpenTelemetry's own lasts for ever."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def on_a_host(test: Callable[[LocalHost], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost([Node]) as host:
            await test(host)

    asyncio.run(main())


async def visited(host: LocalHost, name: str) -> None:
    async with asyncio.timeout(10):
        while True:
            state = await host.state(host.get(Node, name))
            if state["attributes"].get("visits"):
                return


def found(
    spans: InMemorySpanExporter, name: str, kind: SpanKind = SpanKind.SERVER
) -> list[ReadableSpan]:
    return [each for each in spans.get_finished_spans() if each.name == name and each.kind is kind]


def is_under(span: ReadableSpan, above: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == above.get_span_context().span_id


def test_a_chain_is_one_trace(spans: InMemorySpanExporter) -> None:
    async def test(host: LocalHost) -> None:
        with trace.get_tracer("user").start_as_current_span("outer"):
            trace_id = await host.get(Node, "a").through.remote("b")
        (outer,) = found(spans, "outer", SpanKind.INTERNAL)
        (sent,) = found(spans, "Node.through", SpanKind.CLIENT)
        (ran,) = found(spans, "Node.through")
        (inner,) = found(spans, "inner", SpanKind.INTERNAL)
        (child_sent,) = found(spans, "Node.visit", SpanKind.CLIENT)
        (child_ran,) = found(spans, "Node.visit")
        chain = [outer, sent, ran, inner, child_sent, child_ran]
        for above, below in pairwise(chain):
            assert is_under(below, above)
        assert {f"{each.get_span_context().trace_id:032x}" for each in chain} == {trace_id}
        assert dict(child_ran.attributes or {}) == {
            "rpc.system": "rayobjects",
            "rpc.service": "Node",
            "rpc.method": "visit",
            "rayobjects.object": "b",
            "rayobjects.kind": "stub",
            "rayobjects.caller": "Node/a",
        }

    on_a_host(test)


def test_a_trace_that_began_elsewhere(spans: InMemorySpanExporter) -> None:
    async def test(host: LocalHost) -> None:
        with ro.request_context(traceparent=PARENT):
            assert await host.get(Node, "a").visit.remote() == PARENT.split("-")[1]
        (sent,) = found(spans, "Node.visit", SpanKind.CLIENT)
        assert sent.parent is not None
        assert f"{sent.parent.span_id:016x}" == PARENT.split("-")[2]

    on_a_host(test)


def test_what_is_told_is_in_the_trace_and_a_schedule_is_linked(
    spans: InMemorySpanExporter,
) -> None:
    async def test(host: LocalHost) -> None:
        await host.get(Node, "a").tell.remote("b")
        await host.crash()
        await visited(host, "b")
        await host.get(Node, "c").plan.remote()
        await host.move(6)
        await visited(host, "c")
        (telling,) = found(spans, "Node.tell")
        told = found(spans, "Node.visit")  # perhaps twice, once for nothing: see the crash
        assert told
        assert all(is_under(each, telling) for each in told)
        (fired,) = found(spans, "Node.visit", SpanKind.CONSUMER)
        (planned,) = found(spans, "Node.plan")
        assert fired.parent is None
        assert [each.context.span_id for each in fired.links] == [
            planned.get_span_context().span_id
        ]

    on_a_host(test)


def test_errors_are_on_the_spans(spans: InMemorySpanExporter) -> None:
    async def test(host: LocalHost) -> None:
        with pytest.raises(ro.MethodError):
            await host.get(Node, "a").fail.remote()
        with pytest.raises(ro.InvalidCall):
            await host.get(Node, "a").nothing.remote()
        (sent,) = found(spans, "Node.fail", SpanKind.CLIENT)
        (ran,) = found(spans, "Node.fail")
        for span in (sent, ran):
            assert span.status.status_code is StatusCode.ERROR
        assert (sent.attributes or {})["error.type"] == "ValueError"
        assert [event.name for event in ran.events] == ["exception"]
        (unknown,) = found(spans, "Node.nothing", SpanKind.CLIENT)
        assert (unknown.attributes or {})["error.type"] == "InvalidCall"

    on_a_host(test)


def test_a_streams_span_ends_with_it(spans: InMemorySpanExporter) -> None:
    async def test(host: LocalHost) -> None:
        long = 4 * STREAM_ITEMS_AHEAD_MAX
        stream = aiter(host.get(Node, "a").count.remote(long))
        assert await anext(stream) == 0
        assert not found(spans, "Node.count")
        assert len([number async for number in stream]) == long - 1
        (ran,) = found(spans, "Node.count")
        (sent,) = found(spans, "Node.count", SpanKind.CLIENT)
        assert is_under(ran, sent)
        with pytest.raises(ro.MethodError, match="no more"):
            _ = [number async for number in host.get(Node, "a").plain_count.remote(3)]
        (ran,) = found(spans, "Node.plain_count")
        assert ran.status.status_code is StatusCode.ERROR

    on_a_host(test)


def test_without_a_provider_there_is_nothing() -> None:
    async def test(host: LocalHost) -> None:
        assert host.core is not None
        assert host.core.filters is None
        with ro.request_context(traceparent=PARENT):  # but a trace goes through
            assert await host.get(Node, "a").through.remote("b") == PARENT.split("-")[1]

    assert tracing.tracer() is None
    on_a_host(test)


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"  # as where it is not installed
        "import rayobjects.objects.host_core, rayobjects.testing\n"
        "from rayobjects.objects import tracing\n"
        "assert tracing.tracer() is None and tracing.with_spans([]) is None\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
