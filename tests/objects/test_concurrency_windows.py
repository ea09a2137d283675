"""Moments at which a call that is cancelled, aborted or outlived must not take anything along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.messages import JSON, Call
from rayobjects.objects.context import CallContext, current_call
from rayobjects.testing import LocalHost
from rayobjects.testing.stubs import send

Main = Callable[[], Coroutine[Any, Any, None]]
TASKS: list[asyncio.Task[Any]] = []
LEAKED: list[Any] = []
ASKED: list[asyncio.Queue[Any]] = []
"""What `Room.watch` is asked, what it has seen, and what `Room.change` waits for."""


def run(main: Main) -> None:
    TASKS.clear()
    LEAKED.clear()
    ASKED[:] = [asyncio.Queue(), asyncio.Queue(), asyncio.Queue()]

    async def timed() -> None:
        await asyncio.wait_for(main(), 60)

    asyncio.run(timed())


class Thing(ro.DurableObject):
    count: int = ro.durable(0)
    items: list[int] = ro.durable(factory=list)

    async def add(self, by: int = 1) -> int:
        self.count += by
        return self.count

    def plain(self) -> int:
        return self.count

    async def never(self) -> None:
        await asyncio.Event().wait()

    @ro.concurrent
    async def beside(self) -> int:
        async with self.turn():
            self.count += 1
        return self.count

    @ro.concurrent
    async def gives_up(self) -> None:
        async with self.turn():
            self.count += 1
            self.abort("not like this")

    @ro.concurrent
    async def leaks(self) -> None:
        async with self.turn():
            LEAKED.append(self.storage)
            LEAKED.append(self.items)

    async def use_leaked(self) -> None:
        await asyncio.sleep(0.05)
        self.count += 10

    def leave_a_task(self, other: str) -> None:
        self.count += 1

        async def later() -> None:
            await asyncio.sleep(0.02)
            await ro.namespace("Thing").get(other).add.remote(5)

        TASKS.append(asyncio.ensure_future(later()))

    async def ask_beside(self, other: str) -> int:
        return int(await ro.namespace("Thing").get(other).back.remote(self.id.name))

    @ro.concurrent
    async def ask(self, other: str) -> int:
        return int(await ro.namespace("Thing").get(other).back.remote(self.id.name))

    async def back(self, name: str) -> int:
        return int(await ro.namespace("Thing").get(name).add.remote(1))

    def seen(self) -> list[int]:
        return self.items

    @ro.concurrent
    async def two_blocks(self) -> None:
        async with self.turn():
            self.count += 1
        async with self.turn():
            self.count += 1

    def tell(self, other: str) -> None:
        ro.namespace("Thing").get(other).two_blocks.tell()


class Room(ro.DurableObject):
    def on_connect(self, ws: ro.WebSocket) -> None:
        name = ws.query["name"]
        ws.tags, ws.attachment = [name], {"name": name}
        self.schedule(self.on_due, after=100, key=name)

    def on_due(self) -> None:
        pass

    async def change(self) -> None:
        """Changes everything, and raises if the test says so."""
        first, second, *_ = self.sockets
        first.close()
        second.tag("more")
        second.attachment["seen"] = True
        self.unschedule("ann")
        self.schedule(self.on_due, after=5, key="bob")
        self.schedule(self.on_due, after=5, key="new")
        ASKED[1].put_nowait("changed")
        if await ASKED[2].get():
            raise ValueError("no")

    @ro.concurrent
    async def watch(self) -> None:
        sockets = self.sockets
        while (asked := await ASKED[0].get()) is not None:
            if asked == "block":
                async with self.turn():
                    self.sockets(tag="cid")[0].attachment = "mine"
                    self.schedule(self.on_due, after=7, key="mine")
            assert sockets is self.sockets
            assert all(self.sockets.get(ws.id) is ws for ws in sockets)
            ASKED[1].put_nowait(self._seen())

    @ro.concurrent
    async def watch_on_a_thread(self) -> None:
        def watch() -> None:
            while ASKED[0].empty():
                self._seen()
            LEAKED.append(self._seen())

        await asyncio.to_thread(watch)

    def _seen(self) -> Any:
        names = ["ann", "bob", "cid", "more"]
        return (
            [(ws.tags, ws.attachment) for ws in self.sockets],
            len(self.sockets),
            {name: len(self.sockets(tag=name)) for name in names},
            sorted((each.key, each.due.timestamp() % 100) for each in self.scheduled()),
        )


@pytest.mark.parametrize("method", ["add", "never", "beside"])
def test_a_call_that_is_taken_back_in_the_same_moment(method: str) -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            await thing.plain.remote()
            for _ in range(3):
                response = getattr(thing, method).remote()
                response.cancel()
                with pytest.raises(ro.Cancelled):
                    await response
            assert await thing.add.remote() == 1, "the turn is free"
            assert host.core is not None
            assert not host.core.activations["Thing", "t"].occupied

    run(main)


def test_abort_in_a_block_ends_the_call_once() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            with pytest.raises(ro.MethodError, match="not like this"):
                await thing.gives_up.remote()
            assert await thing.add.remote() == 1

    run(main)


def test_what_a_block_has_handed_out_writes_nothing_afterwards() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            await thing.leaks.remote()
            storage, items = LEAKED
            running = thing.use_leaked.remote()
            await asyncio.sleep(0.01)
            items.append(1)
            with pytest.raises(RuntimeError, match="while one of its calls runs"):
                await in_the_leftover_of(host, lambda: storage.__setitem__("key", 1))
            await running
            assert await thing.seen.remote() == []
            state = await host.state(thing)
            assert state["storage"] == {}
            assert state["attributes"]["count"] == 10

    async def in_the_leftover_of(host: LocalHost, act: Callable[[], None]) -> None:
        """Does something in the name of another call of the object."""
        assert host.core is not None
        activation = host.core.activations["Thing", "t"]
        token = current_call.set(CallContext(Call(0, "Thing", "t", "x", 0, b""), activation))
        try:
            act()
        finally:
            current_call.reset(token)

    run(main)


def test_a_task_that_outlives_its_call_is_nobodys() -> None:
    """What it calls is called; but it makes no intent that would run the finished call again."""

    async def main() -> None:
        async with LocalHost([Thing]) as host:
            await host.get(Thing, "t").leave_a_task.remote("other")
            await TASKS[0]
            assert host.shard is not None
            assert not host.shard.promises()
            await host.crash()
            assert await host.get(Thing, "t").plain.remote() == 1
            assert await host.get(Thing, "other").plain.remote() == 5

    run(main)


def test_a_concurrent_method_may_be_called_back_into() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            assert await thing.ask.remote("other") == 1
            with pytest.raises(ro.Deadlock):
                await thing.ask_beside.remote("other")

    run(main)


def test_a_told_message_to_a_concurrent_method_is_one_commit() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            await host.get(Thing, "sender").tell.remote("t")
            while await host.get(Thing, "t").plain.remote() == 0:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert await host.get(Thing, "t").plain.remote() == 2
            assert host.core is not None
            await host.crash()
            assert await host.get(Thing, "t").plain.remote() == 2

    run(main)


def test_a_deadline_of_a_repetition_ends_only_the_repetition() -> None:
    async def main() -> None:
        async with LocalHost([Thing]) as host:
            thing = host.get(Thing, "t")
            first = send(thing, "never", JSON, b"{}", "key:k")
            await asyncio.sleep(0.01)
            with pytest.raises(ro.DeadlineExceeded):
                await send(thing.options(timeout_s=0.05), "never", JSON, b"{}", "key:k")
            await asyncio.sleep(0.05)
            assert not first.done()
            first.cancel()
            with pytest.raises(ro.Cancelled):
                await first

    run(main)


def test_a_concurrent_method_sees_sockets_and_schedules_as_they_are_committed() -> None:
    """Not as they were when it began, nor what the call that has the turn has done to them."""

    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "r")
            watching = room.watch.remote()

            async def seen(asked: str = "look") -> tuple[list[Any], int, dict[str, int], list[Any]]:
                ASKED[0].put_nowait(asked)
                return await ASKED[1].get()  # type: ignore[no-any-return]

            def stand(**changed: Any) -> tuple[list[Any], int, dict[str, int], list[Any]]:
                """(tags, attachment) of the sockets, in their order, and the schedules."""
                shown = {n: ((n,), {"name": n}) for n in ("ann", "bob", "cid")} | changed
                there = [each for each in shown.values() if each]
                tags = [tag for tags, _ in there for tag in tags]
                names = ("ann", "bob", "cid", "more")
                return there, len(there), {name: tags.count(name) for name in names}, []

            async def found(asked: str = "look") -> Any:
                return (*(await seen(asked))[:3], [])

            async def keys() -> list[str]:
                return [key for key, _ in (await seen())[3]]

            assert await found() == stand(ann=None, bob=None, cid=None)
            await host.connect(room, query={"name": "ann"})
            assert await found() == stand(bob=None, cid=None)
            await host.connect(room, query={"name": "bob"}, gateway="other")
            await host.connect(room, query={"name": "cid"})
            assert await found() == stand()
            before = await seen()
            assert await keys() == ["ann", "bob", "cid"]

            for fails in (True, False):
                changing = room.change.remote()
                assert await ASKED[1].get() == "changed"
                assert await seen() == before, "what it has done is not committed"
                ASKED[2].put_nowait(fails)
                if fails:
                    with pytest.raises(ro.MethodError):
                        await changing
                    assert await seen() == before, "and never is, for it was rolled back"
                else:
                    await changing
            bob = (("bob", "more"), {"name": "bob", "seen": True})
            assert await found() == stand(ann=None, bob=bob)
            assert (await keys(), await keys()) == (["bob", "cid", "new"],) * 2
            assert (await seen())[3] != before[3]

            own = (("cid",), "mine")
            assert await found("block") == stand(ann=None, bob=bob, cid=own), "its own block's"
            assert await keys() == ["bob", "cid", "mine", "new"]
            ASKED[0].put_nowait(None)
            await watching

    run(main)


def test_a_thread_sees_sockets_while_others_come_and_go() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "r")
            watching = room.watch_on_a_thread.remote()
            for _ in range(30):
                await host.connect(room, query={"name": "ann"})
                await host.connect(room, query={"name": "bob"})
                changing = room.change.remote()
                assert await ASKED[1].get() == "changed"
                ASKED[2].put_nowait(False)
                await changing
            ASKED[0].put_nowait(None)
            await watching
            (seen,) = LEAKED
            assert seen[1] == 30, "of each two, one was closed"

    run(main)
