"""WebSockets through the gateway: a real server and a real client, a double for the objects."""

import asyncio
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from gateway_double import EchoRoom
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rayobjects.errors import InvalidCall, MethodError, StorageFailed, Unavailable
from rayobjects.limits import (
    SOCKET_MESSAGE_BYTES_MAX,
    SOCKET_QUEUE_BYTES_MAX,
    SOCKET_UNANSWERED_MAX,
)
from rayobjects.messages import BINARY, CLOSE, TEXT, Call, Push, Send, decode_socket_event
from rayobjects.serve.gateway import Gateway
from rayobjects.serve.socket import Socket
from rayobjects.serve.sockets import SocketTable


@asynccontextmanager
async def serving(
    router: EchoRoom, server: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[str]:
    """Serves a gateway on a free port, with these options of the server; yields
    `127.0.0.1:PORT`."""
    configuration = uvicorn.Config(
        Gateway(router, **options),  # type: ignore[arg-type]
        log_level="error",
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
        **(server or {}),
    )
    serving = uvicorn.Server(configuration)
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(serving.serve(sockets=[listener]))
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            serving.should_exit = True
            await task


def run(router: EchoRoom, use: Callable[[EchoRoom, str], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with serving(router, **options) as address:
            await use(router, f"ws://{address}/objects/Room/lobby")

    asyncio.run(asyncio.wait_for(main(), 20))


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  (the double has no events to wait for)
        await asyncio.sleep(0.001)


async def closing(client: ClientConnection) -> tuple[int, str]:
    """Reads to the end; returns the close code and reason that the client saw."""
    try:
        while True:
            await client.recv()
    except ConnectionClosed:
        return client.close_code or 0, client.close_reason or ""


def as_call(name: str = "lobby") -> Call:
    return Call(0, "Room", name, "", 0, b"")


def test_text_and_bytes_go_both_ways() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url + "?name=Ada%20L", additional_headers={"X-Mine": "1"}) as client:
            await client.send("grüezi")
            assert await client.recv() == "grüezi"
            await client.send(b"\x00\xff")
            assert await client.recv() == b"\x00\xff"
            await client.close(4001, "done for today")
        await until(lambda: room.events("on_close"))
        (opened,) = room.events("on_connect")
        assert opened.query == "name=Ada%20L"
        assert ("x-mine", "1") in opened.headers
        assert opened.gateway == room.id
        first, second = room.events("on_message")
        assert (first.kind, first.data) == (TEXT, "grüezi".encode())
        assert (second.kind, second.data) == (BINARY, b"\x00\xff")
        (closed,) = room.events("on_close")
        assert (closed.code, closed.data) == (4001, b"done for today")
        assert {opened.socket} == {first.socket, second.socket, closed.socket}
        await until(lambda: not room.open)

    run(EchoRoom(), use)


def test_a_name_with_a_slash() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url.replace("lobby", "a%2Fb")):
            assert room.calls[0].name == "a/b"

    run(EchoRoom(), use)


def test_messages_of_one_socket_keep_their_order() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            for number in range(500):
                await client.send(str(number))
            assert [await client.recv() for _ in range(500)] == [str(n) for n in range(500)]
        await until(lambda: room.events("on_close"))
        methods = [call.method for call in room.calls]
        assert methods == ["on_connect", *["on_message"] * 500, "on_close"]

    run(EchoRoom(), use)


def test_a_broken_connection_is_closed_once() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        client = await connect(url)
        client.transport.abort()
        await until(lambda: room.events("on_close"))
        await until(lambda: not room.open)
        assert len(room.events("on_close")) == 1

    run(EchoRoom(), use)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidCall("Room takes no sockets: write on_connect", status=404), 404),
        (InvalidCall("not on the list", status=403), 403),
        (Unavailable("no host: try again"), 503),
        (MethodError("on_connect raised KeyError: 'seat'", cause_type="KeyError"), 500),
    ],
)
def test_a_refusal_is_an_http_answer(error: Exception, status: int) -> None:
    def refuse(call: Call) -> Any:
        if call.method == "on_connect":
            raise error
        return b""

    async def use(room: EchoRoom, url: str) -> None:
        room.handler = refuse
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)
        response = refused.value.response
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert str(error).encode() in (response.body or b"")
        await until(lambda: not room.open)
        # Whether the object opened the socket is unknown only where no answer came.
        assert len(room.events("on_close")) == isinstance(error, Unavailable)

    run(EchoRoom(), use)


