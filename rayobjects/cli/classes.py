"""The commands that change classes: `rename` and `delete-class`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rayobjects.cli.output import counted, note, progress
from rayobjects.errors import InvalidCall

Name = Annotated[str, typer.Argument(metavar="CLASS", help="The class's name.")]
Address = Annotated[
    str | None,
    typer.Option(help="The cluster: its URL, or Ray's host:port. Needed if several run here."),
]


def rename(
    class_name: Name,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    address: Address = None,
) -> None:
    """Rename a class. Its objects and their sockets stay, and the old name goes on leading there.

    Then rename it in its file too, before you serve that again.
    """
    if new_name == class_name:
        raise InvalidCall(f"{class_name} is called so already: give it another name")
    if new_name.startswith("_"):
        raise InvalidCall(
            f"{new_name!r} cannot be the name of a class: `serve` leaves out those with _ in front"
        )
    from rayobjects.cli.app import connect
    from rayobjects.runtime import class_changes

    connect(address)
    class_changes.rename_class(class_name, new_name)
    note(f"{class_name} is called {new_name} now. Rename it in its file before you serve it again.")


def delete_class(
    class_name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = None,
) -> None:
    """Delete a class with all of its objects: state, sockets and schedules."""
    from rayobjects.cli.app import connect
    from rayobjects.runtime import admin, class_changes
    from rayobjects.runtime.class_store import to_delete
    from rayobjects.runtime.configuration import read_catalog

    connect(address)
    to_delete(class_name, read_catalog())  # nobody is asked about what would be refused
    if not yes:
        some = admin.list_objects(class_name, limit=1_000)
        if not sys.stdin.isatty():
            raise InvalidCall(f"nobody can be asked whether to delete {class_name}: add --yes")
        many = "1,000 or more objects" if len(some) == 1_000 else counted(len(some), "object")
        if not typer.confirm(f"Delete {class_name} and its {many}?", err=True):
            note("Nothing was deleted.")
            return
    with progress(f"Deleting {class_name}"):
        count = class_changes.delete_class(class_name)
    note(f"Deleted {class_name} and its {counted(count, 'object')}.")
