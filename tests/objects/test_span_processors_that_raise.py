"""A span processor that raises (its disk is full, it has a bug): calls are answered all the same,
each with its own reply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from cluster_double import LocalCluster
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

import rayobjects as ro
from rayobjects.objects import tracing
from rayobjects.runtime import placement
from rayobjects.runtime.stubs import Stub


class Account(ro.DurableObject):
    total: int = ro.durable(0)

    def add(self) -> int:
        self.total += 1
        return self.total

    async def items(self) -> AsyncIterator[int]:
        yield 1
        yield 2

    def fail(self) -> None:
        raise ValueError("broken")


class Raising(SpanProcessor):
    kind = SpanKind.CLIENT

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind == self.kind:
            raise OSError("No space left on device")


@pytest.fixture(params=[SpanKind.CLIENT, SpanKind.SERVER], ids=["caller's", "host's"])
def raising(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raising]:
    processor = Raising()
    processor.kind = request.param
    provider = TracerProvider()
    provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(tracing, "_has_raised", False, raising=False)
    yield processor
    provider.shutdown()


def test_every_call_of_a_batch_is_answered(
    raising: Raising, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with LocalCluster(monkeypatch, [Account]) as cluster:
            here = [
                stub
                for stub in (Stub("Account", str(number)) for number in range(40))
                if placement.shard_of(stub.id, 2) == 0
            ]
            calls = [stub.add.remote() for stub in here]
            assert await asyncio.wait_for(asyncio.gather(*calls), 10) == [1] * len(here)
            items = [item async for item in here[0].items.remote()]
            assert items == [1, 2]
            with pytest.raises(ro.MethodError, match="broken"):
                await asyncio.wait_for(here[0].fail.remote(), 10)
            (channel,) = cluster.router._channels.values()
            assert channel.unanswered == 0

    with caplog.at_level(logging.ERROR, "rayobjects"):
        asyncio.run(run())
    assert caplog.text.count("a span processor raises") == 1