def test_the_object_refuses_with_a_code_that_pages_can_see() -> None:
    error = InvalidCall("refused", status=403, details={"close": [4403, "members only"]})

    async def use(room: EchoRoom, url: str) -> None:
        room.handler = lambda call: error
        async with connect(url) as client:
            assert await closing(client) == (4403, "members only")
        assert not room.open
        assert not room.events("on_close")

    run(EchoRoom(), use)


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [
        ("/objects/Room/lobby", "https://evil.example", 403),
        ("/objects/Room/%FF", None, 422),
        ("/objects/Room//", None, 422),
        ("/objects/Room", None, 404),
        ("/objects/Room/lobby/increment", None, 404),
        ("/elsewhere", None, 404),
    ],
)
def test_wrong_openings(path: str, origin: str | None, status: int) -> None:
    async def use(room: EchoRoom, url: str) -> None:
        with pytest.raises(InvalidStatus) as refused:
            await connect(url.replace("/objects/Room/lobby", path), origin=origin)  # type: ignore[arg-type]
        assert refused.value.response.status_code == status
        assert not room.calls

    run(EchoRoom(), use)


@pytest.mark.parametrize("path", ["/objects/Room/lobby", "/mine"])
def test_names_that_were_not_allowed(path: str) -> None:
    async def use(room: EchoRoom, url: str) -> None:
        address = url.replace("ws://127.0.0.1", "ws://rebound.example")
        address = address.replace("/objects/Room/lobby", path)
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, host="127.0.0.1", port=port, origin=address[:30])  # type: ignore[arg-type]
        assert refused.value.response.status_code == 421
        assert not room.calls

    run(EchoRoom(), use)


def test_sockets_of_the_users_app() -> None:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/mine")
    async def mine(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("mine")

    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url.replace("/objects/Room/lobby", "/mine")) as client:
            assert await client.recv() == "mine"

    run(EchoRoom(), use, app=app)


def test_a_broadcast_reaches_all_but_the_excluded() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as one, connect(url) as two, connect(url) as three:
            ids = [event.socket for event in room.events("on_connect")]
            room.sequence += 1
            room.send(as_call(), b"to all but one", exclude=(ids[0],))
            room.sequence += 1
            room.send(as_call("another room"), b"not here")
            room.send(as_call(), b"to one and three", sockets=(ids[0], ids[2], "unknown"))
            assert await one.recv() == "to one and three"
            assert await two.recv() == "to all but one"
            assert await three.recv() == "to all but one"
            assert await three.recv() == "to one and three"

    run(EchoRoom(), use)


def test_repeated_pushes_are_dropped() -> None:
    """Guarantee 6: exactly once and in order though the host dies and sends again."""

    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            pushes = []
            for _ in range(5):
                room.sequence += 1
                pushes.append(room.send(as_call(), str(room.sequence).encode()))
            assert room.on_push is not None
            for push in pushes:  # the new host repeats what was not acknowledged
                room.on_push(push)
            room.sequence += 1
            room.send(as_call(), b"new")
            seen = [await client.recv() for _ in range(6)]
            assert seen == ["2", "3", "4", "5", "6", "new"]

    run(EchoRoom(), use)


def test_the_object_closes_a_socket() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            room.sequence += 1
            room.send(as_call(), b"goodbye")
            room.sequence += 1
            room.send(as_call(), b"thrown out", CLOSE, code=4000)
            room.sequence += 1
            room.send(as_call(), b"too late")
            assert await client.recv() == "goodbye"
            assert await closing(client) == (4000, "thrown out")
        await until(lambda: not room.open)
        assert len(room.events("on_close")) == 1

    run(EchoRoom(), use)


