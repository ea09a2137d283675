"""Large objects whose storage is read beside the call that changes it: on the lane or on a thread,
while the loop commits. And large arguments, which a record must still have room for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from objects_double import Live, MemoryLedger

import rayobjects as ro
from rayobjects.errors import InvalidCall
from rayobjects.limits import CALL_BYTES_MAX
from rayobjects.messages import SYSTEM, encode_json
from rayobjects.objects.model import DurableObject
from rayobjects.objects.view import CommittedView, view_of
from rayobjects.storage.records import INTENT
from rayobjects.testing import LocalHost
from rayobjects.testing.stubs import send


class Box(DurableObject):
    pass


class Interrupted(MemoryLedger):
    """A ledger between whose answer and its asker something else happens, once."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Any] | None = None

    def _answer(self, answer: Any) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return answer

    def read(self, *args: Any) -> Any:
        return self._answer(super().read(*args))

    def scan(self, *args: Any, **range: Any) -> Any:
        return self._answer(super().scan(*args, **range))

    def count(self, *args: Any) -> Any:
        return self._answer(super().count(*args))


def filled(count: int) -> tuple[Live, Interrupted, Any]:
    """A large object with so many keys, its ledger, and what a concurrent method sees of it."""
    ledger = Interrupted()
    box = Live(Box, ledger)
    box.call(lambda b: b.storage.update({f"{i:05}": i for i in range(count)}))
    box = box.reloaded(whole=False)
    return box, ledger, view_of(box.instance, CommittedView(box.state))


def clear(box: Live) -> None:
    box.call(lambda b: b.storage.clear(), sync=False)


def put(box: Live, key: str, value: Any, *, sync: bool = False) -> None:
    box.call(lambda b: b.storage.__setitem__(key, value), sync=sync)


def exhaust(keys: Iterable[str]) -> None:
    """Walks them; `list(storage)` would ask for the length first."""
    deque(keys, maxlen=0)


@pytest.mark.parametrize("how", ["a page comes late", "a page is asked for late", "a value"])
def test_what_is_written_again_after_a_clear_is_kept(how: str) -> None:
    """Guarantee 4: it equals what the ledger had before the clear, and is no less a change."""
    box, ledger, beside = filled(600)
    keys = iter(beside.storage)
    if how == "a page comes late":
        ledger.meanwhile = lambda: clear(box)
        exhaust(keys)
    elif how == "a page is asked for late":
        next(keys)
        clear(box)
        exhaust(keys)
    else:
        ledger.meanwhile = lambda: clear(box)
        beside.storage.get("00400")
    put(box, "00400", 400)
    assert box.instance.storage["00400"] == 400
    assert box.reloaded().instance.storage.list() == {"00400": 400}


@pytest.mark.parametrize("how", ["a page", "a value"])
def test_an_answer_that_comes_after_a_trim_is_not_remembered(how: str) -> None:
    """Guarantee 4: a task that outlives its call reads while the object comes to rest."""
    box, ledger, beside = filled(600)
    ledger.meanwhile = lambda: put(box, "00007", "new", sync=True)
    if how == "a page":
        exhaust(beside.storage)
    else:
        beside.storage.get("00007")
    assert box.instance.storage["00007"] == "new"
    put(box, "00007", 7)
    assert box.reloaded().instance.storage["00007"] == 7


@pytest.mark.parametrize("unsynced", [0, 1, 100], ids=["none", "few", "many"])
@pytest.mark.parametrize("known", [False, True], ids=["asked", "read before"])
def test_a_count_that_was_overtaken_is_not_kept(unsynced: int, known: bool) -> None:
    box, ledger, beside = filled(300)
    for position in range(unsynced):
        put(box, f"a{position}", 1)
    if known:
        beside.storage.get("b")  # so that the commit need not give the count up
    ledger.meanwhile = lambda: put(box, "b", 1)
    assert len(beside.storage) == 301 + unsynced
    assert len(box.instance.storage) == 301 + unsynced
    ledger.sync()
    assert len(box.instance.storage) == 301 + unsynced


def test_a_count_beside_ends_though_others_keep_committing() -> None:
    box, ledger, beside = filled(300)
    committed = 0

    def again() -> None:
        nonlocal committed
        put(box, f"a{committed}", 1)
        committed += 1
        ledger.meanwhile = again

    ledger.meanwhile = again
    assert 300 <= len(beside.storage) <= 300 + committed
    ledger.meanwhile = None
    assert len(box.instance.storage) == 300 + committed


def test_a_count_is_kept_up_to_date_once_it_was_asked_for() -> None:
    box, ledger, beside = filled(300)
    assert len(beside.storage) == 300
    assert box.instance.storage["00001"] == 1
    box.call(lambda b: b.storage.__delitem__("00001"), sync=False)
    before = ledger.queries
    assert len(beside.storage) == 299
    assert ledger.queries == before


@pytest.mark.parametrize("method", ["clear", "delete_all"])
def test_a_clear_is_written_whatever_was_counted_beside(method: str) -> None:
    box, ledger, beside = filled(1)
    box.call(lambda b: b.storage.__delitem__("00000"))
    ledger.meanwhile = lambda: put(box, "a", 1)
    len(beside.storage)
    box.call(lambda b: getattr(b.storage, method)(), sync=False)
    assert "a" not in box.instance.storage
    assert not box.reloaded().instance.storage


def test_a_clear_asks_nothing_of_the_ledger() -> None:
    box, ledger, _ = filled(300)
    before = ledger.queries
    clear(box)
    assert ledger.queries == before
    clear(box)
    assert not box.changes.clear


