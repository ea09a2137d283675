"""A channel's Unix socket: frames whole whatever the pieces, failures at once, private files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rayobjects.runtime.link import DELIVER, POLL, LinkServer, LocalLink


@pytest.fixture(autouse=True)
def short_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Socket files of the test; pytest's own directories are too long for their paths."""
    with tempfile.TemporaryDirectory(prefix="ro-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def exists(path: str) -> bool:
    return Path(path).exists()


async def echo(body: bytes) -> bytes:
    return b"delivered " + body


async def never(body: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[LinkServer, LocalLink]]:
    server = LinkServer({DELIVER: echo, POLL: never}, "host")
    await server.start()
    link = await LocalLink.connect(server.path)
    assert link is not None
    yield server, link
    link.close()
    server.close()


def test_many_requests_under_way_get_their_own_answers() -> None:
    async def run() -> None:
        async with serving() as (_, link):
            standing = asyncio.ensure_future(link.request(POLL, b"", 60))
            answers = await asyncio.gather(
                *(link.request(DELIVER, b"%d" % number, 5) for number in range(100))
            )
            assert answers == [b"delivered %d" % number for number in range(100)]
            assert not standing.done()
            standing.cancel()

    asyncio.run(run())


def test_a_large_body_crosses_in_pieces() -> None:
    async def run() -> None:
        async with serving() as (_, link):
            body = os.urandom(8 << 20)
            assert await link.request(DELIVER, body, 30) == b"delivered " + body

    asyncio.run(run())


def test_a_frame_that_comes_byte_by_byte() -> None:
    link = LocalLink()

    async def run() -> None:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        link._asked[7] = answer
        for byte in b"\x03\0\0\0\0\x07\0\0\0abc" + b"\x01\0\0":
            link.data_received(bytes([byte]))
        assert answer.result() == b"abc"

    asyncio.run(run())


def test_no_answer_in_time_is_an_error_and_the_link_goes_on() -> None:
    async def run() -> None:
        async with serving() as (_, link):
            with pytest.raises(TimeoutError):
                await link.request(POLL, b"", 0.01)
            assert await link.request(DELIVER, b"x", 5) == b"delivered x"

    asyncio.run(run())


def test_a_host_that_fails_ends_its_connection() -> None:
    async def fails(body: bytes) -> bytes:
        raise RuntimeError("broken host")

    async def run() -> None:
        server = LinkServer({DELIVER: fails, POLL: never}, "host")
        await server.start()
        link = await LocalLink.connect(server.path)
        assert link is not None
        standing = asyncio.ensure_future(link.request(POLL, b"", 60))
        with pytest.raises(ConnectionError):
            await link.request(DELIVER, b"", 60)
        with pytest.raises(ConnectionError):
            await standing
        with pytest.raises(ConnectionError):
            await link.request(DELIVER, b"", 60)
        server.close()

    asyncio.run(run())


HOST = """
import asyncio, sys, tempfile
from rayobjects.runtime.link import DELIVER, LinkServer
tempfile.tempdir = sys.argv[1]

async def never(body):
    await asyncio.Event().wait()

async def run():
    server = LinkServer({DELIVER: never}, "host")
    await server.start()
    print(server.path, flush=True)
    await asyncio.Event().wait()

asyncio.run(run())
"""


def test_a_killed_host_is_noticed_at_once_and_its_file_removed_later(short_directory: Path) -> None:
    async def run(path: str) -> None:
        link = await LocalLink.connect(path)
        assert link is not None
        waiting = asyncio.ensure_future(link.request(DELIVER, b"", 600))
        await asyncio.sleep(0)
        host.kill()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(waiting, 30)
        host.wait()
        assert exists(path)
        assert await LocalLink.connect(path) is None
        async with serving():
            assert not exists(path)

    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(short_directory)], stdout=subprocess.PIPE, text=True
    )
    with host:
        assert host.stdout is not None
        asyncio.run(run(host.stdout.readline().strip()))


def test_a_path_of_another_machine_leads_nowhere() -> None:
    assert asyncio.run(LocalLink.connect("/nonexistent/1-abc.sock")) is None


def test_only_the_user_may_enter(short_directory: Path) -> None:
    async def run() -> str:
        async with serving() as (server, _):
            return server.path

    path = asyncio.run(run())
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    assert not os.path.exists(path), "a host that stops removes its file"


def test_a_directory_that_is_open_to_others_is_not_used(short_directory: Path) -> None:
    (short_directory / f"rayobjects-{os.getuid()}").mkdir()
    (short_directory / f"rayobjects-{os.getuid()}").chmod(0o777)

    async def run() -> str:
        server = LinkServer({DELIVER: echo}, "host")
        await server.start()
        return server.path

    assert asyncio.run(run()) == ""
