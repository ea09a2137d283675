"""How a channel's batches travel: by Ray calls, or on one machine over a Unix socket.

A Ray call costs a millisecond and up to 0.4 ms of both processes' time, whatever it carries; the
same bytes over a Unix socket cost a tenth of that. So a host listens on a socket file of its own,
tells its path with the first answer of a session, and a channel on the same machine goes on over
it. Where that cannot be (another machine, another user, no Unix sockets), Ray's calls carry
everything; nothing else differs, because the channel alone numbers, orders and sends again.

The file lies in a directory that only its user may enter, so whoever can connect could also reach
the host's memory; and since its name is new for each process, a path from another machine leads
nowhere. When either end dies, the kernel closes the connection, every request under way fails at
once, and the channel begins a new session by a Ray call, which finds or starts the host.

A frame is the length of its body, what it asks for, a number that its answer repeats, and the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, cast

from rayobjects.runtime.background import spawn

logger = logging.getLogger("rayobjects")

DELIVER = 0
POLL = 1
LEDGER = 2
"""Of a dedicated object's actor to its shard's host."""

CONNECT_WITHIN_S = 1.0
"""Connecting to a Unix socket takes microseconds, unless its process is stopped."""

_METHODS = {DELIVER: "deliver", POLL: "poll", LEDGER: "ledger"}

_HEADER = struct.Struct("<IBI")

Serve = Callable[[bytes], Awaitable[bytes]]


class Link(Protocol):
    """Carries requests to one host."""

    async def request(self, kind: int, body: bytes, within_s: float) -> bytes:
        """Sends DELIVER, POLL or LEDGER and returns the answer.

        Raises:
            Exception: there is no answer, for whatever reason, or none within `within_s` seconds.
        """
        ...

    def close(self) -> None:
        """Ends it; requests under way fail."""
        ...


class RayLink:
    """By calls to the host's actor, on whatever machine it is."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def request(self, kind: int, body: bytes, within_s: float) -> bytes:
        method = getattr(self._handle, _METHODS[kind])
        answer: bytes = await asyncio.wait_for(
            method.remote(body).as_future(_internal=True), within_s
        )
        return answer

    def close(self) -> None:
        pass


class _Frames(asyncio.Protocol):
    """One end of a connection: cuts the stream into frames."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(buffer, start)
            stop = start + _HEADER.size + length
            if stop > end:
                break
            with memoryview(buffer) as view:
                body = bytes(view[start + _HEADER.size : stop])
            start = stop
            self.frame(kind, number, body)
        if start:
            del buffer[:start]

    def send(self, kind: int, number: int, body: bytes) -> None:
        self.transport.write(_HEADER.pack(len(body), kind, number) + body)

    def frame(self, kind: int, number: int, body: bytes) -> None:
        raise NotImplementedError


class LocalLink(_Frames):
    """The channel's end of a Unix socket."""

    def __init__(self) -> None:
        super().__init__()
        self._number = 0
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._lost: Exception | None = None

    @classmethod
    async def connect(cls, path: str) -> LocalLink | None:
        """Connects to a host; None where that is not possible, because it is elsewhere."""
        if not hasattr(socket, "AF_UNIX"):
            return None
        try:
            connecting = asyncio.get_running_loop().create_unix_connection(cls, path)
            return (await asyncio.wait_for(connecting, CONNECT_WITHIN_S))[1]
        except (OSError, TimeoutError):
            return None

    async def request(self, kind: int, body: bytes, within_s: float) -> bytes:
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        answer: asyncio.Future[bytes] = loop.create_future()
        self._asked[number] = answer
        self.send(kind, number, body)
        timer = loop.call_later(within_s, _give_up, answer)
        try:
            return await answer
        finally:
            timer.cancel()
            self._asked.pop(number, None)

    def frame(self, kind: int, number: int, body: bytes) -> None:
        answer = self._asked.get(number)
        if answer is not None and not answer.done():
            answer.set_result(body)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = error or ConnectionError("the host has closed the connection")
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._lost)

    def close(self) -> None:
        self.transport.close()


class LinkServer:
    """A host's socket file.

    Attributes:
        path: of the file; "" where there is none, and only Ray brings requests.
    """

    def __init__(self, serve: dict[int, Serve], name: str) -> None:
        self.path = ""
        self._serve = serve
        self._name = name
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Begins to listen, if this machine allows it."""
        directory = _private_directory()
        if directory is None:
            return
        await asyncio.to_thread(_remove_stale, directory)
        path = str(directory / f"{os.getpid()}-{self._name}.sock")
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Served(self._serve), path
            )
        except OSError as error:  # a path that is too long, or a file system without sockets
            logger.warning("no Unix socket at %s (%s): Ray carries all calls", path, error)
            return
        self.path = path

    def close(self) -> None:
        """Stops listening and removes the file."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._server, self.path = None, ""


class _Served(_Frames):
    """The host's end of one connection."""

    def __init__(self, serve: dict[int, Serve]) -> None:
        super().__init__()
        self._serve = serve

    def frame(self, kind: int, number: int, body: bytes) -> None:
        spawn(self._answer(kind, number, body))

    async def _answer(self, kind: int, number: int, body: bytes) -> None:
        try:
            answer = await self._serve[kind](body)
        except BaseException:  # the other end begins anew, and asks by Ray, which shows the error
            self.transport.close()
            raise
        if not self.transport.is_closing():
            self.send(kind, number, answer)


def _give_up(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError("the host gave no answer"))


def _private_directory() -> Path | None:
    """The directory of this user's socket files; None where it cannot be trusted."""
    if not hasattr(socket, "AF_UNIX") or not hasattr(os, "getuid"):
        return None
    directory = Path(tempfile.gettempdir()) / f"rayobjects-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        logger.warning("no directory for Unix sockets (%s): Ray carries all calls", error)
        return None
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if not private or status.st_uid != os.getuid():
        logger.warning("%s is open to others: Ray carries all calls", directory)
        return None
    return directory


def _remove_stale(directory: Path) -> None:
    """Removes the files of processes that were killed."""
    for path in directory.glob("*.sock"):
        pid = path.name.partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            pass
