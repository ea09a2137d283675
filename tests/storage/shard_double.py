"""What tests of the shard share: a loop that runs when told to, a clock, short records."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.storage.files import Files
from rayobjects.storage.records import DELETED, ITEM, JSON, Record
from rayobjects.storage.shard import Shard

T = TypeVar("T")
ROOM = ObjectId("Room", "lobby")


class Hands:
    """A clock and a loop that move when the test says so."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.tasks: deque[Callable[[], None]] = deque()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def soon(self, task: Callable[[], None]) -> None:
        self.tasks.append(task)

    def run(self) -> None:
        while self.tasks:
            self.tasks.popleft()()


class Driver:
    """A shard without threads, with what it has answered."""

    def __init__(self, files: Files | str, hands: Hands | None = None, **options: Any) -> None:
        self.hands = hands or Hands()
        self.answers: list[tuple[StorageFailed | None, int]] = []
        self.shard = Shard.open(
            files,
            "default-0000",
            clock=self.hands,
            soon=self.hands.soon,
            post=self.hands.soon,
            threads=False,
            **options,
        )

    def done(self, error: StorageFailed | None, sequence: int) -> None:
        self.answers.append((error, sequence))

    def put(self, name: str = "lobby", /, **items: int | None) -> None:
        """Commits one record of writes and lets the loop run."""
        self.shard.commit(record(name, **items), self.done)
        self.hands.run()

    def items(self, name: str = "lobby") -> dict[str, int]:
        loaded = now(self.shard.load(ObjectId("Room", name)))
        assert loaded.whole
        return {key[1:]: int(data) for key, (_, data) in loaded.entries.items()}

    def items_error(self) -> StorageFailed | None:
        try:
            self.items()
        except StorageFailed as error:
            return error
        return None

    def fold(self) -> None:
        now(self.shard.fold())


def record(name: str = "lobby", /, *, call_id: str = "", **items: int | None) -> Record:
    writes = [
        (ITEM + key, DELETED if value is None else JSON, b"" if value is None else b"%d" % value)
        for key, value in items.items()
    ]
    return Record("Room", name, call_id=call_id, writes=writes, finished_at=1_000_000.0)


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs what does not wait."""
    return asyncio.run(coroutine)
