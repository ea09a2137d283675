"""Sockets as their clients meet them: through HAProxy, Serve, the gateway and Ray."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from served import Served
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.timeout(300)  # a busy machine takes its time to start Ray

APP = Path(__file__).with_name("rooms_app.py")
WITHIN_S = 60.0
SOCKETS = 1_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYOBJECTS_SOCKET_PING_S", "2")
        patch.setenv("RAYOBJECTS_ALLOWED_HOSTS", "rooms.example")
        with Served(APP, tmp_path_factory.mktemp("rooms")) as started:
            yield started


def room(served: Served, name: str, query: str = "") -> str:
    return f"ws://127.0.0.1:{served.port}/objects/Lobby/{name}?{query}"


async def call(served: Served, name: str, method: str, **arguments: Any) -> Any:
    async with httpx.AsyncClient(timeout=WITHIN_S) as client:
        path = f"{served.url}/objects/Lobby/{name}/{method}"
        answer = await client.post(path, json=arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def until(condition: Callable[[], Any]) -> float:
    """Waits until something is so; the seconds that it took."""
    begin = time.monotonic()
    while not await condition():
        assert time.monotonic() < begin + WITHIN_S
        await asyncio.sleep(0.05)
    return time.monotonic() - begin


async def closing(client: ClientConnection) -> tuple[int | None, str | None]:
    try:
        while True:
            await client.recv()
    except ConnectionClosed:
        return client.close_code, client.close_reason


def replica(served: Served) -> psutil.Process:
    """The gateway's process."""
    found = [
        each
        for each in psutil.Process(served.process.pid).children(recursive=True)
        if any("ServeReplica" in part for part in each.cmdline())
    ]
    (process,) = found
    return process


def test_codes_tags_and_subprotocols(served: Served) -> None:
    async def main() -> None:
        url = room(served, "codes", "name=ann")
        async with connect(url, subprotocols=["v1", "v2"]) as ann:  # type: ignore[list-item]
            assert ann.subprotocol == "v2"
            async with connect(room(served, "codes", "name=bob")) as bob:
                assert bob.subprotocol is None
                await call(served, "codes", "say", text="to ann", tag="odd")
                await call(served, "codes", "say", text="to bob", tag="even")
                assert await ann.recv() == "to ann"
                assert await bob.recv() == "to bob"
                await bob.send("ping")
                assert await bob.recv() == "pong"
                await bob.send("out")
                assert await closing(bob) == (4000, "as you like")
            await ann.close(4001, "bye")
        stranger = room(served, "codes", "name=stranger")
        async with connect(stranger, subprotocols=["v1"]) as client:  # type: ignore[list-item]
            assert await closing(client) == (4403, "members only")
        await until(lambda: _is(served, "codes", "gone", ["ann 4001 bye"]))

    asyncio.run(main())


async def _is(served: Served, name: str, method: str, value: Any) -> bool:
    return bool(await call(served, name, method) == value)


def test_names_of_the_gateway(served: Served) -> None:
    async def main() -> None:
        url = room(served, "names").replace("127.0.0.1", "rebound.example")
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, host="127.0.0.1", port=served.port)
        assert refused.value.response.status_code == 421
        async with connect(
            url.replace("rebound", "rooms"), host="127.0.0.1", port=served.port
        ) as client:
            await client.send("x")
            assert await client.recv() == "x"

    asyncio.run(main())
    headers = {"host": "rebound.example"}
    assert httpx.get(f"{served.url}/docs", headers=headers).status_code == 421


def test_a_client_that_is_gone_without_a_word_is_noticed(served: Served) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            "GET /objects/Lobby/silent?name=ann HTTP/1.1\r\nHost: localhost\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")  # and never a pong
        await until(lambda: _is(served, "silent", "gone", ["ann 1006 connection lost"]))
        writer.close()

    asyncio.run(main())


def test_a_thousand_sockets_in_a_room(served: Served) -> None:
    async def main() -> None:
        opening = asyncio.Semaphore(100)

        async def opened(number: int) -> ClientConnection:
            async with opening:
                url = room(served, "thousand", f"name={number}")
                return await connect(url, open_timeout=WITHIN_S, ping_interval=None)

        clients = await asyncio.gather(*(opened(number) for number in range(SOCKETS)))
        assert await call(served, "thousand", "count") == SOCKETS
        await call(served, "thousand", "say", text="hello, all of you")
        heard = await asyncio.gather(*(client.recv() for client in clients))
        assert heard == ["hello, all of you"] * SOCKETS
        await call(served, "thousand", "say", text="half of you", tag="odd")
        await call(served, "thousand", "say", text="end")
        heard = await asyncio.gather(*(client.recv() for client in clients))
        assert heard.count("half of you") == SOCKETS // 2
        await asyncio.gather(*(client.close() for client in clients))
        await until(lambda: _is(served, "thousand", "count", 0))

    asyncio.run(main())


def test_a_gateway_that_stands_still(served: Served) -> None:
    """Its room takes it for dead in the end, and it tells clients that only listen."""

    async def main() -> None:
        async with connect(room(served, "still", "name=ann"), ping_interval=None) as listens:
            gateway = replica(served)
            host = gateway.pid
            os.kill(host, signal.SIGSTOP)
            try:
                await until(_host_gave_up(served))
            finally:
                os.kill(host, signal.SIGCONT)
            assert await asyncio.wait_for(closing(listens), WITHIN_S) == (
                1012,
                "the object does not know this socket any more",
            )
        assert await call(served, "still", "gone") == ["ann 1006 connection lost"]

    asyncio.run(main())


def _host_gave_up(served: Served) -> Callable[[], Any]:
    """Asks by the command line, because the gateway stands still."""

    async def gave_up() -> bool:
        asked = await asyncio.to_thread(served.run, "call", "Lobby", "still", "count")
        return asked.returncode == 0 and asked.stdout.strip() == "0"

    return gave_up


def test_a_killed_gateway_is_noticed_within_seconds(served: Served) -> None:
    async def main() -> None:
        async with connect(room(served, "killed", "name=ann")) as client:
            await client.send("x")
            assert await client.recv() == "x"
            killed_at = time.time()
            replica(served).kill()
            assert (await closing(client))[0] == 1006

        async def gone_at() -> float:
            asked = await asyncio.to_thread(served.run, "call", "Lobby", "killed", "gone_at")
            return float(asked.stdout) if asked.returncode == 0 else 0.0

        await until(gone_at)
        # Two seconds of silence and one to the next look, on a quiet machine. Without Ray's word it
        # would be ten since its last request, which came every second.
        assert await gone_at() - killed_at < 9

    asyncio.run(main())