def test_pushes_before_the_reply_to_on_connect() -> None:
    """What on_connect sent is delivered, what the room was sent before is not."""

    async def use(room: EchoRoom, url: str) -> None:
        def open_late(call: Call) -> bytes:
            event = decode_socket_event(call.args)
            if call.method != "on_connect":
                return b""
            room.sequence = 6
            room.send(call, b"before you came")
            room.sequence = 7
            room.send(call, b"welcome", sockets=(event.socket,))
            room.sequence = 8
            room.send(call, b"after you came")
            room.sequence = 7
            return b""

        room.handler = open_late
        async with connect(url) as client:
            assert [await client.recv(), await client.recv()] == ["welcome", "after you came"]

    run(EchoRoom(), use)


def test_a_message_that_is_too_large() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            await client.send("x" * SOCKET_MESSAGE_BYTES_MAX)
            assert len(await client.recv()) == SOCKET_MESSAGE_BYTES_MAX
            await client.send("ü" * (SOCKET_MESSAGE_BYTES_MAX // 2 + 1))
            code, reason = await closing(client)
            assert code == 1009
            assert "1,048,576" in reason
        await until(lambda: not room.open)
        assert [event.code for event in room.events("on_close")] == [1009]

    run(EchoRoom(), use)


def test_an_object_that_forgot_the_socket() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            await client.send("forget me")
            assert (await closing(client))[0] == 1012

    run(EchoRoom(), use)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no host: try again"), 1013),
        (StorageFailed("disk full: make room"), 1013),
        (InvalidCall("class Room is not deployed: deploy it", status=404), 1011),
    ],
)
def test_errors_that_end_a_socket(error: Exception, code: int) -> None:
    def fail(call: Call) -> Any:
        if call.method == "on_message":
            raise error
        return b""

    async def use(room: EchoRoom, url: str) -> None:
        room.handler = fail
        async with connect(url) as client:
            await client.send("x")
            assert await closing(client) == (code, str(error))
        await until(lambda: not room.open)
        assert [event.code for event in room.events("on_close")] == [code]

    run(EchoRoom(), use)


def test_a_method_that_raises_leaves_the_socket_open(caplog: pytest.LogCaptureFixture) -> None:
    async def use(room: EchoRoom, url: str) -> None:
        answer = room.handler

        def fail_once(call: Call) -> Any:
            if call.args and decode_socket_event(call.args).data == b"bad":
                return MethodError("Room/lobby.on_message raised ValueError: bad")
            return answer(call)

        room.handler = fail_once
        async with connect(url) as client:
            await client.send("bad")
            await client.send("good")
            assert await client.recv() == "good"
        assert "ValueError: bad" in caplog.text

    run(EchoRoom(), use)


def test_a_socket_whose_object_is_slow_is_read_no_further() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url) as client:
            room.held = asyncio.Event()
            count = SOCKET_UNANSWERED_MAX * 3
            for number in range(count):
                await client.send(str(number))
            await until(lambda: len(room.events("on_message")) == SOCKET_UNANSWERED_MAX)
            await client.ping()  # the server is alive; only this socket's messages wait
            await asyncio.sleep(0.02)
            assert len(room.events("on_message")) == SOCKET_UNANSWERED_MAX
            room.held.set()
            seen = [await client.recv() for _ in range(count)]
            assert seen == [str(number) for number in range(count)]

    run(EchoRoom(), use)


class Connection:
    """An ASGI connection whose client reads only when told to."""

    def __init__(self, *, reads: bool) -> None:
        self.sent: list[Any] = []
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.received.put_nowait({"type": "websocket.connect"})
        self.reading = asyncio.Event()
        if reads:
            self.reading.set()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            await self.reading.wait()
        self.sent.append(message)

    def serve(self, table: SocketTable) -> asyncio.Task[Any]:
        scope = {"query_string": b"", "headers": []}
        serving = table.serve("Room", "lobby", scope, self.received.get, self.send)
        return asyncio.create_task(serving)  # type: ignore[arg-type]


