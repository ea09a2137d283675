"""Guarantee 4: nothing leaves an object before everything that it could have seen is on disk."""

from __future__ import annotations

import asyncio
import errno

import pytest
from guarantee_objects import GATES, Counter, run, ticks

import rayobjects as ro
from rayobjects.errors import StorageFailed
from rayobjects.limits import POLL_S
from rayobjects.testing import LocalHost, LocalResponse, LocalStub


class Room(ro.DurableObject):
    said: int = ro.durable(0)

    def on_connect(self, ws: ro.WebSocket) -> None:
        pass

    def on_message(self, ws: ro.WebSocket, data: str) -> None:
        self.said += 1
        self.sockets.broadcast(f"{self.said}: {data}")

    def say(self, data: str) -> int:
        self.said += 1
        self.sockets.broadcast(f"{self.said}: {data}")
        return self.said


class Caller(ro.DurableObject):
    """Writes, then calls another object, which a call before it has not waited for."""

    asked: int = ro.durable(0)

    def note(self) -> int:
        self.asked += 1
        return self.asked

    async def forward(self, to: LocalStub) -> int:
        result: int = await to.increment.remote(self.asked)
        return result


def test_guarantee_4_no_reply_before_the_sync() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            assert await stub.increment.remote() == 1
            with host.syncs_held():
                write = stub.increment.remote()
                read = stub.read.remote()  # has seen what is not on disk
                missing = stub.take.remote("nothing")
                failed = stub.fail.remote()  # an error may tell what it has seen, too
                over_http = asyncio.ensure_future(host.post(stub, "read"))
                # Enough for every reply that does not wait, and for the answer to the batch.
                await ticks(200)
                late: list[LocalResponse] = [write, read, missing, failed]
                assert not any(response.done() for response in late)
                assert not over_http.done()
            assert (await write, await read, await missing, await over_http) == (2, 2, None, 2)
            with pytest.raises(ro.MethodError):
                await failed

    run(main)


def test_guarantee_4_neighbours_do_not_wait_for_each_others_replies_to_be_right() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            one, two = host.get(Counter, "one"), host.get(Counter, "two")
            with host.syncs_held():
                responses = [stub.increment.remote() for stub in (one, two, one, two)]
                await ticks(100)
                # Calls run ahead of the disk, one after the other; only their replies wait.
                assert host.core is not None
                assert [a.pending for a in host.core.activations.values()] == [2, 2]
            assert await asyncio.gather(*responses) == [1, 1, 2, 2]

    run(main)


def test_guarantee_4_no_socket_message_before_the_sync() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "a")
            socket = await host.connect(room)
            with host.syncs_held():
                posted = socket.post("hello")
                await ticks(100)
                assert not posted.done()
                assert host.gateway().pushes == []
            await posted
            assert await socket.receive() == "1: hello"

    run(main)


def test_guarantee_4_no_call_to_another_object_before_the_sync() -> None:
    async def main() -> None:
        async with LocalHost([Caller, Counter]) as host:
            caller, counter = host.get(Caller, "a"), host.get(Counter, "b")
            with host.syncs_held():
                noted = caller.note.remote()
                forwarded = caller.forward.remote(counter)
                await ticks(100)
                assert not host.is_live(counter), "the call has left"
            assert (await noted, await forwarded) == (1, 1)

    run(main)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_4_what_was_not_synced_was_never_seen(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "a")
            socket = await host.connect(room)
            with host.syncs_held():
                said = room.say.remote("once")
                await ticks(100)
                assert not said.done()
            # The tick that writes it has not come yet.
            await getattr(host, end)()
            assert await said == 1  # sent again, and run anew
            await host.settled()
            assert socket.received == ["1: once"]

    run(main)


@pytest.mark.parametrize("step", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_guarantee_4_a_journal_that_fails_takes_all_that_ran_ahead(step: str, error: int) -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            one, two = host.get(Counter, "one"), host.get(Counter, "two")
            assert await one.increment.remote(5) == 5
            assert await two.increment.remote(7) == 7
            host.files.fail(step, error, name="journal")
            with host.syncs_held():
                ahead = [one.increment.remote(10), one.read.remote(), two.increment.remote(10)]
                running = host.get(Counter, "three").wait.remote("gate")
                await GATES.until_reached("gate")
                behind = host.get(Counter, "three").increment.remote()
                await ticks(100)
            for response in (*ahead, behind):
                with pytest.raises(StorageFailed):
                    await response
            # The running call neither had run ahead nor can end in an object that is gone: it is
            # sent again to the next life.
            GATES["gate"].set()
            assert await running == 1
            # A failed group is there or not, whole; what was acknowledged is there.
            totals = (await one.read.remote(), await two.read.remote())
            assert totals in {(5, 7), (15, 17)}
            await host.crash()
            assert (await one.read.remote(), await two.read.remote()) == totals

    run(main)


def test_guarantee_4_a_disk_that_stays_full_gives_errors_until_there_is_room() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            assert await stub.increment.remote() == 1
            # The group, and then the next life's own first writes.
            host.files.fail("write", errno.ENOSPC, times=3)
            errors = []
            while True:
                try:
                    total = await stub.increment.remote()
                    break
                except StorageFailed as error:
                    errors.append(str(error))
            assert errors
            assert all("the disk is full" in error for error in errors)
            assert total == 2
            await host.crash()
            assert await stub.read.remote() == 2

    run(main)


def test_guarantee_4_reads_alone_look_at_the_epoch() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            await stub.increment.remote()
            host.files.steps.clear()
            assert await asyncio.gather(*(stub.read.remote() for _ in range(20))) == [1] * 20
            assert host.files.steps == [("look", "epoch")], "one look for all reads of a tick"

    run(main)


def test_guarantee_4_a_tick_of_writes_is_one_sync() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stubs = [host.get(Counter, str(number)) for number in range(20)]
            await asyncio.gather(*(stub.increment.remote() for stub in stubs))  # the first segment
            host.files.steps.clear()
            await asyncio.gather(*(stub.increment.remote() for stub in stubs))
            assert [step for step, _ in host.files.steps].count("sync") == 1

    run(main)


def test_guarantee_4_gateways_find_out_at_once_that_the_journal_failed() -> None:
    """What was committed before and has not left yet follows from the next life, without a call
    that would have to come first."""

    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "a")
            socket = await host.connect(room)
            with host.syncs_held():
                said = [room.say.remote("one"), socket.post("two")]
                await ticks(100)
                host.files.fail("sync", errno.EIO, name="journal")
            with pytest.raises(StorageFailed):
                await said[0]
            await asyncio.wait_for(host.settled(), POLL_S / 2)
            assert host.core is not None
            assert host.core.failed is None, "it has begun anew"
            assert socket.received in (["1: one", "2: two"], [])

    run(main)
