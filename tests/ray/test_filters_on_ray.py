"""Filters of a whole cluster: every host has them, whoever calls, and nothing runs without them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ray_cluster import RayCluster, objects_on
from served import wait_until

import rayobjects as ro
from rayobjects.runtime import admin
from rayobjects.runtime.around import hand_in
from rayobjects.runtime.configuration import write_around

pytestmark = pytest.mark.timeout(240)

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Shared(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def who(self) -> list[str]:
        return [ro.context().caller, ro.context().get("tenant", "")]

    async def ask(self, class_name: str, name: str) -> list[str]:
        return list(await ro.namespace(class_name).get(name).who.remote())

    def pid(self) -> int:
        return os.getpid()


class Alone(Shared, hosting="dedicated"):
    pass


async def tens(call: ro.MethodCall, proceed: Any) -> Any:
    if call.method == "add":
        call.arguments["by"] *= 10
    call.context["tenant"] = "acme"
    return await proceed()


async def refuse_odd(call: ro.MethodCall, proceed: Any) -> Any:
    if call.method == "add" and call.arguments["by"] % 2:
        raise ro.InvalidCall("no odd numbers", status=403)
    return await proceed()


@pytest.fixture(scope="module", autouse=True)
def _objects(ray_cluster: RayCluster) -> Iterator[None]:
    with objects_on(ray_cluster, shards=2, filters=[tens]):
        ro.deploy(Shared, Alone)
        yield


@pytest.fixture(params=["Shared", "Alone"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    ro.init(filters=[tens])
    yield request.param
    ro.init(filters=[tens])


def call(kind: str, name: str, method: str, *args: Any) -> Any:
    return getattr(ro.namespace(kind).get(name), method).remote(*args).result(timeout_s=60)


def test_from_the_first_call_and_after_a_kill(kind: str) -> None:
    assert call(kind, "killed", "add", 1) == 10
    os.kill(call(kind, "killed", "pid"), signal.SIGKILL)
    assert call(kind, "killed", "add", 2) == 30


def test_others_take_their_place(kind: str) -> None:
    assert call(kind, "changed", "add", 1) == 10
    ro.init(filters=[refuse_odd])
    assert call(kind, "changed", "add", 2) == 12
    with pytest.raises(ro.InvalidCall, match="no odd numbers"):
        call(kind, "changed", "add", 1)
    ro.init()  # says nothing of filters, and changes nothing
    with pytest.raises(ro.InvalidCall, match="no odd numbers"):
        call(kind, "changed", "add", 1)
    ro.init(filters=[])
    assert call(kind, "changed", "add", 1) == 13


def test_hosts_find_out_by_themselves(kind: str) -> None:
    """Whoever puts others in force may die before it can tell."""
    assert call(kind, "untold", "add", 1) == 10
    write_around(*hand_in([], None))
    wait_until(lambda: bool(call(kind, "untold", "add", 1) % 10), "the filter is gone")


def test_other_processes_and_their_names(kind: str, ray_cluster: RayCluster) -> None:
    script = (
        "import rayobjects as ro\n"
        "ro.init(client='billing')\n"
        f"print(ro.namespace({kind!r}).get('named').who.remote().result(timeout_s=60))\n"
    )
    assert ray_cluster.run_elsewhere(script) == "['billing', 'acme']\n"
    assert call(kind, "other", "ask", "Shared", "named") == [f"{kind}/other", "acme"]


def absent() -> ModuleType:
    """A module that is as good as installed here, and nowhere else."""
    module = ModuleType("only_here")
    exec(
        "async def only_here_filter(call, proceed):\n    return await proceed()\n", module.__dict__
    )
    sys.modules["only_here"] = module
    return module


def test_filters_that_do_not_load_change_nothing(kind: str) -> None:
    wrong = absent().only_here_filter
    try:
        with pytest.raises(ro.InvalidCall, match="'only_here' is missing there") as refused:
            ro.init(filters=[wrong])
        assert "still are" in refused.value.message
    finally:
        del sys.modules["only_here"]
    assert call(kind, "kept", "add", 1) == 10
    with pytest.raises(ro.InvalidCall, match="is no filter"):
        ro.init(filters=[print])  # type: ignore[list-item]


def test_spans_of_hosts(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"

    def make_spans() -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import (
            SimpleSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )

        class ToFile(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                with path.open("a") as file:
                    for span in spans:
                        file.write(_line(span))
                return SpanExportResult.SUCCESS

        def _line(span: ReadableSpan) -> str:
            return span.to_json(indent=None) + "\n"

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(ToFile()))
        trace._TRACER_PROVIDER = None  # the host has had that of another test
        trace._TRACER_PROVIDER_SET_ONCE._done = False
        trace.set_tracer_provider(provider)

    def spans() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    ro.init(filters=[tens], process_setup=make_spans)
    with ro.request_context(traceparent=PARENT):
        assert call(kind, "traced", "ask", "Shared", "under") == [f"{kind}/traced", "acme"]
    wait_until(lambda: len(spans()) >= 3, "three spans have come")
    assert {span["context"]["trace_id"] for span in spans()} == {"0x" + PARENT.split("-")[1]}
    by_kind = {(span["name"], span["kind"].partition(".")[2]): span for span in spans()}
    asked = by_kind[f"{kind}.ask", "SERVER"]
    sent = by_kind["Shared.who", "CLIENT"]
    answered = by_kind["Shared.who", "SERVER"]
    assert asked["parent_id"] == "0x" + PARENT.split("-")[2]
    assert sent["parent_id"] == asked["context"]["span_id"]
    assert answered["parent_id"] == sent["context"]["span_id"]


def test_a_first_init_with_filters_that_do_not_load(ray_cluster: RayCluster) -> None:
    """Nothing is left of it. Last in this module, whose objects it ends."""
    admin.stop_hosts()
    ro.shutdown()
    wrong = absent().only_here_filter
    try:
        with (
            pytest.raises(ro.InvalidCall, match="'only_here' is missing there"),
            objects_on(ray_cluster, shards=1, filters=[wrong]),
        ):
            pass
    finally:
        del sys.modules["only_here"]
    with objects_on(ray_cluster, shards=1):
        ro.deploy(Shared)
        assert call("Shared", "again", "add", 1) == 1
