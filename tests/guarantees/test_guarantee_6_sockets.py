"""Guarantee 6: sockets outlive their object, and get each committed message once and in order."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest
from guarantee_objects import run, ticks, until

import rayobjects as ro
from rayobjects.errors import InvalidCall, MethodError, Overloaded
from rayobjects.limits import GATEWAY_SILENT_S
from rayobjects.messages import SOCKET, Batch, Call, Poll, SocketEvent, encode
from rayobjects.objects import gateways
from rayobjects.objects import outbox as outbox_module
from rayobjects.testing import LocalHost


class Room(ro.DurableObject):
    said: int = ro.durable(0)
    left: list[str] = ro.durable(factory=list)

    def on_connect(self, ws: ro.WebSocket) -> None:
        name = ws.query.get("name", "")
        if name == "nobody":
            ws.send("never")
            ws.close(4003, "who are you?")
        if name == "broken":
            raise ValueError("broken")
        ws.attachment = name
        self.sockets.broadcast(f"{name} is here")

    def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        if isinstance(data, bytes):
            ws.send(data[::-1])
            return
        self.said += 1
        self.sockets.broadcast(f"{self.said} {ws.attachment}: {data}", exclude=ws)
        ws.send(f"{self.said} you: {data}")

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        self.left.append(f"{ws.attachment} {code} {reason}".strip())
        self.sockets.broadcast(f"{ws.attachment} left")
        if reason == "raise":
            raise ValueError("on_close failed")

    def say(self, text: str) -> None:
        self.sockets.broadcast(text)

    def say_many(self, count: int) -> None:
        for number in range(count):
            self.sockets.broadcast(str(number))

    def names(self) -> list[str]:
        return [socket.attachment for socket in self.sockets]

    def gone(self) -> list[str]:
        return self.left


@pytest.mark.parametrize("how", ["crash", "kill", "evict", "deploy", "fold and crash"])
def test_guarantee_6_a_socket_stays_open(how: str) -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann = await host.connect(room, query="name=ann")
            bob = await host.connect(room, query="name=bob", gateway="other")
            await ann.send("one")
            for number in range(2):
                if how == "evict":
                    await host.evict(room)
                    assert not host.is_live(room)
                elif how == "deploy":
                    await host.deploy(Room)
                elif how == "fold and crash":
                    await host.fold()
                    await host.crash()
                else:
                    await getattr(host, how)()
                await bob.send(f"again {number}")
            await host.settled()
            assert sorted(await room.names.remote()) == ["ann", "bob"]
            lines = ["1 {} one", "2 {} again 0", "3 {} again 1"]
            assert ann.received[2:] == [
                line.format(who) for line, who in zip(lines, ["you:", "bob:", "bob:"], strict=True)
            ]
            assert bob.received[1:] == [
                line.format(who) for line, who in zip(lines, ["ann:", "you:", "you:"], strict=True)
            ]
            assert await room.gone.remote() == []

    run(main)


def test_guarantee_6_messages_that_were_not_acknowledged_come_again_with_their_positions() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann = await host.connect(room, query="name=ann")
            await room.say_many.remote(3)
            await host.settled()
            gateway = host.gateway()
            first = [(push.sequence, push.index) for push in gateway.pushes]
            assert ann.received == ["ann is here", "0", "1", "2"]
            assert first == ann.positions
            # What a standing request has acknowledged does not come again; the last answer's
            # acknowledgement is on its way in the request that is open now.
            gateway.pushes.clear()
            gateway.channel.lose_polls = 1
            await room.say_many.remote(2)
            await host.settled()
            assert ann.received[4:] == ["0", "1"]
            # The answer that brought them first was lost.
            assert len(gateway.pushes) == 2
            await host.crash()
            await room.say.remote("after")
            await host.settled()
            assert ann.received[4:] == ["0", "1", "after"]
            positions = [(push.sequence, push.index) for push in gateway.pushes]
            # Acknowledgements are not journaled, so all that was in the journal came again, each
            # at its old position, and the socket took none twice.
            assert set(first) <= set(positions)
            assert ann.positions == sorted(set(positions))

    run(main)


def test_guarantee_6_what_is_acknowledged_and_folded_does_not_come_again() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            await host.connect(room, query="name=ann")
            await room.say_many.remote(3)
            await host.settled()
            await ticks()  # the next standing request acknowledges them
            assert host.shard is not None
            assert host.shard.pending() == []
            await host.fold()
            host.gateway().pushes.clear()
            await host.crash()
            await room.say.remote("after")
            await host.settled()
            assert [push.send.data for push in host.gateway().pushes] == [b"after"]

    run(main)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_6_committed_messages_survive_the_death_before_they_left(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann = await host.connect(room, query="name=ann")
            host.gateway().channel.lose_polls = 1
            host.client.lose_answers = 1
            said = room.say.remote("once")
            await until(lambda: host.client.lose_answers == 0)
            await getattr(host, end)()
            await said
            await host.settled()
            assert ann.received == ["ann is here", "once"]

    run(main)


def test_guarantee_6_a_page_at_a_time() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann = await host.connect(room, query="name=ann")
            await room.say_many.remote(10_000)
            await host.settled()
            assert ann.received[1:] == [str(number) for number in range(10_000)]

    run(main)


def test_guarantee_6_refused() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            with pytest.raises(InvalidCall, match="who are you") as caught:
                await host.connect(room, query="name=nobody")
            assert caught.value.details == {"close": [4003, "who are you?"]}
            with pytest.raises(MethodError, match="broken"):
                await host.connect(room, query="name=broken")
            assert await room.names.remote() == []

    run(main)


def test_guarantee_6_on_close() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann, bob, cid = [await host.connect(room, query=f"name={n}") for n in ("a", "b", "c")]
            await ann.close(1000, "bye")
            await host.crash()
            assert await room.gone.remote() == ["a 1000 bye"]
            # It raises, so what it wrote is undone; the socket is gone all the same.
            await bob.close(1001, "raise")
            assert await room.names.remote() == ["c"]
            assert await room.gone.remote() == ["a 1000 bye"]
            assert cid.received[-1] == "a left"

    run(main)


def test_guarantee_6_binary() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            ann = await host.connect(host.get(Room, "lobby"), query="name=ann")
            await ann.send(b"\x00\x01\xff")
            assert ann.received[-1] == b"\xff\x01\x00"

    run(main)


def test_guarantee_6_a_silent_gateway_is_taken_for_dead() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann = await host.connect(room, query="name=ann", gateway="one")
            await host.connect(room, query="name=bob", gateway="two")
            host.gateway("one").silent = True
            host.gateway("two").die()
            await host.move(GATEWAY_SILENT_S + 1)
            # The one is dead, the other has not been heard of for as long.
            assert await room.gone.remote() == [
                "ann 1006 connection lost",
                "bob 1006 connection lost",
            ]
            with pytest.raises(InvalidCall, match="does not know this socket"):
                await ann.send("hello?")
            assert ann.closed == (1012, "the object does not know this socket any more")

    run(main)


def test_guarantee_6_a_gateway_that_is_heard_keeps_its_sockets() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            ann = await host.connect(room, query="name=ann", gateway="one")
            await host.connect(room, query="name=bob", gateway="two")
            host.gateway("two").die()
            for _ in range(4):
                await host.move(GATEWAY_SILENT_S)
                await ann.send("still here")
            await host.settled()
            assert await room.names.remote() == ["ann"]
            assert await room.gone.remote() == ["bob 1006 connection lost"]
            assert ann.received[-1] in {"bob left", "4 you: still here"}

    run(main)


def test_guarantee_6_a_gateway_that_comes_back_loses_no_message() -> None:
    """The host has given it up, and counts its messages anew; it still counts from before."""

    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            await host.connect(room, query="name=ann")
            await room.say_many.remote(20)
            await host.settled()
            host.gateway().silent = True
            await host.move(GATEWAY_SILENT_S + 1)
            assert await room.names.remote() == []
            await host.move(1)
            bob = await asyncio.wait_for(host.connect(room, query="name=bob"), 5)
            host.gateway().channel.lose_polls = 1
            await room.say_many.remote(5)
            await host.settled()
            await ticks()
            assert bob.received == ["bob is here", "0", "1", "2", "3", "4"]

    run(main)


def test_guarantee_6_a_new_session_tells_which_sockets_there_are() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            room = host.get(Room, "lobby")
            await host.connect(room, query="name=ann")
            bob = await host.connect(room, query="name=bob")
            # The gateway lost a client while the host was dead, and its on_close went under.
            host.gateway().forget(bob)
            await host.crash()
            await until(lambda: host.core is not None and host.core.channels)
            await room.say.remote("?")
            await host.settled()
            await ticks()
            assert await room.names.remote() == ["ann"]
            assert await room.gone.remote() == ["bob 1006 connection lost"]

    run(main)


def test_guarantee_6_an_outbox_that_is_full_refuses_calls() -> None:
    async def main() -> None:
        with mock.patch.object(gateways, "OUTBOX_MESSAGES_MAX", 50):
            async with LocalHost([Room]) as host:
                room = host.get(Room, "lobby")
                ann = await host.connect(room, query="name=ann")
                host.gateway().die()
                await room.say_many.remote(60)
                with pytest.raises(Overloaded, match="wait for a gateway"):
                    await room.say.remote("one too many")
                assert ann.closed == (1006, "the gateway died")
                await host.move(GATEWAY_SILENT_S + 1)
                await room.say.remote("to nobody")
                assert await room.names.remote() == []

    run(main)


def test_guarantee_6_the_objects_own_sockets_only() -> None:
    async def main() -> None:
        async with LocalHost([Room]) as host:
            one, two = host.get(Room, "one"), host.get(Room, "two")
            ann, bob = await host.connect(one, query="name=ann"), await host.connect(two)
            await ann.send("hello")
            await one.say.remote("all of one")
            await host.settled()
            assert bob.received == [" is here"]
            assert ann.received[1:] == ["1 you: hello", "all of one"]

    run(main)


@pytest.mark.parametrize("folded", [False, True])
def test_guarantee_6_a_record_whose_messages_were_acknowledged_in_part(folded: bool) -> None:
    async def main() -> None:
        with mock.patch.object(outbox_module, "BATCH_CALLS_MAX", 4):
            async with LocalHost([Room]) as host:
                core = host.core
                assert core is not None
                event = encode(SocketEvent("s", "gw", query="name=ann"))
                call = Call(1, "Room", "lobby", "on_connect", SOCKET, event)
                await core.deliver(Batch("gw", 1, 0, [call]))
                await host.get(Room, "lobby").say_many.remote(10)
                here = [("Room", "lobby", "s")]
                first = await core.poll(Poll("gw", 1, 0, core.incarnation, here))
                assert len(first.pushes) == 4
                second = await core.poll(Poll("gw", 1, first.pushed, core.incarnation))
                assert [push.index for push in second.pushes] == [3, 4, 5, 6]
                if folded:
                    await host.fold()
                await host.crash()
                core = host.core
                assert core is not None
                await core.deliver(Batch("gw", 2, 0, [], resent=True))
                again: list[int] = []
                pushed, incarnation = 0, ""
                while 9 not in again:
                    answer = await core.poll(Poll("gw", 2, pushed, incarnation, here))
                    pushed, incarnation = answer.pushed, answer.incarnation
                    again += [push.index for push in answer.pushes if push.sequence > 1]
                assert again == list(range(10))

    run(main)
