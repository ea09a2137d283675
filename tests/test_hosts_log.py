"""The log that hosts write and `rayobjects serve` shows."""

import logging
import os
from pathlib import Path

import pytest

from rayobjects.limits import LOG_ENTRIES_PER_S_MAX, LOG_ENTRY_CHARACTERS_MAX
from rayobjects.runtime.hosts_log import HostsLog, Reader
from rayobjects.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log(tmp_path: Path, clock: ManualClock) -> HostsLog:
    return HostsLog(tmp_path, "default/0001", clock)


def write(
    log: HostsLog, message: str, *, traceback: str = "", error: Exception | None = None
) -> None:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("rayobjects", logging.ERROR, "", 0, message, (), exc_info)
    record.traceback = traceback
    log.handle(record)


def test_what_is_logged_is_read_once(tmp_path: Path, log: HostsLog) -> None:
    write(log, "before the reader was made")
    reader = Reader(tmp_path)
    assert reader.read() == []
    write(log, "first\nline", traceback="File …")
    try:
        raise LookupError("of a background task")
    except LookupError as error:
        write(log, "second", error=error)
    first, second = reader.read()
    assert (first.host, first.level) == ("default/0001", "ERROR")
    assert (first.message, first.traceback) == ("first\nline", "File …")
    assert 'raise LookupError("of a background task")' in second.traceback
    assert reader.read() == []


def test_a_host_that_begins_later(tmp_path: Path, log: HostsLog) -> None:
    reader = Reader(tmp_path)
    write(log, "hello")
    assert [entry.message for entry in reader.read()] == ["hello"]


def test_a_line_without_an_end(tmp_path: Path, log: HostsLog) -> None:
    """A host died while it wrote; a later one with its process id goes on in the file."""
    reader = Reader(tmp_path)
    write(log, "whole")
    path = tmp_path / f"rayobjects-{os.getpid()}.log"
    with path.open("ab") as file:
        file.write(b'{"at": 1.0, "host')
    assert [entry.message for entry in reader.read()] == ["whole"]
    assert reader.read() == []
    write(log, "lost with the torn line")
    write(log, "whole again")
    assert [entry.message for entry in reader.read()] == ["whole again"]


def test_a_log_that_begins_anew(tmp_path: Path, log: HostsLog) -> None:
    reader = Reader(tmp_path)
    write(log, "old")
    assert len(reader.read()) == 1
    log.doRollover()
    write(log, "new")
    assert [entry.message for entry in reader.read()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 2


def test_too_many_at_once(tmp_path: Path, log: HostsLog, clock: ManualClock) -> None:
    reader = Reader(tmp_path)
    for number in range(LOG_ENTRIES_PER_S_MAX + 5):
        write(log, f"number {number}")
    assert [entry.message for entry in reader.read()] == [
        f"number {number}" for number in range(LOG_ENTRIES_PER_S_MAX)
    ]
    clock.move(1)
    write(log, "later")
    messages = [entry.message for entry in reader.read()]
    assert messages == ["5 further errors came in one second and are not shown", "later"]


def test_a_long_traceback_keeps_both_ends(tmp_path: Path, log: HostsLog) -> None:
    reader = Reader(tmp_path)
    write(log, "long", traceback="begin" + "x" * 10 * LOG_ENTRY_CHARACTERS_MAX + "end")
    (entry,) = reader.read()
    assert entry.traceback.startswith("begin")
    assert entry.traceback.endswith("end")
    assert len(entry.traceback) < LOG_ENTRY_CHARACTERS_MAX + 10


def test_a_log_that_cannot_be_written(
    tmp_path: Path, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    write(HostsLog(tmp_path / "is not there", "default/0001", clock), "nobody hears")
    assert capsys.readouterr() == ("", "")
