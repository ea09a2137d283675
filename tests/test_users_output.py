"""What methods print, on its way to the host's log."""

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayobjects.limits import LOG_ENTRY_CHARACTERS_MAX, LOG_PRINTS_PER_S_MAX
from rayobjects.runtime.hosts_log import PRINTED, HostsLog, Reader
from rayobjects.runtime.users_output import Onward, Tee
from rayobjects.testing import ManualClock


class Heard:
    """A stream and what was handed on of it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.kept = io.StringIO()
        self.stream = Tee(self.kept, lambda id, text: self.lines.append((id, text)))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@contextmanager
def errors_of(heard: Heard) -> Iterator[None]:
    """`sys.stderr`, and no handlers of the root logger but those that are added inside."""
    root = logging.getLogger()
    handlers, stream = list(root.handlers), sys.stderr
    root.handlers[:], sys.stderr = [], heard.stream
    try:
        yield
    finally:
        root.handlers[:], sys.stderr = handlers, stream


def test_whole_lines(heard: Heard) -> None:
    print("a", 1, file=heard.stream)
    print("b", end="", file=heard.stream)
    assert heard.lines == [("", "a 1")]
    print("c\nd", file=heard.stream)
    print(file=heard.stream)
    assert heard.lines == [("", "a 1"), ("", "bc"), ("", "d")]
    assert heard.kept.getvalue() == "a 1\nbc\nd\n\n"
    assert not heard.stream.isatty()


def test_the_print_that_ray_puts_in_place_of_pythons(heard: Heard) -> None:
    from ray.experimental import tqdm_ray

    tqdm_ray.safe_print("a", 1, file=heard.stream)
    assert heard.lines == [("", "a 1")]


def test_a_line_without_an_end_is_bounded(heard: Heard) -> None:
    for _ in range(3):
        heard.stream.write("x" * (LOG_ENTRY_CHARACTERS_MAX - 1))
    assert [len(text) for _, text in heard.lines] == [2 * (LOG_ENTRY_CHARACTERS_MAX - 1)]


def test_threads_do_not_mix(heard: Heard) -> None:
    heard.stream.write("mine ")
    thread = threading.Thread(target=print, args=("theirs",), kwargs={"file": heard.stream})
    thread.start()
    thread.join()
    heard.stream.write("too\n")
    assert heard.lines == [("", "theirs"), ("", "mine too")]


def test_nothing_is_raised_and_nothing_recurs() -> None:
    kept = io.StringIO()

    def fail(id: str, text: str) -> None:
        print("heard", file=stream)
        raise OSError("disk full")

    stream = Tee(kept, fail)
    print("text", file=stream)
    assert kept.getvalue() == "text\nheard\n"


def test_logging_without_a_set_up(heard: Heard) -> None:
    with errors_of(heard):
        logging.getLogger("shop").warning("few %s left", "apples")
        logging.getLogger("shop").info("not asked for")
    assert heard.lines == [("", "few apples left")]


def test_logging_as_the_user_has_set_it_up(heard: Heard) -> None:
    """And what the package logs reaches the user's handler, but is not shown twice."""
    ours = logging.LogRecord("rayobjects", logging.ERROR, "", 0, "a method raised", (), None)
    with errors_of(heard):
        logging.basicConfig(format="%(levelname)s %(message)s")
        logging.getLogger("shop").error("none")
        Onward().handle(ours)
    assert heard.lines == [("", "ERROR none")]
    assert heard.kept.getvalue() == "ERROR none\nERROR a method raised\n"


def test_into_the_hosts_log(tmp_path: Path) -> None:
    clock = ManualClock()
    limit = LOG_PRINTS_PER_S_MAX
    log = HostsLog(tmp_path, "default/0001", clock, entries_per_s=limit, name="-p", what="lines")
    reader = Reader(tmp_path)
    log.take_printed("Cart/ann", "one\ntwo")
    (entry,) = reader.read()
    assert (entry.level, entry.message) == (PRINTED, "Cart/ann: one\nCart/ann: two")
    for _ in range(limit):
        log.take_printed("", "more")
    clock.move(1)
    log.take_printed("", "later")
    messages = [each.message for each in reader.read()]
    assert messages[-2:] == ["1 further lines came in one second and are not shown", "later"]
    assert len(messages) == limit + 1
