"""OpenTelemetry spans, where its API is installed and a provider is set; otherwise nothing.

    gateway   "POST /objects/{class}/{name}/{method}"   SERVER; the client's traceparent is above
    caller    "Counter.increment"                       CLIENT; from `.remote()` to the answer
    host      "Counter.increment"                       SERVER; around the method and its filters

What links them travels as `traceparent` in the request context, so that a trace goes on through
processes that have no provider, and to what the call tells others. A schedule's call begins a trace
of its own, with a link to the one in which it was planned, which may have been long ago.

The host's span is a filter, the outermost one: where nobody traces, it is not there. The caller
asks for a provider at each call, which is a look into a module that somebody else has imported.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rayobjects.errors import RayObjectsError, info_from_wire
from rayobjects.messages import END, ERROR, OK, Call, Reply
from rayobjects.objects.reading import Opened

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from rayobjects.objects.filters import Filter, MethodCall, Proceed

SYSTEM = "rayobjects"

logger = logging.getLogger("rayobjects")

_known: tuple[Any, Tracer] | None = None
_has_raised = False


def tracer() -> Tracer | None:
    """Makes the spans of this process; None where nobody wants any."""
    global _known
    trace = sys.modules.get("opentelemetry.trace")
    # There is no public way to ask without making one.
    provider = getattr(trace, "_TRACER_PROVIDER", None)
    if trace is None or provider is None:
        return None
    if _known is None or _known[0] is not provider:
        _known = (provider, trace.get_tracer(SYSTEM))
    return _known[1]


def with_spans(filters: Iterable[Filter]) -> tuple[Filter, ...] | None:
    """The filters of a host, with the one that makes spans in front if somebody wants them; None
    for no filters at all."""
    given = tuple(filters)
    return (_server_span, *given) if tracer() is not None else given or None


async def _server_span(call: MethodCall, proceed: Proceed) -> Any:
    making = tracer()
    if making is None:
        return await proceed()
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, get_current_span, use_span

    above = _extracted(call.context)
    links = []
    if call.kind == "schedule":
        planned = get_current_span(above).get_span_context()
        links = [Link(planned)] if planned.is_valid else []
        above = Context()
    span = making.start_span(
        f"{call.id.class_name}.{call.method}",
        context=above,
        kind=SpanKind.CONSUMER if call.kind == "schedule" else SpanKind.SERVER,
        attributes=_attributes(call.id.class_name, call.id.name, call.method)
        | {"rayobjects.kind": call.kind, "rayobjects.caller": call.caller},
        links=links,
    )
    _inject(span, call.context)
    result: Any = None
    try:
        with use_span(span):  # notes what is raised
            result = await proceed()
    finally:
        if not hasattr(result, "__next__") and not hasattr(result, "__anext__"):
            _end(span)
    if hasattr(result, "__anext__"):
        return _async_items(span, result)
    return _items(span, result) if hasattr(result, "__next__") else result


async def _async_items(span: Span, items: AsyncGenerator[Any, None]) -> AsyncIterator[Any]:
    """A stream, whose span ends with it."""
    from opentelemetry.trace import use_span

    try:
        with use_span(span):
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()
    finally:
        _end(span)


def _items(span: Span, items: Generator[Any, None, None]) -> Iterator[Any]:
    """The same for a plain generator, whose steps may run on any thread."""
    try:
        yield from items
    except Exception as error:
        span.record_exception(error)
        _failed(span, type(error).__name__, str(error))
        raise
    finally:
        _end(span)


def calling(call: Call, replied: Callable[[Reply | RayObjectsError], None]) -> Any:
    """Begins the span of a call that is about to be sent, if somebody wants it.

    Returns:
        `replied`, or what ends the span and goes on to that.
    """
    making = tracer()
    if making is None:
        return replied
    from opentelemetry.trace import SpanKind, get_current_span

    carrying = dict(call.context or {})
    above = None if get_current_span().get_span_context().is_valid else _extracted(carrying)
    span = making.start_span(
        f"{call.class_name}.{call.method}",
        context=above,
        kind=SpanKind.CLIENT,
        attributes=_attributes(call.class_name, call.name, call.method),
    )
    _inject(span, carrying)
    call.context = carrying or None

    def ended(outcome: Reply | RayObjectsError) -> None:
        nonlocal replied
        if isinstance(outcome, RayObjectsError) or outcome.status in (OK, ERROR, END):
            _end_of_call(span, outcome)
        replied(outcome)
        if isinstance(outcome, Opened) and outcome.take is not None:
            replied, outcome.take = outcome.take, ended

    return ended


def _end_of_call(span: Span, outcome: Reply | RayObjectsError) -> None:
    if isinstance(outcome, RayObjectsError):
        _failed(span, type(outcome).__name__, outcome.message)
    elif outcome.status == ERROR:
        info = info_from_wire(outcome.body)
        _failed(span, info.cause_type or info.kind, info.message)
    _end(span)


def _end(span: Span) -> None:
    """Ends a span. What looks at it then is somebody else's code, and if that raises, a reply must
    not be lost or a call rolled back."""
    global _has_raised
    try:
        span.end()
    except Exception:
        if not _has_raised:
            _has_raised = True
            logger.exception("a span processor raises; further errors of it are not reported")


@contextmanager
def request(verb: str, route: str, carrying: dict[str, str]) -> Iterator[Callable[[int], None]]:
    """The span of an HTTP request at the gateway, to be opened only where somebody wants it.

    Args:
        route: the path with its variable parts named, not filled in.
        carrying: what the request carries; gets the traceparent of the span.

    Yields:
        what takes the answer's status.
    """
    making = tracer()
    assert making is not None
    from opentelemetry.trace import SpanKind

    with making.start_as_current_span(
        f"{verb} {route}",
        context=_extracted(carrying),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": verb, "http.route": route},
    ) as span:
        _inject(span, carrying)

        def answered(status: int) -> None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                _failed(span, str(status), "")

        yield answered


def _attributes(class_name: str, name: str, method: str) -> dict[str, str]:
    return {
        "rpc.system": SYSTEM,
        "rpc.service": class_name,
        "rpc.method": method,
        "rayobjects.object": name,
    }


def _failed(span: Span, kind: str, message: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, message))


def _extracted(carrying: Mapping[str, str]) -> Context:
    """The context of the span above; an empty one where there is none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrying, context=Context())


def _inject(span: Span, carrying: dict[str, str]) -> None:
    """Makes the span the one above whatever is called from here on."""
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if span.get_span_context().is_valid:
        TraceContextTextMapPropagator().inject(carrying, context=set_span_in_context(span))
