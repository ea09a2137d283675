"""Streams over HTTP, in process: the gateway in front of a host without Ray."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from gateway_double import DoubleRouter

import rayobjects as ro
from rayobjects.limits import STREAM_ITEMS_AHEAD_MAX
from rayobjects.messages import Call, Reply
from rayobjects.objects.catalog import describe
from rayobjects.objects.reading import Reading, ask
from rayobjects.serve import events
from rayobjects.serve.gateway import Gateway
from rayobjects.serve.openapi import document
from rayobjects.testing import LocalHost

EVENTS: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
SAID: list[str] = []

TO_EVENTS = b"text/event-stream"


class Feed(ro.DurableObject):
    count: int = ro.durable(0)

    def value(self) -> int:
        return self.count

    async def numbers(self, items: int = 3, wait: bool = False) -> AsyncIterator[int]:
        """Counts."""
        try:
            for number in range(items):
                self.count += 1
                yield number
            if wait:
                EVENTS["waits"].set()
                await EVENTS["go"].wait()
        except BaseException as error:
            SAID.append(type(error).__name__)
            raise

    def texts(self) -> Iterator[str]:
        yield 'two\nlines "quoted" \u2028 größer'

    async def failing(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            yield number
        raise ValueError("after all of them")

    @ro.internal
    async def secret(self) -> AsyncIterator[int]:
        yield 1


class HostRouter(DoubleRouter):
    """Calls the objects of a host in this process."""

    def __init__(self, host: LocalHost) -> None:
        super().__init__()
        self._host = host

    def ask(self, call: Call) -> asyncio.Future[Reply | Reading]:
        self.calls.append(call)
        return ask(self._host.router, lambda replied: self._host.client.send(call, replied))


class Client:
    """An HTTP client that sees each part of an answer when it is sent."""

    def __init__(self, gateway: Gateway, path: str, body: object, *headers: tuple[bytes, bytes]):
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.leave = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers],
        }
        self.task = asyncio.ensure_future(gateway(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["body"]:
            self.parts.append(message["body"])

    @property
    def text(self) -> str:
        return b"".join(self.parts).decode()

    @property
    def events(self) -> list[tuple[str, Any]]:
        """(event, data) of each that is there."""
        found = []
        for each in self.text.split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in each.split("\n") if line[0] != ":")
            if fields:
                found.append((fields.get("event", "message"), json.loads(fields["data"])))
        return found


def run(main: Callable[[Gateway, LocalHost], Coroutine[Any, Any, None]]) -> None:
    EVENTS.clear()
    SAID.clear()

    async def timed() -> None:
        async with asyncio.timeout(30), LocalHost([Feed]) as host:
            await main(Gateway(HostRouter(host)), host)

    asyncio.run(timed())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  the host's steps, on this very loop
        await asyncio.sleep(0)


def client(gateway: Gateway, method: str, accept: bytes = b"", **arguments: Any) -> Client:
    headers = [(b"accept", accept)] if accept else []
    return Client(gateway, f"/objects/Feed/a/{method}", arguments, *headers)


def test_items_come_as_events() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "numbers", TO_EVENTS, items=200, wait=True)
        await EVENTS["waits"].wait()
        await until(lambda: len(asked.events) == 200)  # before the end
        assert asked.status == 200
        assert asked.headers[b"content-type"] == b"text/event-stream"
        assert asked.headers[b"cache-control"] == b"no-cache"
        EVENTS["go"].set()
        await asked.task
        assert asked.events == [
            *(("message", number) for number in range(200)),
            ("end", {"items": 200}),
        ]
        assert await host.get(Feed, "a").value.remote() == 200

    run(main)


def test_an_event_is_one_line_whatever_the_item() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "texts", b"text/html, text/event-stream;q=0.9, */*;q=0.1")
        await asked.task
        assert asked.events == [
            ("message", 'two\nlines "quoted" \u2028 größer'),
            ("end", {"items": 1}),
        ]
        asked = client(gateway, "numbers", TO_EVENTS, items=0)
        await asked.task
        assert asked.events == [("end", {"items": 0})]

    run(main)


@pytest.mark.parametrize("items", [0, 3])
def test_a_stream_that_fails_ends_with_a_problem(items: int) -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "failing", TO_EVENTS, items=items)
        await asked.task
        assert asked.status == 200
        *found, (event, problem) = asked.events
        assert found == [("message", number) for number in range(items)]
        assert event == "error"
        assert problem["status"] == 500
        assert problem["exception"] == "ValueError"
        assert "after all of them" in problem["detail"]

    run(main)


def test_a_host_that_dies_ends_it_with_a_problem() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "numbers", TO_EVENTS, wait=True)
        await until(lambda: len(asked.events) == 3)
        await host.kill()
        await asked.task
        event, problem = asked.events[-1]
        assert (event, problem["status"]) == ("error", 503)
        assert "cut off" in problem["detail"]
        assert await host.get(Feed, "a").value.remote() == 0

    run(main)


@pytest.mark.parametrize(
    ("method", "arguments", "status"),
    [("numbers", {"items": "many"}, 422), ("nothing", {}, 404), ("secret", {}, 404)],
)
def test_what_does_not_begin_is_answered_as_any_call(
    method: str, arguments: dict[str, Any], status: int
) -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        for accept in (TO_EVENTS, b"*/*"):
            asked = client(gateway, method, accept, **arguments)
            await asked.task
            assert asked.status == status
            assert asked.headers[b"content-type"] == b"application/problem+json"

    run(main)


def test_a_method_that_is_no_generator_answers_as_always() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "value", TO_EVENTS)
        await asked.task
        assert (asked.headers[b"content-type"], asked.text) == (b"application/json", "0")

    run(main)


@pytest.mark.parametrize("accept", [b"", b"*/*", b"application/json", b"text/event-stream;q=0"])
def test_items_come_as_an_array_else(accept: bytes) -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "numbers", accept, items=200)
        await asked.task
        assert (asked.status, asked.headers[b"content-type"]) == (200, b"application/json")
        assert asked.headers[b"content-length"] == str(len(asked.text)).encode()
        assert json.loads(asked.text) == list(range(200))
        asked = client(gateway, "failing", accept, items=3)
        await asked.task
        assert asked.status == 500
        assert json.loads(asked.text)["exception"] == "ValueError"

    run(main)


def test_guarantee_5_an_idempotency_key_holds_for_an_array() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        for _ in range(2):
            key = (b"idempotency-key", b"k")
            asked = Client(gateway, "/objects/Feed/a/numbers", {"items": 3}, key)
            await asked.task
            assert json.loads(asked.text) == [0, 1, 2]
        assert await host.get(Feed, "a").value.remote() == 3
        asked = Client(gateway, "/objects/Feed/a/numbers", {"items": 4}, key)
        await asked.task
        assert asked.status == 422

    run(main)


def test_guarantee_5_the_events_of_a_key_come_once() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        headers = ((b"idempotency-key", b"k"), (b"accept", TO_EVENTS))
        asked = Client(gateway, "/objects/Feed/a/numbers", {"items": 3}, *headers)
        await asked.task
        assert asked.events[-1] == ("end", {"items": 3})
        again = Client(gateway, "/objects/Feed/a/numbers", {"items": 3}, *headers)
        await again.task
        assert again.status == 410
        assert "has taken effect" in json.loads(again.text)["detail"]
        assert await host.get(Feed, "a").value.remote() == 3

    run(main)


@pytest.mark.parametrize("accept", [TO_EVENTS, b"*/*"], ids=["events", "array"])
@pytest.mark.parametrize("way", ["disconnect", "cancel"])
def test_a_client_that_goes_away_closes_the_stream(accept: bytes, way: str) -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "numbers", accept, items=3, wait=True)
        await EVENTS["waits"].wait()
        if accept == TO_EVENTS:
            await until(lambda: len(asked.events) == 3)
        if way == "disconnect":
            asked.leave.set()
        else:
            asked.task.cancel()
        await asyncio.wait({asked.task})
        assert await host.get(Feed, "a").value.remote() == 0
        assert SAID == ["CancelledError"]

    run(main)


def test_a_client_that_goes_away_before_it_begins() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        first = client(gateway, "numbers", TO_EVENTS, items=1, wait=True)
        await EVENTS["waits"].wait()
        second = client(gateway, "numbers", TO_EVENTS, items=1, wait=True)
        for _ in range(20):
            await asyncio.sleep(0)
        second.task.cancel()
        await asyncio.wait({second.task})
        del second
        first.leave.set()
        await first.task
        assert await host.get(Feed, "a").value.remote() == 0
        assert len(SAID) == 2

    run(main)


def test_a_client_that_does_not_read_holds_the_method_up() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "numbers", TO_EVENTS, items=100_000)
        await until(lambda: len(asked.events) > 10)
        asked.reads.clear()
        for _ in range(500):
            await asyncio.sleep(0)
        sent = len(asked.events)
        asked.leave.set()
        asked.reads.set()
        await asked.task
        assert len(asked.events) - sent <= 3 * STREAM_ITEMS_AHEAD_MAX
        assert await host.get(Feed, "a").value.remote() == 0

    run(main)


def test_a_silent_stream_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENT_PING_S", 0.01)

    async def main(gateway: Gateway, host: LocalHost) -> None:
        asked = client(gateway, "numbers", TO_EVENTS, items=1, wait=True)
        await until(lambda: asked.text.count(": ping\n\n") == 3)
        EVENTS["go"].set()
        await asked.task
        assert asked.events == [("message", 0), ("end", {"items": 1})]

    run(main)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"application/json, text/event-stream", True),
        (b"text/event-stream;q=0.0", False),
        (b"text/event-streams", False),
        (b"text/*", False),
        (b"*/*", False),
        (b"", False),
    ],
)
def test_who_wants_events(accept: bytes, wanted: bool) -> None:
    assert events.wants_events(accept) is wanted


def test_both_ways_are_documented() -> None:
    EVENTS.clear()
    paths = document([describe(Feed)])["paths"]
    operation = paths["/objects/Feed/{name}/numbers"]["post"]
    content = operation["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {
        "type": "array",
        "items": {"type": "integer"},
    }
    assert content["text/event-stream"]["schema"]["type"] == "string"
    texts = paths["/objects/Feed/{name}/texts"]["post"]["responses"]["200"]["content"]
    assert texts["application/json"]["schema"]["items"] == {"type": "string"}
    value = paths["/objects/Feed/{name}/value"]["post"]["responses"]["200"]["content"]
    assert value == {"application/json": {"schema": {"type": "integer"}}}
