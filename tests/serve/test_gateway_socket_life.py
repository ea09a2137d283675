"""What the gateway does for sockets by itself: answers, tags, subprotocols, pings, idle times; and
how it goes on telling objects that sockets have closed."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import Any

import pytest
from gateway_double import EchoRoom, echo
from test_gateway_sockets import Connection, as_call, closing, run, until
from websockets.asyncio.client import connect

from rayobjects.errors import InvalidCall, MethodError, Overloaded, StorageFailed, Unavailable
from rayobjects.limits import SOCKET_QUEUE_BYTES_MAX
from rayobjects.messages import (
    AUTO,
    SYSTEM,
    TAGS,
    TEXT,
    Call,
    Push,
    Send,
    SocketOpened,
    decode_socket_event,
    encode,
    encode_json,
)
from rayobjects.objects.auto_response import encoded_pairs
from rayobjects.serve import farewells, sockets
from rayobjects.serve.sockets import SocketTable

PING = encoded_pairs({(TEXT, b"ping"): (TEXT, b"pong")}).encode()


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon."""
    for module in (farewells, sockets):
        monkeypatch.setattr(module, "RETRY_FIRST_S", 0.001)
        monkeypatch.setattr(module, "RETRY_MAX_S", 0.005)


def test_answers_that_the_object_need_not_give() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as one, connect(url) as two:
            first = room.events("on_connect")[0].socket
            room.sequence += 1
            room.send(as_call(), PING, AUTO, sockets=(first,))
            await one.send("ping")
            await one.send("echo")
            await two.send("ping")
            assert [await one.recv(), await one.recv()] == ["pong", "echo"]
            assert await two.recv() == "ping"
            assert [event.data for event in room.events("on_message")] == [b"echo", b"ping"]

    run(EchoRoom(), use)


