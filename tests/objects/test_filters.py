"""Filters around calls: where they run, in which order, and that they belong to the call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.objects import filters as module
from rayobjects.testing import LocalHost, LocalStub

Seen = list[tuple[Any, ...]]


class Ledger(ro.DurableObject):
    total: int = ro.durable(0)
    notes: list[str] = ro.durable(factory=list)

    def add(self, by: int, /, *others: int, note: str = "none", **more: int) -> int:
        self.total += by + sum(others) + sum(more.values())
        self.notes.append(note)
        return self.total

    async def add_to(self, name: str, by: int) -> int:
        return int(await ro.namespace("Ledger").get(name).add.remote(by))

    def tell(self, name: str, by: int) -> None:
        ro.namespace("Ledger").get(name).add.tell(by)

    def plan(self) -> None:
        self.schedule(self.add, 7, after=timedelta(seconds=5))

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            self.total += 1
            yield number

    @ro.blocking
    def plain_count(self, to: int) -> Iterator[int]:
        yield from range(to)

    def tenant(self) -> str:
        return ro.context().get("tenant", "")

    @ro.blocking
    def compute(self, by: int) -> int:
        self.total += by
        return self.total

    @ro.concurrent
    async def look(self) -> int:
        return self.total

    def on_connect(self, ws: ro.WebSocket) -> None:
        ws.send("welcome")

    def on_message(self, ws: ro.WebSocket, data: str) -> None:
        self.notes.append(data)
        ws.send(f"heard {data}")

    def on_request(self, request: ro.Request) -> str:
        return "answered"


def run(filters: list[Any], test: Callable[[LocalHost, LocalStub], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost([Ledger], filters=filters) as host:
            await test(host, host.get(Ledger, "a"))

    asyncio.run(main())


def noting(seen: Seen) -> ro.Filter:
    async def note(call: ro.MethodCall, proceed: Any) -> Any:
        seen.append((call.kind, str(call.id), call.method))
        return await proceed()

    return note


async def total_is(host: LocalHost, name: str, total: int) -> None:
    async with asyncio.timeout(10):
        while True:
            state = await host.state(host.get(Ledger, name))
            if state["attributes"].get("total") == total:
                return


def test_around_every_kind_of_call() -> None:
    seen: Seen = []

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await a.add.remote(1) == 1
        assert await host.post(a, "add", {"by": 2}) == 3
        assert await a.add_to.remote("b", 4) == 4
        await a.tell.remote("c", 5)
        await total_is(host, "c", 5)
        await a.plan.remote()
        await host.move(6)
        await total_is(host, "a", 10)
        socket = await host.connect(a)
        await socket.send("hello")
        assert socket.received == ["welcome", "heard hello"]
        await socket.close()
        assert (await host.fetch(a)).body == b"answered"
        assert await a.compute.remote(5) == 15
        assert await a.look.remote() == 15
        assert await a.delete()  # the runtime's own

    run([noting(seen)], test)
    assert sorted(seen) == sorted(
        [
            ("stub", "Ledger/a", "add"),
            ("http", "Ledger/a", "add"),
            ("stub", "Ledger/a", "add_to"),
            ("stub", "Ledger/b", "add"),
            ("stub", "Ledger/a", "tell"),
            ("stub", "Ledger/c", "add"),
            ("stub", "Ledger/a", "plan"),
            ("schedule", "Ledger/a", "add"),
            ("socket", "Ledger/a", "on_connect"),
            ("socket", "Ledger/a", "on_message"),
            ("socket", "Ledger/a", "on_close"),
            ("request", "Ledger/a", "on_request"),
            ("stub", "Ledger/a", "compute"),
            ("stub", "Ledger/a", "look"),
        ]
    )


def test_their_order_and_the_result() -> None:
    seen: list[str] = []

    def named(name: str, add: int) -> ro.Filter:
        async def around(call: ro.MethodCall, proceed: Any) -> Any:
            seen.append(f"{name} in")
            result = await proceed() + add
            seen.append(f"{name} out")
            return result

        return around

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await a.add.remote(1) == 111

    run([named("first", 10), named("second", 100)], test)
    assert seen == ["first in", "second in", "second out", "first out"]


def test_arguments_are_bound_and_may_be_replaced() -> None:
    seen: list[dict[str, Any]] = []

    async def double(call: ro.MethodCall, proceed: Any) -> Any:
        if call.method == "add":
            seen.append(dict(call.arguments))
            call.arguments["by"] *= 2
            call.arguments["note"] = call.arguments["note"].upper()
        return await proceed()

    async def replace(call: ro.MethodCall, proceed: Any) -> Any:
        if call.method == "add" and call.arguments["note"] == "REPLACE":
            call.arguments = {"by": 1_000}
        return await proceed()

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await a.add.remote(1, 2, 3, note="x", z=4) == 2 + 2 + 3 + 4
        assert await host.post(a, "add", {"by": 10, "z": 5}) == 11 + 20 + 5
        assert await a.add.remote(1, note="replace") == 36 + 1_000
        assert (await host.state(a))["attributes"]["notes"] == ["X", "NONE", "none"]

    run([double, replace], test)
    assert seen[:2] == [
        {"by": 1, "others": (2, 3), "note": "x", "more": {"z": 4}},
        {"by": 10, "others": (), "note": "none", "more": {"z": 5}},
    ]


def test_what_it_writes_is_the_calls_and_what_it_raises_rolls_back() -> None:
    async def count(call: ro.MethodCall, proceed: Any) -> Any:
        call.instance.notes.append(f"before {call.method}")
        result = await proceed()
        if result == 13:
            raise ValueError("unlucky")
        return result

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await a.add.remote(12) == 12
        with pytest.raises(ro.MethodError, match=r"Ledger/a\.add raised ValueError: unlucky"):
            await a.add.remote(1)
        await host.crash()
        attributes = (await host.state(a))["attributes"]
        assert attributes == {"total": 12, "notes": ["before add", "none"]}

    run([count], test)


def test_guarantee_5_a_repetition_runs_neither_filter_nor_method() -> None:
    seen: Seen = []

    async def test(host: LocalHost, a: LocalStub) -> None:
        for _ in range(3):
            assert await host.post(a, "add", {"by": 1}, idempotency_key="k") == 1
            await host.crash()
        assert len(seen) == 1

    run([noting(seen)], test)


def test_it_may_answer_by_itself_and_refuse() -> None:
    async def guard(call: ro.MethodCall, proceed: Any) -> Any:
        if call.kind == "http":
            return {"cached": True}
        if call.kind in ("request", "socket"):
            raise ro.InvalidCall("not for you", status=403)
        return await proceed()

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await host.post(a, "add", {"by": 1}) == {"cached": True}
        for refused in (lambda: host.fetch(a), lambda: host.connect(a)):
            with pytest.raises(ro.InvalidCall, match="not for you") as raised:
                await refused()
            assert raised.value.status == 403
        assert await a.add.remote(1) == 1

    run([guard], test)


def test_streams() -> None:
    """A filter gets the generator, and may put another in its place."""

    async def double(call: ro.MethodCall, proceed: Any) -> Any:
        items = await proceed()
        if call.method != "count":
            return items
        call.instance.notes.append(str(call.arguments["to"]))
        return doubled(items)

    async def doubled(items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item * 2

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert [item async for item in a.count.remote(3)] == [0, 2, 4]
        assert await host.post(a, "count", {"to": 2}) == [0, 2]
        assert [item async for item in a.plain_count.remote(3)] == [0, 1, 2]
        attributes = (await host.state(a))["attributes"]
        assert attributes == {"total": 5, "notes": ["3", "2"]}

    run([double], test)


def test_concurrent_methods() -> None:
    """A filter gets what the method gets: to write, it takes the turn."""

    async def count(call: ro.MethodCall, proceed: Any) -> Any:
        if call.method == "look":
            async with call.instance.turn():
                call.instance.total += 10
        return await proceed()

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await a.look.remote() == 10
        await host.crash()
        assert await a.look.remote() == 20

    run([count], test)


class Quiet(ro.DurableObject):
    def on_message(self, ws: ro.WebSocket, data: str) -> None: ...


def test_sockets_of_a_class_without_on_connect() -> None:
    async def guard(call: ro.MethodCall, proceed: Any) -> Any:
        if call.method == "on_connect":
            ws = call.arguments["ws"]
            if ws.query.get("key") != "open sesame":
                ws.close(4001, "no")
                return None
        return await proceed()

    async def main() -> None:
        async with LocalHost([Quiet], filters=[guard]) as host:
            quiet = host.get(Quiet, "q")
            with pytest.raises(ro.InvalidCall, match="no"):
                await host.connect(quiet)
            socket = await host.connect(quiet, query={"key": "open sesame"})
            await socket.send("hello")
            await socket.close()

    asyncio.run(main())


def test_the_context_is_read_and_changed() -> None:
    async def stamp(call: ro.MethodCall, proceed: Any) -> Any:
        call.context.setdefault("tenant", f"of {call.id.name}")
        return await proceed()

    async def block(call: ro.MethodCall, proceed: Any) -> Any:
        if call.context["tenant"] != "narrow":
            return await proceed()
        with ro.request_context(tenant="inner"):
            return await proceed()

    async def test(host: LocalHost, a: LocalStub) -> None:
        assert await a.tenant.remote() == "of a"
        with ro.request_context(tenant="given"):
            assert await a.tenant.remote() == "given"
        with ro.request_context(tenant="narrow"):
            assert await a.tenant.remote() == "inner"
            assert dict(ro.context()) == {"tenant": "narrow"}

    run([stamp, block], test)


def test_who_calls() -> None:
    callers: list[str] = []

    async def note(call: ro.MethodCall, proceed: Any) -> Any:
        callers.append(call.caller)
        return await proceed()

    async def test(host: LocalHost, a: LocalStub) -> None:
        await a.add_to.remote("b", 1)

    run([note], test)
    assert callers == ["", "Ledger/a"]


async def _twice(call: ro.MethodCall, proceed: Any) -> Any:
    await proceed()
    return await proceed()


async def _odd_argument(call: ro.MethodCall, proceed: Any) -> Any:
    call.arguments["odd"] = 1
    return await proceed()


async def _large(call: ro.MethodCall, proceed: Any) -> Any:
    call.context["large"] = "x" * 10_000
    return await proceed()


async def _arguments(call: ro.MethodCall, proceed: Any) -> Any:
    assert call.arguments
    return await proceed()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_twice, "RuntimeError: a filter may go on with a call once"),
        (_odd_argument, "a filter gave Ledger/a.add_to the argument 'odd'"),
        (_large, "the request context has at most"),
        (module.refusing(ro.InvalidCall("filters do not load", status=500)), "do not load"),
    ],
)
def test_mistakes_of_filters(broken: Any, message: str) -> None:
    async def test(host: LocalHost, a: LocalStub) -> None:
        with pytest.raises(ro.RayObjectsError, match=message):
            await a.add_to.remote("b", 1)
        assert "b" not in await host.list(Ledger)

    run([broken], test)


@pytest.mark.parametrize("filters", [[_arguments], []])
def test_mistakes_of_callers_are_theirs(filters: list[Any]) -> None:
    async def test(host: LocalHost, a: LocalStub) -> None:
        with pytest.raises(ro.InvalidCall, match=r"Ledger/a\.tell.*missing .* argument"):
            await a.tell.remote("b")
        with pytest.raises(ro.InvalidCall, match="wrong arguments"):
            await host.post(a, "tell", {"name": "b"})

    run(filters, test)


class Stamp:
    """A filter that is an object."""

    async def __call__(self, call: ro.MethodCall, proceed: Any) -> Any:
        return await proceed()


class Failing(ro.DurableObject):
    async def fail(self) -> None:
        self._inside()

    def fail_plainly(self) -> None:
        self._inside()

    @ro.blocking
    def fail_on_a_thread(self) -> None:
        self._inside()

    @ro.concurrent
    async def fail_beside(self) -> None:
        self._inside()

    async def fail_in_a_stream(self) -> AsyncIterator[int]:
        yield 1
        self._inside()

    def _inside(self) -> None:
        raise ValueError("no")


async def _plain(call: ro.MethodCall, proceed: Any) -> Any:
    return await proceed()


async def _raising(call: ro.MethodCall, proceed: Any) -> Any:
    raise ValueError("no")


async def drained(failing: LocalStub) -> None:
    async for _ in failing.fail_in_a_stream.remote():
        pass


def frames_of(error: ro.RayObjectsError) -> list[str]:
    assert isinstance(error, ro.MethodError)
    return [line.split(", in ")[1] for line in error.traceback.splitlines() if ", in " in line]


@pytest.mark.parametrize("filters", [[_plain, Stamp()], []])
@pytest.mark.parametrize(
    "method", ["fail", "fail_plainly", "fail_on_a_thread", "fail_beside", "fail_in_a_stream"]
)
def test_tracebacks_begin_with_the_method(filters: list[Any], method: str) -> None:
    async def main() -> None:
        async with LocalHost([Failing], filters=filters) as host:
            failing = host.get(Failing, "f")
            ended = drained(failing) if method == "fail_in_a_stream" else None
            with pytest.raises(ro.MethodError) as raised:
                await (ended or getattr(failing, method).remote())
            assert frames_of(raised.value) == [method, "_inside"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("filters", "frames"),
    [([_plain, _raising], ["_raising"]), ([_twice], ["_twice", "proceed"])],
)
def test_tracebacks_of_what_filters_raise(filters: list[Any], frames: list[str]) -> None:
    async def test(host: LocalHost, a: LocalStub) -> None:
        with pytest.raises(ro.MethodError) as raised:
            await a.look.remote()
        assert frames_of(raised.value) == frames

    run(filters, test)


async def _one(call: ro.MethodCall) -> None: ...


def test_what_a_filter_is() -> None:
    assert len(module.check([_twice, Stamp()])) == 2
    for wrong in (print, lambda call, proceed: proceed(), 1, Stamp, _one):
        with pytest.raises(ro.InvalidCall, match="is no filter"):
            module.check([wrong])


def test_without_filters_calls_stay_on_the_short_path() -> None:
    async def test(host: LocalHost, a: LocalStub) -> None:
        assert host.core is not None
        assert host.core.filters is None
        assert await a.add.remote(1) == 1

    run([], test)
