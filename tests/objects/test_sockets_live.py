"""Sockets of live objects, without Ray: what can be done with them, through sleep, the
death of the host, new versions, and the death of gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import pytest

import rayobjects as ro
from rayobjects.errors import InvalidCall, MethodError
from rayobjects.limits import (
    ATTACHMENT_BYTES_MAX,
    GATEWAY_SILENT_S,
    GATEWAY_SUSPECT_S,
    SOCKET_QUEUE_BYTES_MAX,
)
from rayobjects.messages import SOCKET, Batch, Call, Poll, SocketEvent, encode
from rayobjects.objects.closings import RETRY_FIRST_S
from rayobjects.testing import LocalHost, LocalSocket

FAULTS: dict[str, Any] = {}


class Room(ro.DurableObject):
    left: list[str] = ro.durable(factory=list)
    heard: int = ro.durable(0)

    def on_start(self) -> None:
        if FAULTS.pop("on_start", None):
            raise ConnectionError("the database of the room is away")
        FAULTS["starts"] = FAULTS.get("starts", 0) + 1

    def on_connect(self, ws: ro.WebSocket) -> None:
        name = ws.query.get("name", "")
        if name == "stranger":
            ws.close(4403, "members only")
        ws.attachment = {"name": name, "pad": ws.query.get("pad", "")}
        if "tags" in ws.query:
            ws.tags = ws.query["tags"].split(",")
        if "v2" in ws.subprotocols:
            ws.subprotocol = "v2"
        self.sockets.auto_response("ping", "pong")

    async def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        self.heard += 1
        gate = FAULTS.get("gate")
        if gate is not None:
            await gate.wait()
        if data == "out":
            ws.close(4000, "as you like")
            return
        ws.send(data)

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        self.left.append(f"{ws.attachment['name']} {code} {reason}".strip())

    def say(self, text: str, tag: str | None = None, exclude: str | None = None) -> None:
        self.sockets.broadcast(text, tag=tag, exclude=exclude)

    def names(self, tag: str | None = None) -> list[str]:
        return [ws.attachment["name"] for ws in self.sockets(tag=tag)]

    def retag(self, name: str, tags: list[str]) -> None:
        for ws in self.sockets:
            if ws.attachment["name"] == name:
                ws.tags = tags

    def answer(self, request: str, response: str | None) -> None:
        self.sockets.auto_response(request, response)

    def subprotocols(self) -> list[str]:
        return [ws.subprotocol for ws in self.sockets]

    def gone(self) -> list[str]:
        return self.left

    def messages(self) -> int:
        return self.heard


def run(main: Callable[[LocalHost], Awaitable[None]], **options: Any) -> None:
    FAULTS.clear()

    async def timed() -> None:
        async with LocalHost([Room], **options) as host:
            await asyncio.wait_for(main(host), 60)

    asyncio.run(timed())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(0)


async def happens(host: LocalHost, how: str) -> None:
    """What a socket must outlive."""
    room = host.get(Room, "lobby")
    if how == "sleep":
        await host.move(61)
        await until(lambda: not host.is_live(room))
    elif how == "evict":
        await host.evict(room)
    elif how == "deploy":
        await host.deploy(Room)
    elif how == "fold and crash":
        await host.fold()
        await host.crash()
    else:
        await getattr(host, how)()


HAPPENINGS = ["sleep", "evict", "deploy", "kill", "crash", "fold and crash"]


@pytest.mark.parametrize("how", HAPPENINGS)
def test_guarantee_6_an_idle_object_sleeps_with_open_sockets_and_wakes(how: str) -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann&tags=red", subprotocols=["v1", "v2"])
        bob = await host.connect(room, query="name=bob&tags=red,tall", gateway="other")
        for number in range(2):
            await happens(host, how)
            await ann.send(f"awake {number}")
            await room.say.remote(f"red {number}", tag="red")
            await room.say.remote(f"tall {number}", tag="tall")
            await host.settled()
        assert ann.received == ["awake 0", "red 0", "awake 1", "red 1"]
        assert bob.received == ["red 0", "tall 0", "red 1", "tall 1"]
        assert ann.closed is bob.closed is None
        assert sorted(await room.names.remote("red")) == ["ann", "bob"]
        assert await room.names.remote("tall") == ["bob"]
        assert sorted(await room.subprotocols.remote()) == ["", "v2"]

    run(main)


@pytest.mark.parametrize("how", HAPPENINGS)
def test_auto_responses_do_not_wake_the_object(how: str) -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann")
        await ann.send("hello")
        await host.evict(room)
        await happens(host, how)
        starts = FAULTS["starts"]
        await ann.send("ping")
        assert ann.received == ["hello", "pong"]
        assert FAULTS["starts"] == starts
        assert not host.is_live(room)
        # Not even a new session of the gateway, or a new socket, has to hear it again.
        bob = await host.connect(room, query="name=bob", gateway="other")
        await bob.send("ping")
        await bob.send(b"ping")  # bytes are another message
        assert bob.received == ["pong", b"ping"]
        assert await room.messages.remote() == 2

    run(main)


def test_auto_responses_of_all_sockets_change_together() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann")
        bob = await host.connect(room, query="name=bob", gateway="other")
        await room.answer.remote("ping", "PONG")
        await room.answer.remote("time", "never")
        host.gateway("other").channel.lose_polls = 1
        await room.answer.remote("ping", None)
        await host.crash()
        await host.settled()
        for socket in (ann, bob):
            await socket.send("time")
            await socket.send("ping")
            assert socket.received == ["never", "ping"]

    run(main)


def test_tags_may_change_and_messages_go_by_those_of_their_time() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann&tags=red")
        bob = await host.connect(room, query="name=bob&tags=blue")
        host.gateway().channel.lose_polls = 1
        said = [
            room.say.remote("1", tag="red"),
            room.retag.remote("bob", ["red", "blue"]),
            room.say.remote("2", tag="red"),
            room.retag.remote("ann", []),
            room.say.remote("3", tag="red"),
            room.say.remote("4", tag="blue", exclude=bob.id),
            room.say.remote("5", tag="green"),
            room.say.remote("6"),
        ]
        await asyncio.gather(*said)
        await host.crash()  # and all that was not acknowledged comes again
        await host.settled()
        assert ann.received == ["1", "2", "6"]
        assert bob.received == ["2", "3", "6"]
        assert ann.tags == frozenset()
        assert bob.tags == {"red", "blue"}

    run(main)


def test_refused_with_a_code() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        with pytest.raises(InvalidCall, match="members only") as refused:
            await host.connect(room, query="name=stranger", subprotocols=["v2"])
        assert refused.value.details["close"] == [4403, "members only"]
        assert await room.names.remote() == []
        assert await room.gone.remote() == []

    run(main)


def test_close_codes_go_both_ways() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann, bob, cid = [await host.connect(room, query={"name": n}) for n in ("ann", "bob", "cid")]
        await ann.close(4001, "done for today")
        await bob.send("out")
        assert bob.closed == (4000, "as you like")
        await host.crash()
        await cid.lose()
        assert await room.gone.remote() == ["ann 4001 done for today", "cid 1006 connection lost"]
        assert await room.names.remote() == []

    run(main)


def test_an_agreed_subprotocol() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann", subprotocols=["v1", "v2"])
        bob = await host.connect(room, query="name=bob", subprotocols=["v1"])
        assert (ann.subprotocol, bob.subprotocol) == ("v2", "")

    run(main)


@pytest.mark.parametrize("how", HAPPENINGS)
def test_an_attachment_of_the_largest_size(how: str) -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        overhead = len('{"name":"ann","pad":""}')
        pad = "x" * (ATTACHMENT_BYTES_MAX - overhead)
        with pytest.raises(InvalidCall, match="at most 16,384 bytes"):
            await host.connect(room, query={"name": "ann", "pad": pad + "x"})
        await host.connect(room, query={"name": "ann", "pad": pad})
        await happens(host, how)
        assert await room.names.remote() == ["ann"]

    run(main)


def test_a_slow_reader_is_closed() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann")
        bob = await host.connect(room, query="name=bob")
        ann.pause()
        await room.say.remote("kept")
        await host.settled()
        assert ann.received == []
        ann.resume()
        assert ann.received == ["kept"]
        ann.pause()
        text = "x" * (2**20)
        for _ in range(SOCKET_QUEUE_BYTES_MAX // len(text) + 1):
            await room.say.remote(text)
        await host.settled()
        assert ann.closed == (1013, "reads too slowly")
        assert len(bob.received) == SOCKET_QUEUE_BYTES_MAX // len(text) + 2
        await until(lambda: len(host.gateway().channel.sockets) == 1)
        assert await room.gone.remote() == ["ann 1013 reads too slowly"]

    run(main)


def test_a_thousand_sockets_in_a_room() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        sockets: list[LocalSocket] = []
        for number in range(1_000):
            query = {"name": str(number), "tags": "even" if number % 2 == 0 else "odd"}
            sockets.append(await host.connect(room, query=query, gateway=f"g{number % 3}"))
        await room.say.remote("all")
        await room.say.remote("half", tag="odd")
        await host.settled()
        # A broadcast crosses to each gateway once, for a tag too.
        for name in ("g0", "g1", "g2"):
            data = [push.send.data for push in host.gateway(name).pushes]
            assert data.count(b"all") == data.count(b"half") == 1
        await host.crash()
        await room.say.remote("all but one", exclude=sockets[5].id)
        await host.settled()
        for number, socket in enumerate(sockets):
            expected = ["all", "half", "all but one"]
            if number % 2 == 0:
                expected.remove("half")
            if number == 5:
                expected.remove("all but one")
            assert socket.received == expected
        assert len(await room.names.remote("even")) == 500

    run(main)


def test_a_dead_gateway_is_noticed_within_seconds() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        await host.connect(room, query="name=ann", gateway="one")
        await host.connect(room, query="name=bob", gateway="two")
        host.gateway("one").die()
        host.gateway("two").silent = True  # its process lives: it is only slow
        await host.move(GATEWAY_SUSPECT_S + 0.5)
        await until(lambda: host.core is not None and not host.core.gateways.sockets.get("one-1"))
        assert await room.gone.remote() == ["ann 1006 connection lost"]
        assert await room.names.remote() == ["bob"]

    run(main)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_gateway_that_stood_still_closes_what_was_given_up(restarted: bool) -> None:
    """Its clients only listen, so no message of theirs would ever tell."""

    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann")
        bob = await host.connect(room, query="name=bob", gateway="other")
        gateway = host.gateway()
        gateway.silent = True
        await host.move(GATEWAY_SILENT_S + 1)
        assert await room.gone.remote() == ["ann 1006 connection lost"]
        if restarted:  # and the next host knows nothing of it
            await host.crash()
        await until(lambda: ann.closed is not None)
        assert ann.closed == (1012, "the object does not know this socket any more")
        assert await room.names.remote() == ["bob"]
        # The gateway is as good as any from then on.
        cid = await host.connect(room, query="name=cid")
        await room.say.remote("hello")
        await host.settled()
        assert cid.received == bob.received == ["hello"]

    run(main)


def test_a_list_of_sockets_that_comes_late_closes_no_newer_ones() -> None:
    async def main(host: LocalHost) -> None:
        core = host.core
        assert core is not None
        for session in (1, 2):
            # In the second session, a list from before the opening of "b" comes after it.
            name = "ab"[session - 1]
            event = encode(SocketEvent(name, "gw", query=f"name={name}"))
            call = Call(session, "Room", "lobby", "on_connect", SOCKET, event)
            await core.deliver(Batch("gw", session, 0, [call]))
        await core.poll(Poll("gw", 2, 0, core.incarnation, []))
        room = host.get(Room, "lobby")
        await until(lambda: core.gateways.sockets["gw"] == {("Room", "lobby", "b")})
        assert await room.gone.remote() == ["a 1006 connection lost"]
        assert await room.names.remote() == ["b"]

    run(main)


def test_on_close_is_tried_again_until_the_object_has_taken_it() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        await host.connect(room, query="name=ann", gateway="one")
        await host.evict(room)
        FAULTS["on_start"] = True  # only the first time
        host.gateway("one").die()
        await host.move(GATEWAY_SUSPECT_S + 0.5)
        await until(lambda: "on_start" not in FAULTS and not host.is_live(room))
        assert host.core is not None
        await until(lambda: not host.core.gateways._closings._under_way)  # it is answered
        for _ in range(3):
            await host.move(RETRY_FIRST_S)
        assert await room.gone.remote() == ["ann 1006 connection lost"]

    run(main)


def test_a_gateway_tells_on_close_until_the_object_has_taken_it() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann")
        await host.evict(room)
        FAULTS["on_start"] = True
        await ann.close(4001, "bye")
        assert await room.gone.remote() == ["ann 4001 bye"]
        await host.evict(room)
        FAULTS["on_start"] = True
        with pytest.raises(MethodError, match="database"):
            await host.connect(room, query="name=bob")

    run(main)


def test_a_busy_object_is_told_once() -> None:
    async def main(host: LocalHost) -> None:
        room = host.get(Room, "lobby")
        ann = await host.connect(room, query="name=ann")
        await host.connect(room, query="name=bob", gateway="one")
        FAULTS["gate"] = asyncio.Event()
        sent = ann.post("hold the turn")
        host.gateway("one").die()
        core = host.core
        assert core is not None
        with mock.patch.object(core, "resubmit", wraps=core.resubmit) as submitted:
            for _ in range(20):
                await host.move(1)
            assert submitted.call_count == 1
        FAULTS["gate"].set()
        await sent
        assert await room.gone.remote() == ["bob 1006 connection lost"]

    run(main)
