"""Streams: what a generator method hands out, in which order and when, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import gc
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import ErrorInfo, info_from_wire
from rayobjects.limits import (
    CALL_BYTES_MAX,
    LOAD_WHOLE_KEYS_MAX,
    STREAM_BYTES_AHEAD_MAX,
    STREAM_ITEM_BYTES_MAX,
    STREAM_ITEMS_AHEAD_MAX,
    STREAM_SILENT_S,
)
from rayobjects.messages import END, ERROR, ITEM, ITEMS, OPENED, PICKLE, Call, Reply
from rayobjects.objects import streams
from rayobjects.objects.reading import Opened
from rayobjects.storage import values
from rayobjects.storage.records import INTENT
from rayobjects.testing import LocalHost
from rayobjects.testing.channel import LocalChannel
from rayobjects.testing.stubs import LocalStub, send

EVENTS: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
"""What the objects and their test tell each other."""

SAID: list[str] = []
"""What generators did, in order; it is not rolled back."""


def run(main: Callable[[LocalHost], Coroutine[Any, Any, None]], *classes: Any) -> None:
    EVENTS.clear()
    SAID.clear()

    async def timed() -> None:
        async with asyncio.timeout(60), LocalHost(classes or (Feed, Reader)) as host:
            await main(host)

    asyncio.run(timed())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  the host's steps, on this very loop
        await asyncio.sleep(0)


class Feed(ro.DurableObject):
    count: int = ro.durable(0)
    made: int = 0
    """How many items the running stream has made."""

    def add(self) -> int:
        self.count += 1
        return self.count

    def value(self) -> int:
        return self.count

    def fill(self, keys: int) -> None:
        self.storage.update({f"key {number}": number for number in range(keys)})

    async def numbers(self, items: int, size: int = 0) -> AsyncIterator[Any]:
        """Counts one up for each item."""
        type(self).made = 0
        try:
            for number in range(items):
                self.count += 1
                type(self).made += 1
                yield b"x" * size if size else number
            SAID.append("done")
        except BaseException as error:
            SAID.append(type(error).__name__)
            raise
        finally:
            await asyncio.sleep(0)
            SAID.append("finally")

    def plainly(self, items: int) -> Iterator[int]:
        try:
            for number in range(items):
                self.count += 1
                yield number
        finally:
            SAID.append("finally")

    @ro.blocking
    def on_a_thread(self, items: int) -> Iterator[int]:
        try:
            for number in range(items):
                self.count += 1
                yield number
        finally:
            SAID.append("finally")

    async def waiting(self, items: int, name: str) -> AsyncIterator[int]:
        """Waits for an event of the test after these items."""
        try:
            for number in range(items):
                self.count += 1
                yield number
            EVENTS[f"{name} waits"].set()
            await EVENTS[name].wait()
            yield items
        except BaseException as error:
            SAID.append(type(error).__name__)
            raise
        finally:
            SAID.append("finally")

    async def ending(self, items: int, name: str) -> AsyncIterator[int]:
        """Waits for an event of the test before it ends."""
        for number in range(items):
            self.count += 1
            yield number
        await EVENTS[name].wait()

    async def failing(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            self.count += 1
            yield number
        raise ValueError("after all of them")

    async def stubborn(self) -> AsyncIterator[int]:
        """Does not want to end."""
        while True:
            try:
                EVENTS["stubborn waits"].set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                SAID.append("caught")
            yield 1

    async def of(self, items: list[Any]) -> AsyncIterator[Any]:
        for item in items:
            yield item

    async def unpicklable(self) -> AsyncIterator[Any]:
        self.count += 1
        yield 1
        yield (each for each in ())

    async def giving_up(self) -> AsyncIterator[int]:
        yield 1
        self.abort("no more")

    async def asking(self, name: str, items: int) -> AsyncIterator[int]:
        """Calls another object before it yields."""
        self.count += 1
        await ro.namespace("Feed").get("other").add.remote()
        for number in range(items):
            yield number
        await EVENTS[name].wait()

    def plan(self) -> None:
        self.schedule(self.plainly, 100, after=5)

    def tell_other(self) -> None:
        ro.namespace("Feed").get("other").plainly.tell(100)


class Ticker(ro.DurableObject):
    """Has streams that do not end by themselves."""

    count: int = ro.durable(0)

    def add(self) -> int:
        self.count += 1
        return self.count

    def value(self) -> int:
        return self.count

    async def alone(self, items: int) -> AsyncIterator[int]:
        for _ in range(items):
            self.count += 1
            yield self.count
        await asyncio.Event().wait()

    @ro.concurrent
    async def beside(self, blocks: int) -> AsyncIterator[int]:
        for _ in range(blocks):
            async with self.turn():
                self.count += 1
            yield self.count
        await asyncio.Event().wait()


class Reader(ro.DurableObject):
    total: int = ro.durable(0)

    async def sum_of(self, name: str, items: int) -> int:
        async for number in ro.namespace("Feed").get(name).numbers.remote(items):
            self.total += number
        return self.total

    async def first_of(self, name: str) -> int:
        async for number in ro.namespace("Feed").get(name).numbers.remote(1_000):
            return int(number)
        return -1


async def items_of(response: Any) -> list[Any]:
    return [item async for item in response]


async def read_into(found: list[Any], response: Any) -> None:
    """The same, where the items that come before an error are asked for."""
    async for item in response:
        found.append(item)  # noqa: PERF401


# -- items -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["numbers", "plainly", "on_a_thread"])
@pytest.mark.parametrize("items", [0, 1, STREAM_ITEMS_AHEAD_MAX, 10 * STREAM_ITEMS_AHEAD_MAX + 1])
@pytest.mark.parametrize("keys", [0, LOAD_WHOLE_KEYS_MAX + 1], ids=["whole", "by key"])
def test_all_items_come_in_order(method: str, items: int, keys: int) -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        await feed.fill.remote(keys)
        await host.evict(feed)
        assert await items_of(getattr(feed, method).remote(items)) == list(range(items))
        assert SAID[-1] == "finally"
        assert await feed.value.remote() == items  # it was committed at its end
        await host.kill()
        assert await feed.value.remote() == items

    run(main)


def test_two_streams_of_two_objects_at_once() -> None:
    async def main(host: LocalHost) -> None:
        found = await asyncio.gather(
            *(items_of(host.get(Feed, name).numbers.remote(500)) for name in "abc")
        )
        assert found == [list(range(500))] * 3

    run(main)


def test_calls_behind_a_stream_wait_for_their_turn() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        stream = feed.waiting.remote(3, "go")
        after = feed.add.remote()
        other = feed.numbers.remote(2)
        await EVENTS["go waits"].wait()
        assert not after.done()
        EVENTS["go"].set()
        assert await items_of(stream) == [0, 1, 2, 3]
        assert await after == 4
        assert await items_of(other) == [0, 1]

    run(main)


def test_what_is_no_stream_is_awaited_and_what_is_one_is_not() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        for _ in range(2):
            with pytest.raises(ro.InvalidCall, match="async for"):
                await feed.numbers.remote(1_000)
        assert await feed.value.remote() == 0
        assert SAID == ["GeneratorExit", "finally"] * 2
        response = feed.numbers.remote(1_000)
        await until(response.done)
        with pytest.raises(ro.InvalidCall, match="async for"):
            response.result()
        with pytest.raises(ro.InvalidCall, match="`await` the"):
            await items_of(feed.value.remote())
        with pytest.raises(ro.InvalidCall, match="has no method"):
            await items_of(feed.nothing.remote())
        with pytest.raises(ro.InvalidCall, match="items"):
            await items_of(feed.numbers.remote())
        response = feed.numbers.remote(3)
        assert await items_of(response) == [0, 1, 2]
        with pytest.raises(ro.InvalidCall, match="read once"):
            await items_of(response)

    run(main)


def test_an_iterator_that_has_ended_has_ended() -> None:
    async def main(host: LocalHost) -> None:
        items = aiter(host.get(Feed, "a").numbers.remote(1))
        assert await anext(items) == 0
        for _ in range(3):
            with pytest.raises(StopAsyncIteration):
                await anext(items)
        await items.aclose()
        assert SAID == ["done", "finally"]

    run(main)


# -- guarantees 3 and 4 ----------------------------------------------------------------------------


def test_guarantee_3_a_stream_that_raises_leaves_nothing() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        for items in (0, 3, 200):
            found: list[int] = []
            with pytest.raises(ro.MethodError, match="after all of them") as raised:
                await read_into(found, feed.failing.remote(items))
            assert isinstance(raised.value.cause, ValueError)
            assert found == list(range(items))
            assert await feed.value.remote() == 0

    run(main)


def test_guarantee_3_nothing_is_seen_of_a_stream_before_its_end() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        stream = feed.waiting.remote(3, "go")
        await EVENTS["go waits"].wait()
        assert host.shard is not None
        assert not await host.list(Feed)
        EVENTS["go"].set()
        await items_of(stream)
        assert await host.list(Feed) == ["a"]

    run(main)


def test_guarantee_4_items_wait_for_what_was_committed_before() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        await feed.value.remote()
        with host.syncs_held():
            add = feed.add.remote()
            response = feed.numbers.remote(3)
            for _ in range(100):
                await asyncio.sleep(0)
            assert Feed.made == 3  # it has run, ahead of the disk
            assert not add.done()
            assert not response.done()
        assert await add == 1
        assert await items_of(response) == [0, 1, 2]

    run(main)


def test_guarantee_4_a_sync_that_fails_lets_nothing_out() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        await feed.value.remote()
        host.files.fail("sync", errno.EIO)
        add = feed.add.remote()
        stream = feed.waiting.remote(3, "go")
        with pytest.raises(ro.StorageFailed):
            await add
        EVENTS["go"].set()
        assert await items_of(stream) == [0, 1, 2, 3]  # run again: nothing of it had left
        assert await feed.value.remote() == 3

    run(main)


def test_a_storage_that_fails_under_a_stream_cuts_it_off() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        items = aiter(feed.waiting.remote(3, "go"))
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        host.files.fail("sync", errno.EIO)
        with pytest.raises(ro.StorageFailed):
            await host.get(Feed, "b").add.remote()
        with pytest.raises(ro.Unavailable, match="cut off"):
            await anext(items)
        await until(lambda: SAID == ["CancelledError", "finally"])
        assert await feed.value.remote() == 0

    run(main)


# -- back-pressure ---------------------------------------------------------------------------------


def test_a_method_runs_a_bounded_number_of_items_ahead() -> None:
    async def main(host: LocalHost) -> None:
        items = aiter(host.get(Feed, "a").numbers.remote(10_000))
        ahead = 0
        for read in range(1, 500):
            assert await anext(items) == read - 1
            for _ in range(20):
                await asyncio.sleep(0)
            ahead = max(ahead, Feed.made - read)
        assert STREAM_ITEMS_AHEAD_MAX // 2 <= ahead <= STREAM_ITEMS_AHEAD_MAX
        await items.aclose()
        await until(lambda: "finally" in SAID)

    run(main)


def test_a_method_runs_a_bounded_number_of_bytes_ahead() -> None:
    size = STREAM_BYTES_AHEAD_MAX // 3

    async def main(host: LocalHost) -> None:
        items = aiter(host.get(Feed, "a").numbers.remote(30, size))
        for read in range(1, 31):
            assert len(await anext(items)) == size
            for _ in range(20):
                await asyncio.sleep(0)
            assert Feed.made - read <= 3
        with pytest.raises(StopAsyncIteration):
            await anext(items)
        large = STREAM_ITEM_BYTES_MAX - 1_000  # one at a time, however large
        found = [len(item) async for item in host.get(Feed, "b").numbers.remote(4, large)]
        assert found == [large] * 4

    run(main)


def test_items_that_cannot_be_sent_end_the_stream() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        with pytest.raises(ro.InvalidCall, match="8,388,608"):
            await items_of(feed.numbers.remote(2, STREAM_ITEM_BYTES_MAX))
        with pytest.raises(ro.InvalidCall, match="pickle"):
            await items_of(feed.unpicklable.remote())
        with pytest.raises(ro.InvalidCall, match="JSON"):
            await host.post(feed, "unpicklable")
        with pytest.raises(ro.InvalidCall, match=f"{CALL_BYTES_MAX:,}"):
            await host.post(feed, "numbers", {"items": 12, "size": 6_000_000})
        assert await feed.value.remote() == 0

    run(main)


def test_guarantee_8_streams_of_a_host_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 2)

    async def main(host: LocalHost) -> None:
        open_ones = [host.get(Feed, name).waiting.remote(0, name) for name in "ab"]
        await EVENTS["a waits"].wait()
        await EVENTS["b waits"].wait()
        with pytest.raises(ro.Overloaded, match="streams"):
            await items_of(host.get(Feed, "c").numbers.remote(1))
        assert await host.get(Feed, "c").value.remote() == 0
        EVENTS["a"].set()
        assert await items_of(open_ones[0]) == [0]
        assert await items_of(host.get(Feed, "c").numbers.remote(1)) == [0]

    run(main)


def test_a_reader_that_does_not_read_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STREAM_STALLED_S", 0.05)

    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        response = feed.numbers.remote(1_000)
        assert await feed.value.remote() == 0
        assert SAID == ["GeneratorExit", "finally"]
        found: list[int] = []
        with pytest.raises(ro.InvalidCall, match="took no item"):
            await read_into(found, response)
        assert found == list(range(STREAM_ITEMS_AHEAD_MAX))

    run(main)


# -- readers that go away --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["numbers", "plainly", "on_a_thread"])
@pytest.mark.parametrize("keys", [0, LOAD_WHOLE_KEYS_MAX + 1], ids=["whole", "by key"])
def test_break_closes_the_generator_and_rolls_back(method: str, keys: int) -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        await feed.fill.remote(keys)
        await host.evict(feed)
        async for item in getattr(feed, method).remote(1_000):
            if item == 3:
                break
        assert await feed.add.remote() == 1  # the turn is free, and nothing was written
        if method == "numbers":
            assert SAID == ["GeneratorExit", "finally"]
        assert SAID[-1] == "finally"

    run(main)


def test_a_generator_that_awaits_something_is_cancelled_there() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        reading = asyncio.ensure_future(items_of(feed.waiting.remote(3, "go")))
        await EVENTS["go waits"].wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        del reading
        assert await feed.value.remote() == 0
        assert SAID == ["CancelledError", "finally"]

    run(main)


def test_a_generator_that_catches_its_cancellation_is_closed_all_the_same() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        response = feed.stubborn.remote()
        await EVENTS["stubborn waits"].wait()
        del response
        assert await feed.value.remote() == 0
        assert SAID == ["caught"]

    run(main)


@pytest.mark.parametrize("when", ["at once", "after it began"])
def test_a_response_that_is_dropped_unread_closes_the_stream(when: str) -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        response = feed.numbers.remote(1_000)
        if when == "after it began":
            await until(response.done)
        del response
        gc.collect()
        assert await feed.value.remote() == 0
        assert SAID == ["GeneratorExit", "finally"]

    run(main)


def test_a_reader_that_stops_for_a_while_goes_on() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        items = aiter(feed.waiting.remote(1, "go"))
        assert await anext(items) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(items), 0.01)
        EVENTS["go"].set()
        assert await anext(items) == 1

    run(main)


class Process:
    """A process of its own that reads a stream."""

    def __init__(self, host: LocalHost, name: str, call_id: str = "") -> None:
        self.channel = LocalChannel(host, host.new_id(name))
        self.items: list[Any] = []
        self.end: Reply | ro.RayObjectsError | None = None
        self._call_id = call_id

    def read(self, method: str, *arguments: Any) -> None:
        args = values.dump((arguments, {}))
        call = Call(0, "Feed", "a", method, PICKLE, args, self._call_id, takes=ITEMS)
        self.channel.send(call, self._replied)

    def _replied(self, outcome: Reply | ro.RayObjectsError) -> None:
        if isinstance(outcome, Opened):
            outcome.take = partial(self._replied)
            self.credit = outcome.credit
        elif isinstance(outcome, Reply) and outcome.status == ITEM:
            self.items.append(values.load(outcome.body))
        else:
            self.end = outcome

    @property
    def error(self) -> ErrorInfo:
        assert isinstance(self.end, Reply)
        assert self.end.status == ERROR
        return info_from_wire(self.end.body)


def test_a_process_that_dies_reads_no_more() -> None:
    async def main(host: LocalHost) -> None:
        process = Process(host, "reader")
        process.read("waiting", 3, "go")
        await until(lambda: len(process.items) == 3)
        process.channel.close()
        await host.move(STREAM_SILENT_S / 2)
        assert SAID == []
        await host.move(STREAM_SILENT_S)
        assert await host.get(Feed, "a").value.remote() == 0
        assert SAID == ["CancelledError", "finally"]

    run(main)


def test_a_process_that_lives_is_waited_for() -> None:
    async def main(host: LocalHost) -> None:
        items = aiter(host.get(Feed, "a").waiting.remote(1, "go"))
        assert await anext(items) == 0
        await host.move(10 * STREAM_SILENT_S)
        EVENTS["go"].set()
        assert await anext(items) == 1

    run(main)


def test_a_stream_has_the_time_that_its_caller_has() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a").options(timeout_s=0.1)
        found: list[int] = []
        with pytest.raises(ro.DeadlineExceeded):
            await read_into(found, feed.waiting.remote(3, "never"))
        assert found == [0, 1, 2]
        assert await feed.value.remote() == 0
        assert await items_of(feed.numbers.remote(3)) == [0, 1, 2]

    run(main)


def test_a_stream_can_be_taken_back_like_any_call() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        response = feed.waiting.remote(1, "never")
        items = aiter(response)
        assert await anext(items) == 0
        response.cancel()
        with pytest.raises(ro.Cancelled):
            await anext(items)
        assert await feed.value.remote() == 0

    run(main)


def test_abort_ends_it() -> None:
    async def main(host: LocalHost) -> None:
        items = aiter(host.get(Feed, "a").giving_up.remote())
        assert await anext(items) == 1
        with pytest.raises(ro.MethodError, match="no more"):
            await anext(items)
        assert await host.get(Feed, "a").add.remote() == 1

    run(main)


# -- hosts that die, answers that get lost ---------------------------------------------------------


@pytest.mark.parametrize("way", ["kill", "crash"])
def test_a_stream_is_never_begun_again_for_a_reader_that_has_seen_items(way: str) -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        items = aiter(feed.waiting.remote(3, "go"))
        assert await anext(items) == 0
        await getattr(host, way)()
        assert [await anext(items), await anext(items)] == [1, 2]  # they had arrived
        with pytest.raises(ro.Unavailable, match="cut off"):
            await anext(items)
        assert await feed.value.remote() == 0
        assert SAID == ["CancelledError", "finally"]

    run(main)


def test_a_stream_of_which_nothing_has_been_seen_runs_again() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        reading = asyncio.ensure_future(items_of(feed.waiting.remote(0, "go")))
        await EVENTS["go waits"].wait()
        EVENTS.clear()
        await host.kill()
        await EVENTS["go waits"].wait()
        EVENTS["go"].set()
        assert await reading == [0]

    run(main)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_or_repeated_when_answers_get_lost(seed: int) -> None:
    async def main(host: LocalHost) -> None:
        feed, found = host.get(Feed, "a"), []
        async for item in feed.numbers.remote(400):
            found.append(item)
            if item % (7 + seed) == 0:
                host.client.lose_polls = 1 + seed % 3
            if item % (11 + seed) == 0:
                host.client.lose_answers = 1
            if item % 50 == seed:
                await asyncio.sleep(0)
        assert found == list(range(400))
        assert SAID == ["done", "finally"]
        assert await feed.value.remote() == 400

    run(main)


def test_the_end_of_a_stream_is_found_again_by_its_id() -> None:
    """The host dies between the commit and the answer: whoever has all items has read it."""

    async def main(host: LocalHost) -> None:
        one = Process(host, "one", "key:x")
        one.read("waiting", 2, "go")
        await until(lambda: len(one.items) == 2)
        one.channel.lose_polls = 1_000_000
        EVENTS["go"].set()
        await until(lambda: "finally" in SAID)
        await until(lambda: host.shard is not None and host.shard.finished(("Feed", "a"), "key:x"))
        await host.kill()
        await until(lambda: one.end is not None)
        assert one.items == [0, 1]
        assert "2 of its 3 items" in one.error.message
        assert one.error.status == 410
        other = Process(host, "other", "key:x")
        other.read("waiting", 2, "go")
        await until(lambda: other.end is not None)
        assert "0 of its 3 items" in other.error.message
        assert SAID == ["finally"]  # it has not run again
        assert await host.get(Feed, "a").value.remote() == 2

    run(main)


def test_a_reader_with_all_items_gets_the_stored_end() -> None:
    async def main(host: LocalHost) -> None:
        one = Process(host, "one", "key:x")
        one.read("ending", 3, "go")
        await until(lambda: len(one.items) == 3)
        one.channel.lose_polls = 1_000_000
        EVENTS["go"].set()
        await until(lambda: host.shard is not None and host.shard.finished(("Feed", "a"), "key:x"))
        await host.kill()
        await until(lambda: one.end is not None)
        assert isinstance(one.end, Reply)
        assert one.end.status == END
        assert one.items == [0, 1, 2]
        assert await host.get(Feed, "a").value.remote() == 3

    run(main)


def test_a_call_that_comes_again_takes_its_stream_over() -> None:
    async def main(host: LocalHost) -> None:
        one, other = Process(host, "one", "key:x"), Process(host, "other", "key:x")
        one.read("waiting", 2, "go")
        await until(lambda: len(one.items) == 2)
        other.read("waiting", 2, "go")
        await until(lambda: len(other.items) == 2)
        await until(lambda: one.end is not None)
        assert "later caller" in one.error.message
        assert SAID == ["CancelledError", "finally"]
        EVENTS["go"].set()
        await until(lambda: other.end is not None)
        assert other.items == [0, 1, 2]
        assert isinstance(other.end, Reply)
        assert other.end.status == END
        assert await host.get(Feed, "a").value.remote() == 2

    run(main)


def test_an_id_that_comes_twice_before_it_begins() -> None:
    async def main(host: LocalHost) -> None:
        hold = host.get(Feed, "a").waiting.remote(0, "hold")
        await EVENTS["hold waits"].wait()
        one, other = Process(host, "one", "key:x"), Process(host, "other", "key:x")
        one.read("numbers", 3)
        await until(lambda: not one.channel._queue and one.channel._connected)
        other.read("numbers", 3)
        await until(lambda: not other.channel._queue and other.channel._connected)
        EVENTS["hold"].set()
        await items_of(hold)
        await until(lambda: one.end is not None and other.end is not None)
        assert (one.items, other.items) == ([], [0, 1, 2])
        assert await host.get(Feed, "a").value.remote() == 3

    run(main)


# -- other objects ---------------------------------------------------------------------------------


def test_an_object_reads_anothers_stream() -> None:
    async def main(host: LocalHost) -> None:
        reader = host.get(Reader, "r")
        assert await reader.sum_of.remote("a", 200) == sum(range(200))
        assert await reader.first_of.remote("b") == 0
        assert await host.get(Feed, "a").value.remote() == 200
        assert await host.get(Feed, "b").value.remote() == 0  # it did not come to its end
        assert SAID == ["done", "finally", "GeneratorExit", "finally"]
        await host.kill()
        assert await reader.sum_of.remote("a", 3) == sum(range(200)) + 3

    run(main)


def test_a_stream_that_has_called_others_is_not_run_again_by_its_host() -> None:
    async def main(host: LocalHost) -> None:
        feed, other = host.get(Feed, "a"), host.get(Feed, "other")
        items = aiter(feed.asking.remote("never", 2))
        assert [await anext(items), await anext(items)] == [0, 1]
        await host.kill()
        with pytest.raises(ro.Unavailable, match="cut off"):
            await anext(items)
        assert await feed.value.remote() == 0
        assert await other.value.remote() == 1  # what it has asked of others stays
        assert host.shard is not None
        assert not [each for _, each in host.shard.promises() if each.kind == INTENT]

    run(main)


def test_told_and_planned_generators_run_to_their_end() -> None:
    async def main(host: LocalHost) -> None:
        feed, other = host.get(Feed, "a"), host.get(Feed, "other")
        await feed.tell_other.remote()
        await until(lambda: SAID == ["finally"])
        assert await other.value.remote() == 100
        await feed.plan.remote()
        await host.move(6)
        await until(lambda: SAID == ["finally"] * 2)
        assert await feed.value.remote() == 100

    run(main)


# -- JSON, all at once -----------------------------------------------------------------------------


def test_all_items_in_one_reply() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        assert await host.post(feed, "numbers", {"items": 200}) == list(range(200))
        assert await host.post(feed, "numbers", {"items": 0}) == []
        assert await host.post(feed, "of", {"items": [1, "two", [3], None]}) == [
            1,
            "two",
            [3],
            None,
        ]
        with pytest.raises(ro.MethodError, match="after all"):
            await host.post(feed, "failing", {"items": 3})
        assert await feed.value.remote() == 200

    run(main)


def test_guarantee_5_an_array_comes_again() -> None:
    async def main(host: LocalHost) -> None:
        feed = host.get(Feed, "a")
        first = asyncio.ensure_future(
            host.post(feed, "waiting", {"items": 2, "name": "go"}, idempotency_key="k")
        )
        await EVENTS["go waits"].wait()
        EVENTS.clear()
        await host.kill()  # it has seen nothing, so the call is sent again
        await EVENTS["go waits"].wait()
        EVENTS["go"].set()
        assert await first == [0, 1, 2]
        await host.kill()
        again = await host.post(feed, "waiting", {"items": 2, "name": "go"}, idempotency_key="k")
        assert again == [0, 1, 2]
        assert await feed.value.remote() == 2
        # The items of a stream are not in its reply.
        stub = LocalStub("Feed", "a", host.router)
        args = values.dump(((3,), {}))
        assert await items_of(send(stub, "numbers", PICKLE, args, "key:s")) == [0, 1, 2]
        with pytest.raises(ro.InvalidCall, match="0 of its 3 items"):
            await items_of(send(stub, "numbers", PICKLE, args, "key:s"))
        empty = values.dump(((0,), {}))
        for _ in range(2):
            assert await items_of(send(stub, "numbers", PICKLE, empty, "key:e")) == []
        assert await feed.value.remote() == 5

    run(main)


# -- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["numbers", "plainly", "on_a_thread"])
def test_a_filter_is_around_the_making_of_the_generator(method: str) -> None:
    async def passing(call: ro.MethodCall, proceed: ro.Proceed) -> Any:
        SAID.append(f"{call.method} {call.arguments['items']}")
        return await proceed()

    async def doubling(call: ro.MethodCall, proceed: ro.Proceed) -> Any:
        generator = await proceed()

        async def doubled() -> AsyncIterator[Any]:
            if hasattr(generator, "__aiter__"):
                async for item in generator:
                    yield 2 * item
            else:
                for item in generator:
                    yield 2 * item

        return doubled()

    async def main(*filters: Any) -> list[Any]:
        SAID.clear()
        async with LocalHost([Feed], filters=filters) as host:
            return await items_of(getattr(host.get(Feed, "a"), method).remote(100))

    EVENTS.clear()
    assert asyncio.run(main(passing)) == list(range(100))
    assert SAID[0] == f"{method} 100"
    assert asyncio.run(main(passing, doubling)) == list(range(0, 200, 2))


# -- beside the turn, new versions, the end of a host ----------------------------------------------


def test_a_concurrent_stream_lets_others_run_and_keeps_its_blocks() -> None:
    async def main(host: LocalHost) -> None:
        ticker = host.get(Ticker, "a")
        items = aiter(ticker.beside.remote(3))
        assert [await anext(items) for _ in range(3)] == [1, 2, 3]
        assert await ticker.add.remote() == 4
        await items.aclose()
        await until(lambda: host.core is not None and not host.core.streams._open)
        assert await ticker.value.remote() == 4

    run(main, Ticker)


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_concurrent_stream_is_cut_off_by_a_new_version(blocks: int) -> None:
    async def main(host: LocalHost) -> None:
        ticker = host.get(Ticker, "a")
        items = aiter(ticker.beside.remote(blocks))
        assert [await anext(items) for _ in range(blocks)] == list(range(1, blocks + 1))
        await until(lambda: host.core is not None and host.core.streams._open)
        await host.deploy(Ticker)
        with pytest.raises(ro.Unavailable, match="cut off"):
            await anext(items)
        assert await ticker.value.remote() == blocks

    run(main, Ticker)


def test_a_new_version_waits_for_a_stream_for_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAM_GRACE_S", 0.05)

    async def main(host: LocalHost) -> None:
        ticker = host.get(Ticker, "a")
        items = aiter(ticker.alone.remote(1))
        assert await anext(items) == 1
        await host.deploy(Ticker)
        with pytest.raises(ro.Unavailable, match="new version"):
            await anext(items)
        assert await ticker.value.remote() == 0

    run(main, Ticker)


def test_a_host_that_stops_cuts_its_streams_off() -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            async with LocalHost([Ticker]) as host:
                items = aiter(host.get(Ticker, "a").alone.remote(1))
                assert await anext(items) == 1
                core = host.core
                assert core is not None
                stopping = asyncio.ensure_future(core.stop())
                with pytest.raises(ro.Unavailable):
                    await anext(items)
                await stopping

    asyncio.run(main())


def test_the_notice_that_a_stream_begins_comes_first() -> None:
    async def main(host: LocalHost) -> None:
        outcomes: list[int] = []

        def replied(outcome: Reply | ro.RayObjectsError) -> None:
            assert isinstance(outcome, Reply)
            outcomes.append(outcome.status)

        args = values.dump(((3,), {}))
        host.client.send(Call(0, "Feed", "a", "numbers", PICKLE, args, takes=ITEMS), replied)
        await until(lambda: END in outcomes)
        assert outcomes == [OPENED, ITEM, ITEM, ITEM, END]

    run(main)
