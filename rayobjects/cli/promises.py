"""The commands that show what objects have promised: `schedules` and `intents`, `retry` and
`discard`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from rayobjects.cli.output import counted, note, print_json, print_table

Class = Annotated[str | None, typer.Argument(metavar="[CLASS]", help="Only this class's.")]
Failed = Annotated[bool, typer.Option("--failed", help="Only those that were given up.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")]
Address = Annotated[
    str | None,
    typer.Option(help="The cluster: its URL, or Ray's host:port. Needed if several run here."),
]
OfClass = Annotated[str, typer.Argument(metavar="CLASS", help="The object's class.")]
OfName = Annotated[str, typer.Argument(metavar="NAME", help="The object's name.")]
Kind = Annotated[str, typer.Argument(metavar="KIND", help="schedule, tell or intent.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Its key, as listed.")]


def schedules(
    class_name: Class = None,
    failed: Failed = False,
    as_json: AsJson = False,
    limit: Limit = 100,
    address: Address = None,
) -> None:
    """List schedules and told messages, the next one first; with --failed those given up."""
    _list(("schedule", "tell"), class_name, failed, as_json, limit, address)


def intents(
    class_name: Class = None,
    failed: Failed = False,
    as_json: AsJson = False,
    limit: Limit = 100,
    address: Address = None,
) -> None:
    """List calls that have called other objects and not ended, and those that were stopped."""
    _list(("intent",), class_name, failed, as_json, limit, address)


def retry(class_name: OfClass, name: OfName, kind: Kind, key: Key, address: Address = None) -> None:
    """Try again what was given up."""
    _settle("retry", class_name, name, kind, key, address)


def discard(
    class_name: OfClass, name: OfName, kind: Kind, key: Key, address: Address = None
) -> None:
    """Drop what was given up, or a schedule that is not wanted any more."""
    _settle("discard", class_name, name, kind, key, address)


def _settle(how: str, class_name: str, name: str, kind: str, key: str, address: str | None) -> None:
    from rayobjects.cli.app import connect
    from rayobjects.runtime import admin

    connect(address)
    done = admin.settle_promise(class_name, name, how, kind, key)
    note(f"The {kind} {key} of {class_name}/{name} was {done}.")


def _list(
    kinds: tuple[str, ...],
    class_name: str | None,
    failed: bool,
    as_json: bool,
    limit: int,
    address: str | None,
) -> None:
    from rayobjects.cli.app import connect
    from rayobjects.runtime import admin

    connect(address)
    found = admin.list_promises(kinds, class_name, failed, limit)
    if as_json:
        print_json(found)
        return
    what = " and ".join(f"{kind}s" for kind in kinds)
    many = counted(1, found[0]["kind"]) if len(found) == 1 else f"{len(found):,} {what}"
    if not found:
        note(f"There are no {'failed ' if failed else ''}{what}.")
        return
    now = datetime.now(UTC)
    print_table(
        f"{many}{', and perhaps more' if len(found) == limit else ''}",
        ["object", "kind", "calls", "key", "when", "", "attempts", "failed"],
        [
            [
                f"{each['class']}/{each['name']}",
                each["kind"],
                _calls(each),
                each["key"],
                *_when(each, now),
                each.get("attempts", 0),
                each["failed"],
            ]
            for each in found
        ],
    )


def _calls(each: dict[str, Any]) -> str:
    to = f"{each['to']}." if each.get("to") else ""
    every = f"  every {json.dumps(each['every'])} {each['zone']}" if each.get("every") else ""
    return f"{to}{each['method']}{every}"


def _when(each: dict[str, Any], now: datetime) -> tuple[str, str]:
    """In the local time, and how far that is from now."""
    at = datetime.fromtimestamp(each["due"] or each.get("since", 0.0), UTC)
    seconds = (at - now).total_seconds()
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}", _span(abs(seconds), past=seconds < 0)


def _span(seconds: float, *, past: bool) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= size or unit == "s":
            text = f"{seconds / size:.0f} {unit}"
            return f"{text} ago" if past else f"in {text}"
    raise AssertionError