def test_a_slow_reader_is_closed_and_holds_up_nobody() -> None:
    async def main() -> None:
        room = EchoRoom()
        table = SocketTable(room)
        room.on_push = table.push
        slow, quick = Connection(reads=False), Connection(reads=True)
        tasks = [slow.serve(table), quick.serve(table)]
        await until(lambda: slow.sent and quick.sent)
        part = b"x" * 2**20
        count = SOCKET_QUEUE_BYTES_MAX // len(part) + 1
        for _ in range(count):
            room.sequence += 1
            room.send(as_call(), part)
            await asyncio.sleep(0)
        await until(lambda: len(quick.sent) == count + 1)
        assert [event.code for event in room.events("on_close")] == [1013]
        slow.reading.set()
        await tasks[0]
        assert slow.sent[-1] == {
            "type": "websocket.close",
            "code": 1013,
            "reason": "reads too slowly",
        }
        assert len(table) == 1
        quick.received.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await tasks[1]
        assert len(table) == 0
        await until(lambda: not room.open)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_reader_that_never_reads_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayobjects.serve import socket

    monkeypatch.setattr(socket, "SOCKET_CLOSE_WAIT_S", 0.01)

    async def main() -> None:
        room = EchoRoom()
        table = SocketTable(room)
        room.on_push = table.push
        stuck = Connection(reads=False)
        task = stuck.serve(table)
        await until(lambda: stuck.sent)
        for _ in range(2):
            room.sequence += 1
            room.send(as_call(), b"x" * SOCKET_QUEUE_BYTES_MAX)
        await task
        assert len(table) == 0
        await until(lambda: not room.open)

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize("opened", [False, True])
def test_a_server_that_cancels_tells_the_object_once(opened: bool) -> None:
    async def main() -> None:
        room = EchoRoom()
        table = SocketTable(room)
        if not opened:
            room.held = asyncio.Event()
        connection = Connection(reads=True)
        task = connection.serve(table)
        await until(lambda: connection.sent if opened else room.calls)
        task.cancel()
        await asyncio.wait({task})
        assert [call.method for call in room.calls] == ["on_connect", "on_close"]
        assert len(table) == 0
        if room.held is not None:
            room.held.set()
        await until(lambda: not room.open)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_positions_never_go_back() -> None:
    async def main() -> None:
        room = EchoRoom()
        connection = Connection(reads=True)
        table = SocketTable(room, new_id=lambda: "socket-1")
        task = connection.serve(table)
        await until(lambda: connection.sent)
        order = [(3, 0), (3, 1), (3, 1), (2, 9), (3, 0), (5, 0), (4, 0), (5, 1)]
        for sequence, index in order:
            send = Send("gateway-1", TEXT, f"{sequence}.{index}".encode())
            table.push(Push("Room", "lobby", sequence, index, send))
        await until(lambda: len(connection.sent) == 5)
        texts = [message["text"] for message in connection.sent[1:]]
        assert texts == ["3.0", "3.1", "5.0", "5.1"]
        connection.received.put_nowait({"type": "websocket.disconnect"})
        await task

    asyncio.run(asyncio.wait_for(main(), 10))


def test_http_goes_on_beside_sockets() -> None:
    async def use(room: EchoRoom, url: str) -> None:
        async with connect(url), httpx.AsyncClient() as client:
            address = url.replace("ws:", "http:").replace("/objects/Room/lobby", "")
            answer = await client.post(f"{address}/objects/Room/lobby/say", content=b'{"x": 1}')
            assert answer.json() == {"x": 1}

    run(EchoRoom(), use)


def test_reasons_fit_into_a_close_frame() -> None:
    from rayobjects.serve.socket import REASON_BYTES_MAX, _cut

    cut = _cut("ü" * 200)
    assert len(cut.encode()) <= REASON_BYTES_MAX
    assert cut == "ü" * (REASON_BYTES_MAX // 2)
    assert Socket.__slots__  # a thousand of them in a room are small