def test_answers_are_bounded_like_all_that_waits_for_a_slow_reader() -> None:
    async def main() -> None:
        room = EchoRoom()
        table = SocketTable(room)
        room.on_push = table.push
        slow = Connection(reads=False)
        task = slow.serve(table)
        await until(lambda: slow.sent)
        long = encoded_pairs({(TEXT, b"ping"): (TEXT, b"x" * 2_000)}).encode()
        room.sequence += 1
        room.send(as_call(), long, AUTO)
        for _ in range(SOCKET_QUEUE_BYTES_MAX // 2_000 + 2):
            slow.received.put_nowait({"type": "websocket.receive", "text": "ping"})
        await until(lambda: room.events("on_close"))
        assert [event.code for event in room.events("on_close")] == [1013]
        assert room.events("on_message") == []
        slow.reading.set()
        await task

    asyncio.run(asyncio.wait_for(main(), 10))


def test_messages_for_a_tag() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as one, connect(url) as two:
            ids = [event.socket for event in room.events("on_connect")]
            assert room.on_push is not None

            def send(data: bytes, kind: int = TEXT, **options: Any) -> Push:
                room.sequence += 1
                push = Push("Room", "lobby", room.sequence, 0, Send(room.id, kind, data, **options))
                room.on_push(push)  # type: ignore[misc]
                return push

            red = encode(["red"])
            pushes = [
                send(b"nobody yet", tag="red"),
                send(red, TAGS, sockets=(ids[0],)),
                send(b"one", tag="red"),
                send(red, TAGS, sockets=(ids[1],)),
                send(b"two", tag="red", exclude=(ids[0],)),
                send(encode([]), TAGS, sockets=(ids[0],)),
                send(b"both", tag=""),
                send(b"two again", tag="red"),
            ]
            for push in pushes:  # after a crash of the host
                room.on_push(push)
            send(b"end")
            assert [await one.recv() for _ in range(3)] == ["one", "both", "end"]
            assert [await two.recv() for _ in range(4)] == ["two", "both", "two again", "end"]

    run(EchoRoom(), use)


def test_the_object_chooses_a_subprotocol() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        answer = room.handler

        def choose(call: Call) -> Any:
            if call.method == "on_connect" and decode_socket_event(call.args).subprotocols:
                return encode(SocketOpened("chat.v2"))
            return answer(call)

        room.handler = choose
        async with connect(url, subprotocols=["chat.v1", "chat.v2"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "chat.v2"
            await client.send("x")
            assert await client.recv() == "x"
        async with connect(url) as client:
            assert client.subprotocol is None
        offered = [event.subprotocols for event in room.events("on_connect")]
        assert offered == [["chat.v1", "chat.v2"], []]

    run(EchoRoom(), use)


def test_a_refusal_is_seen_by_pages_that_offer_subprotocols() -> None:
    """A browser breaks the connection off, without a code, where none of them is agreed on."""
    error = InvalidCall("refused", status=403, details={"close": [4403, "members only"]})

    async def use(room: EchoRoom, url: str) -> None:
        room.handler = lambda call: error
        async with connect(url, subprotocols=["chat.v1"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "chat.v1"
            assert await closing(client) == (4403, "members only")

    run(EchoRoom(), use)


def test_close_codes_of_clients() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            await client.close(4001, "done for today")
        async with connect(url) as client:
            await client.close(1000)
        client = await connect(url)
        client.protocol.send_close()  # a close frame without a code
        client.transport.write(b"".join(client.protocol.data_to_send()))
        await until(lambda: len(room.events("on_close")) == 3)
        client = await connect(url)
        client.transport.abort()  # no close frame at all
        await until(lambda: len(room.events("on_close")) == 4)
        assert [(event.code, event.data) for event in room.events("on_close")] == [
            (4001, b"done for today"),
            (1000, b""),
            (1005, b""),
            (1006, b"connection lost"),
        ]

    run(EchoRoom(), use)


def test_a_client_that_does_not_answer_pings_is_lost() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as alive:
            host, _, port = url.removeprefix("ws://").partition("/")[0].partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /objects/Room/lobby HTTP/1.1\r\nHost: {host}:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")  # and never a pong
            await until(lambda: room.events("on_close"))
            (closed,) = room.events("on_close")
            assert closed.socket == room.events("on_connect")[1].socket
            assert (closed.code, closed.data) == (1006, b"connection lost")
            await alive.send("still here")
            assert await alive.recv() == "still here"
            writer.close()

    run(EchoRoom(), use, server={"ws_ping_interval": 0.05, "ws_ping_timeout": 0.05})


def test_an_idle_socket_is_closed_if_it_is_to_be() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as talks, connect(url) as listens, connect(url) as idle:
            socket = room.events("on_connect")[1].socket
            closed = asyncio.create_task(closing(idle))
            while not closed.done():
                await talks.send("x")
                await talks.recv()
                room.sequence += 1
                room.send(as_call(), b"y", sockets=(socket,))
                await listens.recv()
            assert closed.result() == (1001, "no message for 0.3 s")
            await until(lambda: room.events("on_close"))
            assert [event.code for event in room.events("on_close")] == [1001]

    run(EchoRoom(), use, socket_idle_s=0.3)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("no host: try again"),
        StorageFailed("disk full: make room"),
        Overloaded("too many messages wait: back off"),
        MethodError("Room/lobby.on_start raised ConnectionError"),
    ],
)
@pytest.mark.usefixtures("_soon")
def test_an_object_that_cannot_be_told_of_a_close_is_told_again(error: Exception) -> None:
    failures = 5

    def fail(call: Call) -> Any:
        nonlocal failures
        if call.method == "on_close" and failures:
            failures -= 1
            assert room.open  # until the object knows, the socket counts as open
            return error if not isinstance(error, Unavailable) else _raise(error)
        return b""

    room = EchoRoom()

    async def use(_: EchoRoom, url: str) -> None:
        room.handler = fail
        async with connect(url) as client:
            await client.close(4001, "bye")
        await until(lambda: not room.open)
        told = [(event.code, event.data) for event in room.events("on_close")]
        assert told == [(4001, b"bye")] * 6

    run(room, use)


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        InvalidCall("unknown socket", status=404, details={"socket": "gone"}),
        InvalidCall("no class Room is deployed", status=404),
    ],
)
@pytest.mark.usefixtures("_soon")
def test_an_object_that_does_not_know_the_socket_is_told_once(error: Exception) -> None:
    async def use(room: EchoRoom, url: str) -> None:
        room.handler = lambda call: error if call.method == "on_close" else b""  # type: ignore[assignment, return-value]
        async with connect(url) as client:
            await client.close()
        await until(lambda: not room.open)
        await asyncio.sleep(0.02)
        assert len(room.events("on_close")) == 1

    run(EchoRoom(), use)


@pytest.mark.usefixtures("_soon")
def test_the_number_of_those_to_be_told_again_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewells, "FAREWELLS_MAX", 2)

    async def main() -> None:
        room = EchoRoom()
        error = Overloaded("back off")
        room.handler = lambda call: error  # type: ignore[assignment, return-value]
        told = farewells.Farewells(room)
        for id in "abcd":
            room.socket_opened("Room", "lobby", id)
            told.tell("Room", "lobby", id, 1000, b"")
        await until(lambda: len(room.open) == 2)
        assert told.waiting <= 2
        room.handler = lambda call: b""
        await until(lambda: not room.open)
        assert told.waiting == 0

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.usefixtures("_soon")
def test_sockets_that_a_host_does_not_know_are_asked_for_and_closed() -> None:
    """Their host took this gateway for dead; their clients only listen."""
    asked = 0

    def answer(call: Call) -> Any:
        nonlocal asked
        if call.method == "unknown_sockets":
            assert call.encoding == SYSTEM
            asked += 1
            if asked == 1:
                return StorageFailed("disk full: make room")
            gone = [event.socket for event in room.events("on_connect")][:1]
            return encode_json(gone)
        return echo(call) if call.method == "say" else b""

    room = EchoRoom()

    async def use(_: EchoRoom, url: str) -> None:
        room.handler = answer
        async with connect(url) as gone, connect(url) as known:
            ids = [event.socket for event in room.events("on_connect")]
            entries = [("Room", "lobby", id) for id in ids]
            room.on_unknown([*entries, ("Room", "lobby", "closed since"), ("Room", "b", "x")])
            code, reason = await closing(gone)
            assert code == 1012
            assert "does not know" in reason
            assert asked == 2
            room.sequence += 1
            room.send(as_call(), b"hello")
            assert await known.recv() == "hello"
        await until(lambda: not room.open)

    run(room, use)
