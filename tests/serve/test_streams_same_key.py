"""One Idempotency-Key that asks for a stream several times, as events and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from test_streams_http import EVENTS, TO_EVENTS, Client, HostRouter, until

import rayobjects as ro
from rayobjects.serve.gateway import Gateway
from rayobjects.testing import LocalHost

KEY = (b"idempotency-key", b"order-17")
AS_EVENTS = (b"accept", TO_EVENTS)


class Tidy(ro.DurableObject):
    count: int = ro.durable(0)

    async def numbers(self) -> AsyncIterator[int]:
        try:
            yield 1
            EVENTS["waits"].set()
            await EVENTS["go"].wait()
            self.count += 1
            yield 2
        finally:
            EVENTS["ends"].set()
            await EVENTS["tidied"].wait()

    async def nothing(self) -> AsyncIterator[int]:
        self.count += 1
        for _ in ():
            yield 1

    def value(self) -> int:
        return self.count


def run(main: Callable[[Gateway, LocalHost], Coroutine[Any, Any, None]]) -> None:
    EVENTS.clear()

    async def timed() -> None:
        async with asyncio.timeout(20), LocalHost([Tidy]) as host:
            await main(Gateway(HostRouter(host)), host)

    asyncio.run(timed())


def numbers(gateway: Gateway, *headers: tuple[bytes, bytes]) -> Client:
    return Client(gateway, "/objects/Tidy/a/numbers", {}, KEY, *headers)


def test_events_then_json() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        events = numbers(gateway, AS_EVENTS)
        await until(lambda: events.events)
        as_json = numbers(gateway)
        EVENTS["tidied"].set()
        await until(lambda: len(events.events) == 2)
        assert events.events[1][1]["status"] == 503, "the later one reads it"
        EVENTS["go"].set()
        await as_json.task
        assert (as_json.status, as_json.text) == (200, "[1,2]")
        assert await host.get(Tidy, "a").value.remote() == 1

    run(main)


def test_events_of_nothing_then_json() -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        for headers, text in (((AS_EVENTS,), '"items":0'), ((), "[]")):
            client = Client(gateway, "/objects/Tidy/a/nothing", {}, KEY, *headers)
            await client.task
            assert client.status == 200
            assert text in client.text
        assert await host.get(Tidy, "a").value.remote() == 1

    run(main)


@pytest.mark.parametrize("retried", ["before", "while it ends"])
def test_json_whose_client_goes_and_asks_again(retried: str) -> None:
    async def main(gateway: Gateway, host: LocalHost) -> None:
        first = numbers(gateway)
        await EVENTS["waits"].wait()
        if retried == "before":
            second = numbers(gateway)
            await until(lambda: is_shared(host))
            first.leave.set()
            await first.task
            EVENTS["go"].set()
        else:
            first.leave.set()
            await EVENTS["ends"].wait()
            second = numbers(gateway)
            EVENTS["go"].set()
        EVENTS["tidied"].set()
        await second.task
        assert (second.status, second.text) == (200, "[1,2]")
        assert await host.get(Tidy, "a").value.remote() == 1

    run(main)


def is_shared(host: LocalHost) -> bool:
    assert host.core is not None
    return any(host.core.is_shared(key) for key in host.core._by_id)
