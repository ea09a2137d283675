"""The request context: what travels with a call, and with all that comes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.limits import CONTEXT_BYTES_MAX, CONTEXT_ENTRIES_MAX
from rayobjects.messages import Call, encode
from rayobjects.objects import carried
from rayobjects.testing import LocalHost

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def seen() -> dict[str, Any]:
    context = ro.context()
    return {"values": dict(context), "caller": context.caller, "trace_id": context.trace_id}


class Witness(ro.DurableObject):
    seen: list[dict[str, Any]] = ro.durable(factory=list)

    def look(self) -> dict[str, Any]:
        self.seen.append(seen())
        return self.seen[-1]

    async def ask(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return seen(), await ro.namespace("Witness").get(name).look.remote()

    async def ask_with(self, name: str, **values: str) -> list[dict[str, Any]]:
        other = ro.namespace("Witness").get(name)
        before = await other.look.remote()
        with ro.request_context(values) as inside:
            assert inside == ro.context()
            within = await other.look.remote()
        return [before, within, await other.look.remote(), seen()]

    async def ask_both(self, name: str) -> list[dict[str, Any]]:
        """Each task has a block of its own."""

        async def one(value: str) -> dict[str, Any]:
            with ro.request_context(part=value):
                await asyncio.sleep(0)
                return await ro.namespace("Witness").get(name).look.remote()

        return list(await asyncio.gather(one("a"), one("b")))

    def tell(self, name: str) -> dict[str, Any]:
        ro.namespace("Witness").get(name).look.tell()
        return seen()

    def plan(self) -> dict[str, Any]:
        self.schedule(self.look, after=timedelta(seconds=10))
        return seen()

    def listed(self) -> list[dict[str, Any]]:
        return self.seen


def on_a_host(test: Callable[[LocalHost], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost([Witness]) as host:
            await test(host)

    asyncio.run(main())


async def told(host: LocalHost, name: str) -> dict[str, Any]:
    """What a witness has seen, as soon as it has seen something."""
    async with asyncio.timeout(10):
        while True:
            found = await host.get(Witness, name).listed.remote()
            if found:
                return found[0]


def test_nothing_by_default() -> None:
    async def test(host: LocalHost) -> None:
        found = await host.get(Witness, "a").look.remote()
        assert (found["values"], found["caller"]) == ({}, "")
        assert found["trace_id"]  # the id of the call itself

    assert seen() == {"values": {}, "caller": "", "trace_id": ""}
    assert Call(0, "", "", "", 0, b"").context is None
    assert len(encode(Call(0, "", "", "", 0, b""))) < 36
    on_a_host(test)


def test_a_clients_block() -> None:
    async def test(host: LocalHost) -> None:
        a = host.get(Witness, "a")
        with ro.request_context({"x-y": "1"}, tenant="acme"):
            with ro.request_context(tenant="other"):
                assert (await a.look.remote())["values"] == {"x-y": "1", "tenant": "other"}
            found, child = await a.ask.remote("b")
        assert found["values"] == child["values"] == {"x-y": "1", "tenant": "acme"}
        assert (found["caller"], child["caller"]) == ("", "Witness/a")
        assert found["trace_id"] == child["trace_id"] != ""
        assert (await a.look.remote())["values"] == {}

    on_a_host(test)


def test_a_block_in_a_method() -> None:
    async def test(host: LocalHost) -> None:
        with ro.request_context(tenant="acme"):
            before, within, after, own = await host.get(Witness, "a").ask_with.remote("b", k="v")
        assert before["values"] == after["values"] == own["values"] == {"tenant": "acme"}
        assert within["values"] == {"tenant": "acme", "k": "v"}
        both = await host.get(Witness, "a").ask_both.remote("b")
        assert sorted(found["values"]["part"] for found in both) == ["a", "b"]

    on_a_host(test)


def test_a_named_client() -> None:
    async def test(host: LocalHost) -> None:
        carried.name_client("billing")
        try:
            assert seen()["caller"] == "billing"
            with ro.request_context(tenant="acme"):
                found, child = await host.get(Witness, "a").ask.remote("b")
        finally:
            carried.name_client("")
        assert (found["caller"], found["values"]) == ("billing", {"tenant": "acme"})
        assert child["caller"] == "Witness/a"

    on_a_host(test)


def test_told_messages_across_a_crash() -> None:
    async def test(host: LocalHost) -> None:
        with ro.request_context(tenant="acme"):
            sent = await host.get(Witness, "a").tell.remote("b")
        await host.crash()
        found = await told(host, "b")
        assert found["values"] == {"tenant": "acme"}
        assert found["caller"] == "Witness/a"
        assert found["trace_id"] == sent["trace_id"]

    on_a_host(test)


def test_schedules_as_of_the_planning() -> None:
    async def test(host: LocalHost) -> None:
        a = host.get(Witness, "a")
        with ro.request_context(tenant="acme", traceparent=PARENT):
            planned = await a.plan.remote()
        assert planned["trace_id"] == PARENT.split("-")[1]
        await host.crash()
        await host.move(11)
        found = await told(host, "a")
        assert found["values"] == {"tenant": "acme", "traceparent": PARENT}
        assert (found["caller"], found["trace_id"]) == ("Witness/a", planned["trace_id"])

    on_a_host(test)


class Slow(ro.DurableObject):
    async def through(self) -> dict[str, Any]:
        await ro.namespace("Gate").get("gate").enter.remote()
        await asyncio.sleep(0)
        return (await ro.namespace("Witness").get("end").look.remote()) | {"own": seen()}


class Gate(ro.DurableObject):
    open = False
    entered: asyncio.Event

    async def enter(self) -> None:
        self.entered.set()
        if not self.open:
            await asyncio.sleep(3600)


def test_calls_that_are_run_again() -> None:
    """A crash cuts a call off: its host runs it again, with what it carried."""

    async def main() -> None:
        Gate.entered = asyncio.Event()
        async with LocalHost([Slow, Gate, Witness]) as host:
            with ro.request_context(tenant="acme"):
                call = asyncio.ensure_future(_result(host))
            await asyncio.wait_for(Gate.entered.wait(), 10)
            Gate.open = True
            await host.kill()
            found = await told(host, "end")
            assert found["values"] == {"tenant": "acme"}
            assert found["caller"] == "Slow/s"
            assert (await call)["own"]["trace_id"] == found["trace_id"]

    async def _result(host: LocalHost) -> dict[str, Any]:
        return await host.get(Slow, "s").through.remote()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caller": "me"}, "caller is known by itself"),
        ({"trace_id": "1"}, "trace_id is known by itself"),
        ({"n": 1}, "texts only, and 'n' is a int"),
        ({"traceparent": "00-1-2-3"}, "is no traceparent"),
        ({"k": "\ud800"}, "not UTF-8"),
        ({"k": "x" * CONTEXT_BYTES_MAX}, "at most 64 entries and 8,192 bytes, this one 1"),
        ({str(n): "" for n in range(CONTEXT_ENTRIES_MAX + 1)}, "at most 64 entries"),
    ],
)
def test_mistakes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ro.InvalidCall, match=message), ro.request_context(values):
        pass


def test_headers() -> None:
    headers = {
        b"traceparent": PARENT.encode(),
        b"tracestate": b"vendor=1",
        b"baggage": b"tenant = acme%20inc;p=1, caller=me,bad,trace_id=x,user=Zo%C3%AB",
        b"x-request-id": b"r-1",
    }
    assert carried.from_headers(headers) == {
        "traceparent": PARENT,
        "tracestate": "vendor=1",
        "tenant": "acme inc",
        "user": "Zoë",
        "request_id": "r-1",
    }
    malformed = {b"traceparent": b"00-xyz", b"tracestate": b"vendor=1", b"baggage": b",;=,"}
    assert carried.from_headers(malformed) is None
    zeros = b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"
    assert carried.from_headers({b"traceparent": zeros}) is None
    with pytest.raises(ro.InvalidCall) as refused:
        carried.from_headers({b"baggage": b"k=" + b"x" * CONTEXT_BYTES_MAX})
    assert refused.value.status == 431
