"""Classes that the tests of the guarantees share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import rayobjects as ro
from rayobjects.testing import LocalStub

T = TypeVar("T")


class Counter(ro.DurableObject):
    """Counts, and says what it was told."""

    count: int = ro.durable(0)
    log: list[str] = ro.durable(factory=list)
    runs = 0  # plain: how often a method ran in this activation

    def increment(self, by: int = 1) -> int:
        self.runs += 1
        self.count += by
        return self.count

    def read(self) -> int:
        return self.count

    def ran(self) -> int:
        return self.runs

    def append(self, text: str) -> int:
        self.log.append(text)
        return len(self.log)

    def entries(self) -> list[str]:
        return self.log

    def fail(self, text: str = "no") -> None:
        self.count += 1_000
        self.log.append("never")
        self.storage["never"] = 1
        for socket in self.sockets:
            socket.send("never")
            socket.attachment = "never"
        raise ValueError(text)

    def put(self, key: str, value: Any) -> None:
        self.storage[key] = value

    def take(self, key: str) -> Any:
        return self.storage.get(key)

    def keys(self) -> list[str]:
        return list(self.storage)

    async def wait(self, name: str) -> int:
        """Waits for the test to open a gate, then counts."""
        GATES.reached(name)
        await GATES[name].wait()
        self.count += 1
        return self.count


class Gates(dict[str, asyncio.Event]):
    """Where methods wait for their test."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, asyncio.Event] = {}

    def __missing__(self, name: str) -> asyncio.Event:
        event = self[name] = asyncio.Event()
        return event

    def reached(self, name: str) -> None:
        self.at.setdefault(name, asyncio.Event()).set()

    async def until_reached(self, name: str) -> None:
        await asyncio.wait_for(self.at.setdefault(name, asyncio.Event()).wait(), 30)

    def __reduce__(self) -> str:
        return "GATES"  # classes that use it are pickled when they are deployed

    def reset(self) -> None:
        self.clear()
        self.at.clear()


GATES = Gates()


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Runs a test's coroutine, with fresh gates."""
    GATES.reset()

    async def timed() -> T:
        return await asyncio.wait_for(main(), 60)

    return asyncio.run(timed())


async def ticks(count: int = 20) -> None:
    """Lets everything run that does not wait."""
    for _ in range(count):
        await asyncio.sleep(0)


async def increments(stub: LocalStub, count: int) -> list[int]:
    return list(await asyncio.gather(*(stub.increment.remote() for _ in range(count))))


async def until(condition: Callable[[], object]) -> None:
    """Lets everything run until something is so."""
    while not condition():  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(0)
