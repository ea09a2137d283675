"""What the command line prints. Results go to standard output, everything else to standard error,
so that a script can use the one and a person sees the other."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.table import Table

from rayobjects.errors import MethodError, RayObjectsError

FAILED = 1
"""Exit code where a command could not do what it was asked."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

results = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)

_wide = Console(highlight=False, soft_wrap=True, width=100_000)
"""For tables that a program reads, or `less -S`."""


def visible(text: str) -> str:
    """The text with everything that a terminal would obey, or not show, as an escape: names and
    messages come from anybody. Line breaks stay."""
    return _escaped(text, lambda each: each.encode("unicode_escape").decode())


def print_name(name: str) -> None:
    """Prints an object's name on a line of its own: as JSON where it could not be read plain, or
    could be taken for JSON."""
    plain = name.isprintable() and not name.startswith('"')
    print(name if plain else json.dumps(name))


def print_json(value: Any) -> None:
    """Prints JSON: indented, and in colour for a person."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    text = _escaped(text, lambda each: json.dumps(each)[1:-1])
    if sys.stdout.isatty():
        results.print(JSONHighlighter()(text))
    else:
        print(text)


def print_table(
    title: str, columns: list[str], rows: list[list[object]], console: Console | None = None
) -> None:
    """Prints a table; numbers stand on the right. Nothing is cut off: what is too wide for the
    terminal is folded, and where there is none each row has one line."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(visible(str(cell))) for cell in row))
    (console or (results if results.is_terminal else _wide)).print(table)


def counted(number: int, one: str) -> str:
    """How many of something: "1 object", "2,000 objects"."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def note(text: str) -> None:
    """Tells a person something that is not the result."""
    notes.print(escape(visible(text)))


def print_log_entry(level: str, message: str, traceback: str) -> None:
    """Prints what a host has logged: one line, and below it where it happened; or, as it is, what a
    method has printed."""
    if level == "PRINT":
        notes.print(escape(visible(message)))
        return
    style = "bold red" if level in ("ERROR", "CRITICAL") else "yellow"
    notes.print(f"[{style}]{escape(level.lower())}:[/] {escape(visible(_on_one_line(message)))}")
    if traceback:
        lines = visible(traceback).rstrip().splitlines()
        notes.print(f"[dim]{escape(chr(10).join('  ' + line for line in lines))}[/]")


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
            print(f"On the host:\n{visible(error.traceback)}", file=sys.stderr)
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
    return visible(_on_one_line(text))


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str, escape_character: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\n" else escape_character(each) for each in text
    )


def silence() -> None:
    """Says nothing more, also at exit: standard output is closed (`rayobjects list … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
