"""Mistakes in the code of a method are the method's, not its caller's: a MethodError, status 500,
and a line in the log. What a method refuses by raising InvalidCall is the caller's."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
import ray

import rayobjects as ro
from rayobjects.testing import LocalHost

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
        ("waits_in_the_loop", "`await` the response"),
        ("lists_in_the_loop", "list_async"),
        ("plans_what_it_calls", "pass one of its own"),
        ("passes_a_lock", "cannot be pickled"),
        ("passes_a_reference", "pass the value, which `await ref` or ray.get(ref) brings"),
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
        ("returns_a_lock", "lock"),
    ],
)
def test_in_what_it_leaves_behind(method: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    error = call(method)
    assert isinstance(error, ro.InvalidCall)
    assert error.status == 500
    assert says in error.message
    assert error.message in caplog.text


@pytest.mark.parametrize("method", ["refuses", "asks_what_is_refused"])
def test_what_is_refused(method: str, caplog: pytest.LogCaptureFixture) -> None:
    error = call(method)
    assert isinstance(error, ro.InvalidCall)
    assert (error.status, error.message) == (422, "not today")
    assert not caplog.records


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
