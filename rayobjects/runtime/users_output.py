"""What the user's code prints in a host: it goes where Ray keeps it, and to the host's log as well,
which `rayobjects serve` shows.

`sys.stdout` and `sys.stderr` are replaced by streams that pass everything on unchanged and hand
each whole line to the host's log, with the object whose call runs. `logging` needs nothing else:
without a set-up of the user's it prints warnings and errors to `sys.stderr`, and one that prints
does so here. What this package itself logs is in the host's log already; it still reaches the
user's own handlers, and what those print of it is not handed on a second time.

    the log cannot be written   the line is where Ray keeps it, and the method goes on
    a line never ends           it is handed on in pieces of LOG_ENTRY_CHARACTERS_MAX
    the process dies            the begun line is lost here, not in Ray's file
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rayobjects.limits import LOG_ENTRY_CHARACTERS_MAX
from rayobjects.objects.context import current_call

PRINT = "ray.experimental.tqdm_ray"
"""Where Ray, once it shows progress bars, has a `print` that takes the place of Python's."""

Write = Callable[[str, str], None]
"""Takes the object's id ("" where no call runs) and text of one or more lines."""


class _Local(threading.local):
    """A thread's own: what it has begun to print, by stream, and whether it is not to be heard."""

    def __init__(self) -> None:
        self.begun: dict[int, str] = {}
        self.quiet = False


_local = _Local()


class Tee:
    """A text stream that also hands on what is written to it.

    Args:
        stream: the one whose place it takes.
        write: is told of whole lines, from any thread.
    """

    def __init__(self, stream: Any, write: Write) -> None:
        self._stream = stream
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        written: int = self._stream.write(text)
        if not _local.quiet and not _is_rays(text):
            with quietly():
                try:
                    self._hand_on(text)
                except Exception:  # a print must not fail because of who listens
                    _local.begun.pop(id(self), None)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def _hand_on(self, text: str) -> None:
        text = _local.begun.pop(id(self), "") + text
        whole, _, rest = text.rpartition("\n")
        if len(rest) > LOG_ENTRY_CHARACTERS_MAX:
            whole, rest = text, ""
        if rest:
            _local.begun[id(self)] = rest
        if whole.strip():
            context = current_call.get()
            self._write(str(context.activation.id) if context is not None else "", whole)


@contextmanager
def quietly() -> Iterator[None]:
    """What this thread prints inside is not handed on."""
    before, _local.quiet = _local.quiet, True
    try:
        yield
    finally:
        _local.quiet = before


class Onward(logging.Handler):
    """Hands what this package logs to the user's handlers, and does not hear what they print."""

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        if root.handlers:
            with quietly():
                root.callHandlers(record)


def listen(write: Write) -> None:
    """Begins to hand on what this process prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Tee):
            setattr(sys, name, Tee(stream, write))


def _is_rays(text: str) -> bool:
    """Whether Ray says it, and not the user: its own prints, marks for its log and warnings."""
    caller = _module(sys._getframe(2))
    if caller == PRINT:
        caller = _module(sys._getframe(3))
    return caller.partition(".")[0] == "ray" or "RayDeprecationWarning" in text


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