def drop(box: Live, *keys: str) -> None:
    def delete(b: Any) -> None:
        for key in keys:
            del b.storage[key]

    box.call(delete, sync=False)


READINGS: dict[str, Callable[[Any], Any]] = {
    "list": lambda storage: list(storage.list()),
    "list backwards": lambda storage: sorted(storage.list(reverse=True)),
    "items": lambda storage: [key for key, _ in storage.items()],
    "values": lambda storage: [f"{value:05}" for value in storage.values()],
    "keys": lambda storage: list(iter(storage)),
}
"""The keys 00000 to 00599 are their values, too."""


@pytest.mark.parametrize("how", READINGS)
def test_what_is_deleted_while_a_page_is_read_is_left_out(how: str) -> None:
    box, ledger, beside = filled(600)
    put(box, "00020", 20)
    ledger.meanwhile = lambda: drop(box, "00010", "00020", "00400")
    found = READINGS[how](beside.storage)
    assert found == [f"{i:05}" for i in range(600) if i not in (10, 20, 400)]


@pytest.mark.parametrize("how", READINGS)
def test_what_is_cleared_while_a_page_is_read_is_left_out(how: str) -> None:
    """But for what the same call has written again."""
    box, ledger, beside = filled(600)
    put(box, "00020", 20)
    drop(box, "00030")

    def refill(b: Any) -> None:
        b.storage.clear()
        b.storage["00400"] = 400

    ledger.meanwhile = lambda: box.call(refill, sync=False)
    assert READINGS[how](beside.storage) == ["00400"]


@pytest.mark.parametrize("how", ["list", "items", "values"])
def test_what_is_deleted_while_its_value_is_read_is_left_out(how: str) -> None:
    """The page has been forgotten by then: the value is a query of its own."""
    box, ledger, beside = filled(600)
    scan, read = ledger.scan, ledger.read

    def forgetful(*args: Any, **range: Any) -> Any:
        page = scan(*args, **range)
        box.state.trim()
        return page

    def overtaken(id: Any, key: str) -> Any:
        if key == "/00400":
            ledger.read = read  # type: ignore[method-assign]
            drop(box, "00400")
            ledger.sync()
        return read(id, key)

    ledger.scan, ledger.read = forgetful, overtaken  # type: ignore[method-assign]
    found = READINGS[how](beside.storage)
    assert found == [f"{i:05}" for i in range(600) if i != 400]


@pytest.mark.parametrize("limit", [1, 5])
def test_a_limit_is_kept_where_keys_are_left_out(limit: int) -> None:
    box, ledger, beside = filled(600)
    ledger.meanwhile = lambda: drop(box, "00000", "00002")
    found = beside.storage.list(limit=limit)
    assert list(found) == ["00001", "00003", "00004", "00005", "00006"][:limit]


def test_a_count_that_meets_a_clear() -> None:
    """What memory had of a key may be gone while the ledger is asked for it."""
    box, ledger, beside = filled(300)
    put(box, "a", 1)
    ledger.meanwhile = lambda: clear(box)
    assert len(beside.storage) == 0


def test_a_small_object_is_walked_while_others_delete() -> None:
    box, _, _ = filled(10)
    box = box.reloaded()
    items = iter(view_of(box.instance, CommittedView(box.state)).storage.items())
    assert next(items) == ("00000", 0)
    drop(box, "00001")
    assert next(items) == ("00002", 2)
    clear(box)
    assert list(items) == []


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self, by: int) -> int:
        self.count += by
        return self.count


CALLED: list[int] = []
"""What each run of `Forwarder.forward` has called, or is about to."""
HELD: list[asyncio.Event] = []
"""Set when the first run has called."""


class Forwarder(ro.DurableObject):
    async def forward(self, data: bytes) -> int:
        CALLED.append(2 if len(CALLED) == 1 else 1)  # the second run differs, so it is stopped
        await ro.namespace("Counter").get("c").add.remote(CALLED[-1])
        if len(CALLED) == 1:
            HELD[0].set()
            await asyncio.Event().wait()
        return len(data)


async def _outcome(response: Any) -> Any:
    try:
        return await response
    except InvalidCall as error:
        return error


def test_a_stopped_call_with_arguments_of_the_largest_size_is_retried() -> None:
    """Guarantee 5: what could begin can be run again, though a call could not write as much."""

    async def main() -> None:
        CALLED.clear()
        HELD[:] = [asyncio.Event()]
        async with LocalHost([Counter, Forwarder]) as host:
            forwarder = host.get(Forwarder, "f")
            forwarded = forwarder.forward.remote(bytes(CALL_BYTES_MAX - 1_000))
            outcome = asyncio.ensure_future(_outcome(forwarded))
            await HELD[0].wait()
            await host.crash()
            assert "stopped" in str(await outcome)
            assert host.shard is not None
            (stopped,) = [p for p in host.shard.promises_of(forwarder.id) if p.kind == INTENT]
            assert stopped.failed
            chosen = encode_json({"kind": "intent", "key": stopped.key})
            assert await send(forwarder, "retry", SYSTEM, chosen) == "retried"
            for _ in range(1_000):
                if not host.shard.promises_of(forwarder.id):
                    break
                await asyncio.sleep(0.01)
            assert not host.shard.promises_of(forwarder.id)
            assert CALLED == [1, 2, 1]
            assert await host.get(Counter, "c").add.remote(0) == 1

    asyncio.run(asyncio.wait_for(main(), 60))
