"""Mistakes in the code of a method are the method's, not its caller's: a MethodError, status 500,
and a line in the log. What a method refuses by raising InvalidCall is the caller's."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from datetime import datetime
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import rayobjects as ro
from rayobjects.messages import PICKLE, encode_json
from rayobjects.objects.response import Response
from rayobjects.runtime.stubs import Stub
from rayobjects.storage.values import dump
from rayobjects.testing import LocalHost, LocalResponse, LocalStub

REFERENCE = ray.ObjectRef.from_random()


class Mistaken(ro.DurableObject):
    kept: list[Any] = ro.durable(factory=list)

    async def forgot_remote(self) -> None:
        await ro.namespace("Mistaken").get("other").fine()

    async def waits_in_the_loop(self) -> None:
        ro.namespace("Mistaken").get("other").fine.remote().result()

    async def lists_in_the_loop(self) -> None:
        ro.namespace("Mistaken").list()

    def keeps_a_lock(self) -> None:
        self.kept.append(threading.Lock())

    def keeps_a_reference(self) -> None:
        self.kept.append({"ref": REFERENCE})

    async def keeps_a_response(self) -> None:
        self.kept.append(ro.namespace("Mistaken").get("other").fine.remote())

    async def returns_a_response(self) -> Any:
        return ro.namespace("Mistaken").get("other").fine.remote()

    async def passes_a_response(self) -> None:
        other = ro.namespace("Mistaken").get("other")
        await other.take.remote([other.fine.remote()])

    def returns_a_stub(self) -> Any:
        return {"at": ro.namespace("Mistaken").get("other")}

    def returns_a_lock(self) -> Any:
        return threading.Lock()

    def plans_what_it_calls(self) -> None:
        self.schedule(self.fine(), after=1)

    def passes_a_lock(self) -> None:
        ro.namespace("Mistaken").get("other").take.tell(threading.Lock())

    def passes_a_reference(self) -> None:
        ro.namespace("Mistaken").get("other").take.tell([REFERENCE])

    async def asynchronous(self) -> int:
        return 1

    def passes_a_coroutine(self) -> None:
        coroutine = self.asynchronous()
        try:
            ro.namespace("Mistaken").get("other").take.tell(coroutine)
        finally:
            coroutine.close()

    def plans_with_a_lock(self) -> None:
        self.schedule(self.take, threading.Lock(), after=1)

    def keys_by_number(self) -> None:
        self.storage[5] = 1  # type: ignore[index]

    def lists_by_a_bad_limit(self) -> None:
        self.storage.list(limit=-1)

    def plans_without_a_zone(self) -> None:
        self.schedule(self.fine, at=datetime(2026, 1, 1))

    def plans_by_a_bad_cron(self) -> None:
        self.schedule(self.fine, every="often")

    def plans_in_a_bad_zone(self) -> None:
        self.schedule(self.fine, every="* * * * *", zone="Mars")

    def plans_twice(self) -> None:
        self.schedule(self.fine, at=1, after=2)

    def refuses_with_200(self) -> None:
        raise ro.InvalidCall("no", status=200)

    async def calls_no_class(self) -> None:
        await ro.namespace("Walet").get("x").look.remote()

    async def calls_no_method(self) -> None:
        await ro.namespace("Mistaken").get("other").finee.remote()

    async def reads_no_method(self) -> None:
        async for _ in ro.namespace("Mistaken").get("other").finee.remote():
            pass

    async def streams_no_method(self) -> AsyncIterator[int]:
        yield await ro.namespace("Mistaken").get("other").finee.remote()

    async def calls_with_too_much(self) -> None:
        await ro.namespace("Mistaken").get("other").fine.remote(1)

    async def calls_what_calls_no_class(self) -> None:
        await ro.namespace("Mistaken").get("other").calls_no_class.remote()

    @ro.concurrent
    async def calls_no_class_beside(self) -> None:
        await ro.namespace("Walet").get("x").look.remote()

    @ro.blocking
    def calls_no_class_on_a_thread(self) -> None:
        ro.namespace("Walet").get("x").look.remote().result()

    async def catches_no_class(self) -> None:
        try:
            await ro.namespace("Walet").get("x").look.remote()
        except ro.InvalidCall as error:
            raise ro.InvalidCall("no such wallet", status=error.status) from error

    def broadcasts_too_much(self) -> None:
        self.sockets.broadcast("x" * 2_000_000)

    def responds_too_much(self) -> None:
        self.sockets.auto_response("ping", "x" * 2_000_000)

    def plans_what_is_no_method(self) -> None:
        self.schedule(print, after=1)

    def plans_what_it_does_not_have(self) -> None:
        self.schedule("finee", after=1)

    async def asks_what_is_not_there(self) -> None:
        await ro.namespace("Mistaken").get("other").has_nothing.remote()

    def has_nothing(self) -> None:
        raise ro.InvalidCall("nothing here", status=404)

    def refuses(self) -> None:
        raise ro.InvalidCall("not today")

    async def asks_what_is_refused(self) -> None:
        await ro.namespace("Mistaken").get("other").refuses.remote()

    def fine(self) -> int:
        return 1

    def take(self, it: Any) -> None: ...

    def tells_wrongly(self) -> None:
        ro.namespace("Mistaken").get("other").no_such_method.tell(1)


def call(method: str) -> ro.RayObjectsError:
    async def main() -> ro.RayObjectsError:
        async with LocalHost([Mistaken]) as host:
            stub = host.get(Mistaken, "one")
            with pytest.raises(ro.RayObjectsError) as raised:
                await getattr(stub, method).remote()
            assert await stub.fine.remote() == 1
            return raised.value

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("forgot_remote", ".remote("),
        ("waits_in_the_loop", "`await` the response instead (make the method `async def`, or mark"),
        ("lists_in_the_loop", "list_async"),
        ("plans_what_it_calls", "pass one of its own"),
        ("keys_by_number", "a storage key is a string, not int: use str("),
        ("lists_by_a_bad_limit", "limit is a count of keys or None, not -1"),
        ("plans_without_a_zone", "has no time zone"),
        ("plans_by_a_bad_cron", "every='often' is no cron expression"),
        ("plans_in_a_bad_zone", "there is no time zone 'Mars'"),
        ("plans_twice", "exactly one of at=, after= and every=, and at= and after= are given"),
        ("refuses_with_200", "the status of an InvalidCall is 400 to 599, not 200: no"),
        ("calls_no_class", "no class 'Walet' is deployed"),
        ("calls_no_method", "Mistaken has no method 'finee'; it has: "),
        ("reads_no_method", "Mistaken has no method 'finee'; it has: "),
        ("calls_with_too_much", "Mistaken/other.fine: "),
        ("calls_no_class_beside", "no class 'Walet' is deployed"),
        ("calls_no_class_on_a_thread", "no class 'Walet' is deployed"),
        ("broadcasts_too_much", "a WebSocket message has at most 1,048,576 bytes"),
        ("responds_too_much", "an auto response has at most 2,048 bytes"),
        ("plans_what_is_no_method", "Mistaken has no method 'print' to schedule"),
        ("plans_what_it_does_not_have", "Mistaken has no method 'finee' to schedule"),
        ("passes_a_lock", "argument 1 of Mistaken.take cannot be pickled (cannot pickle '_thr"),
        ("plans_with_a_lock", "argument 1 of Mistaken.take cannot be pickled"),
        ("passes_a_reference", "pass the value, which `await ref` or ray.get(ref) brings"),
        ("passes_a_response", "a Response is a result to come: `await` it first"),
        ("passes_a_coroutine", "a coroutine has no value yet: `await` it first"),
    ],
)
def test_in_the_method(method: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    error = call(method)
    assert isinstance(error, ro.MethodError)
    assert error.message.startswith(f"Mistaken/one.{method} raised InvalidCall: ")
    assert says in error.message
    assert f"in {method}" in error.traceback
    assert isinstance(error.cause, ro.InvalidCall)
    assert error.__cause__ is error.cause
    assert error.message in caplog.text


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("keeps_a_lock", "lock"),
        ("keeps_a_reference", "'kept' of Mistaken/one cannot be stored: a Ray ObjectRef cannot"),
        ("keeps_a_response", "'kept' of Mistaken/one cannot be stored: a Response is a result"),
        ("returns_a_lock", "lock"),
        ("returns_a_response", "a Response is a result to come: `await` it first"),
    ],
)
def test_in_what_it_leaves_behind(method: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    error = call(method)
    assert isinstance(error, ro.InvalidCall)
    assert error.status == 500
    assert says in error.message
    assert error.message in caplog.text


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("returns_a_response", "no JSON form (a Response is a result to come: `await` it first"),
        ("returns_a_stub", "no JSON form (a stub is for Python code only: return its `.id.name`)"),
    ],
)
def test_what_has_no_json(method: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with LocalHost([Mistaken]) as host:
            with pytest.raises(ro.InvalidCall) as raised:
                await host.post(host.get(Mistaken, "one"), method)
            assert raised.value.status == 500
            assert says in raised.value.message
            assert raised.value.message in caplog.text

    asyncio.run(main())


@pytest.mark.parametrize("of", ["runtime", "testing"])
def test_stubs_and_responses_say_so_themselves(of: str) -> None:
    stub: Any = Stub("Room", "a") if of == "runtime" else LocalStub("Room", "a")
    router: Any = SimpleNamespace(must_not_wait=lambda: True)
    response: Any = (
        Response(router, ("Room", "a", "m"), PICKLE)
        if of == "runtime"
        else LocalResponse(router, "Room/a.m", PICKLE)
    )
    assert repr(stub.m) == "<remote method Room/a.m: call it with .remote(…)>"
    for value, says in ((stub, "its `.id.name`"), (response, "`await` it first")):
        with pytest.raises(TypeError, match=says):
            encode_json([value])
    with pytest.raises(ro.InvalidCall, match=r"^a Response is a result to come"):
        dump((response,))
    with pytest.raises(ro.InvalidCall, match=r"mark it `@ro\.blocking`"):
        response.result()


def test_in_a_method_that_another_one_calls(caplog: pytest.LogCaptureFixture) -> None:
    error = call("calls_what_calls_no_class")
    assert isinstance(error, ro.MethodError)
    assert error.message.startswith("Mistaken/other.calls_no_class raised InvalidCall: no class ")
    assert [each.getMessage() for each in caplog.records] == [error.message]


def test_in_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with LocalHost([Mistaken]) as host:
            says = r"^Mistaken/one\.streams_no_method raised InvalidCall: Mistaken has no method"
            with pytest.raises(ro.MethodError, match=says) as raised:
                async for _ in host.get(Mistaken, "one").streams_no_method.remote():
                    pass
            assert raised.value.message in caplog.text

    asyncio.run(main())


def test_of_the_caller_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with LocalHost([Mistaken]) as host:
            stub: Any = host.get(Mistaken, "one")
            for wrong, status in ((stub.finee.remote(), 404), (stub.fine.remote(1), 422)):
                with pytest.raises(ro.InvalidCall) as raised:
                    await wrong
                assert raised.value.status == status
            with pytest.raises(ro.InvalidCall) as raised:
                await host.post(stub, "finee")
            assert raised.value.status == 404

    asyncio.run(main())
    assert not caplog.records


@pytest.mark.parametrize("way", ["call", "store", "refuse"])
def test_in_on_start(way: str, caplog: pytest.LogCaptureFixture) -> None:
    class Beginning(ro.DurableObject):
        kept: Any = ro.durable(None)

        async def on_start(self) -> None:
            if way == "call":
                await ro.namespace("Walet").get("x").look.remote()
            elif way == "store":
                self.kept = threading.Lock()
            else:
                raise ro.InvalidCall("not today", status=409)

        def look(self) -> None: ...

    async def main() -> ro.RayObjectsError:
        async with LocalHost([Beginning]) as host:
            with pytest.raises(ro.RayObjectsError) as raised:
                await host.get(Beginning, "b").look.remote()
            return raised.value

    error = asyncio.run(main())
    if way == "refuse":
        assert error.status == 409
        assert not caplog.records
        return
    assert error.status == 500
    assert error.message in caplog.text
    if way == "call":
        assert error.message.startswith("Beginning/b.on_start raised InvalidCall: no class 'Walet'")


@pytest.mark.parametrize(
    ("method", "status", "message"),
    [
        ("refuses", 422, "not today"),
        ("asks_what_is_refused", 422, "not today"),
        ("asks_what_is_not_there", 404, "nothing here"),
        ("catches_no_class", 404, "no such wallet"),
    ],
)
def test_what_is_refused(
    method: str, status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = call(method)
    assert isinstance(error, ro.InvalidCall)
    assert (error.status, error.message) == (status, message)
    assert not caplog.records


@pytest.mark.parametrize("stub", [Stub("Room", "a"), LocalStub("Room", "a")])
def test_arguments_that_cannot_be_pickled(stub: Any) -> None:
    lock = threading.Lock()
    for args, keywords, which in (
        ((1, lock), {}, "argument 2"),
        (({"in": [lock]},), {}, "argument 1"),
        ((1,), {"it": lock, "other": 1}, "argument 'it'"),
    ):
        says = rf"^{which} of Room\.set_n cannot be pickled \(.*lock.*\): arguments are plain data"
        with pytest.raises(ro.InvalidCall, match=says):
            stub.set_n.remote(*args, **keywords)
    with pytest.raises(ro.InvalidCall, match=r"^argument 1 of Room\.set_n: a Ray ObjectRef cannot"):
        stub.set_n.remote(REFERENCE)


def test_retries_without_a_number() -> None:
    for wrong in (lambda: 1, "3", True):
        with pytest.raises(TypeError, match=r"as in `@ro\.retries\(3\)`, and 0 for never: not "):
            ro.retries(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600, "409", None, True])
def test_an_error_has_the_status_of_one(status: Any) -> None:
    with pytest.raises(ro.InvalidCall, match="400 to 599, not") as raised:
        ro.InvalidCall("no", status=status)
    assert raised.value.status == 500
    assert ro.InvalidCall("no", status=HTTPStatus.CONFLICT).status == 409


def test_a_message_that_nobody_understands_is_reported_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with LocalHost([Mistaken]) as host:
            await host.get(Mistaken, "one").tells_wrongly.remote()
            while not caplog.records:  # noqa: ASYNC110  (the log has no event)
                await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "rayobjects"):
        asyncio.run(main())
    message = caplog.records[0].getMessage()
    assert message.startswith(
        "Mistaken/one told Mistaken/other.no_such_method, which was refused: "
    )
