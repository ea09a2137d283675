"""What hosts log, and how `rayobjects serve` shows it to whoever writes the classes.

Each host appends to a file of its own among Ray's logs, `rayobjects-<process id>.log`: one line of
JSON for each thing that it logs, such as a method that raised, with its traceback, and for what
methods print (`users_output`). A reader on the same machine follows the files from the moment that
it is made.

    host dies in a write     the line has no end; the reader waits for one, and passes over it
    file is full             the host renames it and begins anew; what the reader had not read yet
                             of the old one is in the directory, but not shown
    too many at once         the host writes the first ones of a second and counts the others
    disk is full             nothing is logged, and calls go on
"""

from __future__ import annotations

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

import msgspec
import ray

from rayobjects.clock import Clock, SystemClock
from rayobjects.limits import (
    LOG_BYTES_MAX,
    LOG_ENTRIES_PER_S_MAX,
    LOG_ENTRY_CHARACTERS_MAX,
    LOG_PRINTS_PER_S_MAX,
    LOG_READ_BYTES_MAX,
)
from rayobjects.runtime import users_output

_LOGGER = logging.getLogger("rayobjects")

PRINTED = "PRINT"
"""The level of what methods print."""


class Entry(msgspec.Struct):
    """One thing that a host logged.

    Attributes:
        at: when, in seconds since the epoch.
        host: its name.
        level: "WARNING", "ERROR" …, or "PRINT".
        message: in a sentence.
        traceback: of the exception; "" where there is none.
    """

    at: float
    host: str
    level: str
    message: str
    traceback: str = ""


def directory() -> Path:
    """Where the logs of this node's processes are; this process is attached to Ray."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())


def begin(host: str) -> None:
    """Lets this process, which is a host, write its log."""
    log = HostsLog(directory(), host, SystemClock())
    _LOGGER.addHandler(log)
    _LOGGER.addHandler(users_output.Onward())
    _LOGGER.propagate = False
    printed = HostsLog(
        directory(),
        host,
        SystemClock(),
        entries_per_s=LOG_PRINTS_PER_S_MAX,
        name="-printed",
        what="lines",
    )
    users_output.listen(printed.take_printed)


class HostsLog(RotatingFileHandler):
    """Writes one host's log.

    Args:
        directory: where to.
        host: the host's name.
        clock: for the limit of entries a second.
        entries_per_s: the limit.
        name: added to the file's name.
        what: its entries are called.
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        clock: Clock,
        *,
        entries_per_s: int = LOG_ENTRIES_PER_S_MAX,
        name: str = "",
        what: str = "errors",
    ) -> None:
        path = directory / f"rayobjects-{os.getpid()}{name}.log"
        super().__init__(path, maxBytes=LOG_BYTES_MAX, backupCount=1, encoding="utf-8", delay=True)
        self._host = host
        self._entries_per_s = entries_per_s
        self._what = what
        self._clock = clock
        self._second = -1
        self._entries = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets the first ones of each second through."""
        second = int(self._clock.monotonic())
        if second != self._second:
            left_out = self._entries - self._entries_per_s
            self._second, self._entries = second, 0
            if left_out > 0:
                self._say(
                    f"{left_out:,} further {self._what} came in one second and are not shown",
                    record.created,
                )
        self._entries += 1
        return self._entries <= self._entries_per_s and bool(super().filter(record))

    def take_printed(self, id: str, text: str) -> None:
        """Logs what a method has printed.

        Args:
            id: of the object whose call runs; "" where none does.
            text: whole lines.
        """
        if id:
            text = "\n".join(f"{id}: {line}" for line in text.splitlines())
        record = logging.LogRecord("print", logging.INFO, "", 0, text, (), None)
        record.levelname = PRINTED
        self.handle(record)

    def _say(self, message: str, at: float) -> None:
        record = logging.LogRecord("rayobjects", logging.WARNING, "", 0, message, (), None)
        record.created = at
        self.acquire()
        try:
            self.emit(record)
        finally:
            self.release()

    def format(self, record: logging.LogRecord) -> str:
        traceback = getattr(record, "traceback", "")
        if record.exc_info:
            traceback = logging.Formatter().formatException(record.exc_info)
        entry = Entry(
            record.created,
            self._host,
            record.levelname,
            _shortened(record.getMessage()),
            _shortened(traceback),
        )
        return msgspec.json.encode(entry).decode()

    def handleError(self, record: logging.LogRecord) -> None:
        """A log that cannot be written must not stop a call."""


class Reader:
    """Follows the logs of a directory's hosts, from now on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._read: dict[str, tuple[int, int]] = {}  # name → inode, offset
        for path in self._paths():
            status = path.stat()
            self._read[path.name] = (status.st_ino, status.st_size)

    def read(self) -> list[Entry]:
        """What has been logged since the last time, in order of time."""
        found: list[Entry] = []
        for path in self._paths():
            try:
                with path.open("rb") as file:
                    found += self._read_file(path.name, file.fileno())
            except OSError:
                continue  # it is being renamed
        return sorted(found, key=lambda entry: entry.at)

    def _read_file(self, name: str, descriptor: int) -> list[Entry]:
        inode = os.fstat(descriptor).st_ino
        known, offset = self._read.get(name, (inode, 0))
        if known != inode:
            offset = 0
        data = os.pread(descriptor, LOG_READ_BYTES_MAX, offset)
        whole = data[: data.rfind(b"\n") + 1]
        self._read[name] = (inode, offset + len(whole))
        return [entry for line in whole.splitlines() if (entry := _decoded(line)) is not None]

    def _paths(self) -> list[Path]:
        return list(self.directory.glob("rayobjects-*.log"))


def _decoded(line: bytes) -> Entry | None:
    """None for what is no entry: the rest of a line whose host died."""
    try:
        return msgspec.json.decode(line, type=Entry)
    except msgspec.DecodeError:
        return None


def _shortened(text: str) -> str:
    """The text, or its beginning and, longer, its end, where a traceback says what happened."""
    if len(text) <= LOG_ENTRY_CHARACTERS_MAX:
        return text
    first = LOG_ENTRY_CHARACTERS_MAX // 4
    return f"{text[:first]}\n[…]\n{text[first - LOG_ENTRY_CHARACTERS_MAX :]}"
