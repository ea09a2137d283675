"""What the command line prints. Results go to standard output, everything else to standard error,
so that a script can use the one and a person sees the other."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayobjects.errors import MethodError, RayObjectsError

FAILED = 1
"""Exit code where a command could not do what it was asked."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

results = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any, *, compact: bool = False) -> None:
    """Prints JSON: indented and in colour for a person, plain where it is piped."""
    if sys.stdout.isatty() and not compact:
        results.print_json(json.dumps(value, ensure_ascii=False))
    else:
        print(json.dumps(value, ensure_ascii=False, indent=None if compact else 2))


def print_table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Prints a table; numbers stand on the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    results.print(table)


def note(text: str) -> None:
    """Tells a person something that is not the result."""
    notes.print(escape(text))


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows that something takes a while; where nobody looks, a line that says what."""
    if notes.is_terminal:
        with notes.status(escape(text)):
            yield
    else:
        note(text)
        yield


def fail(error: BaseException, *, debug: bool) -> int:
    """Prints an error in one line, with what to do; returns the exit code."""
    if debug:
        traceback.print_exception(error)
        if isinstance(error, MethodError) and error.traceback:
            print(f"On the host:\n{error.traceback}", file=sys.stderr)
    notes.print(f"[bold red]error:[/] {escape(one_line(error, debug=debug))}")
    return FAILED


def one_line(error: BaseException, *, debug: bool = False) -> str:
    """The error's message without line breaks."""
    if isinstance(error, RayObjectsError):
        text = error.message
        if isinstance(error, MethodError) and not debug:
            text += " (its traceback: --debug)"
    else:
        text = f"{type(error).__name__}: {error}; this should not have happened"
        if not debug:
            text += ": run the command again with --debug to see where"
    return " ".join(text.split())


def silence() -> None:
    """Says nothing more, also at exit: standard output is closed (`rayobjects list … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
