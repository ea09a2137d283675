"""`rayobjects deploy`: a file's classes, filters and set-up for a cluster that runs.

Filters come first, as with `serve`: a new class is at no moment without what guards it. Whatever
fails leaves what was in force of that step, and says so; the command may be repeated.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rayobjects.cli.loading import load
from rayobjects.cli.output import print_json, progress, results


def deploy(
    target: Annotated[
        str, typer.Argument(metavar="FILE_OR_MODULE", help="app.py, or package.module")
    ],
    address: Annotated[
        str | None,
        typer.Option(help="The cluster: its URL, or Ray's host:port. Needed if several run here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Hand a file's classes, new or changed, to the cluster that runs. Live objects move to the new
    code between two calls; `pages` and `app` need `serve` again."""
    application = load(target)
    from rayobjects.cli.app import connect
    from rayobjects.runtime import client
    from rayobjects.runtime.configuration import read_catalog

    connect(address)
    before = {name: info.version for name, info in read_catalog().classes.items()}
    with progress(f"Deploying {target}"):
        if application.filters is not None or application.process_setup is not None:
            client.init(filters=application.filters, process_setup=application.process_setup)
        client.deploy(*application.classes)
    deployed = [read_catalog().classes[each.__name__] for each in application.classes]
    if as_json:
        print_json(
            [
                {
                    "name": info.name,
                    "version": info.version,
                    "changed": before.get(info.name) != info.version,
                }
                for info in deployed
            ]
        )
        return
    for info in deployed:
        what = "unchanged" if before.get(info.name) == info.version else "changed"
        if info.name not in before:
            what = "new"
        results.print(f"{info.name}  version {info.version}  [dim]{what}[/]")
