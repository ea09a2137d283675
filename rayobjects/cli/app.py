"""The commands. Each attaches to the cluster that runs here (or at --address), asks one thing and
prints the answer; every error leaves through `main` as one line on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from rayobjects.cli import classes, deploying, promises
from rayobjects.cli.output import (
    INTERRUPTED,
    counted,
    fail,
    note,
    print_json,
    print_name,
    print_table,
    progress,
    results,
    silence,
)
from rayobjects.errors import InvalidCall, RayObjectsError
from rayobjects.ids import check_object_name
from rayobjects.limits import PAGE_KEYS_MAX
from rayobjects.settings import STORAGE, settings

HAPROXY_DIRECTORY = "/tmp/rayobjects"
"""On a node of a cluster, which runs one Ray: short, since sockets' paths are."""

app = typer.Typer(
    name="rayobjects",
    help="Durable objects for Python, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Address = Annotated[
    str | None,
    typer.Option(help="The cluster: its URL, or Ray's host:port. Needed if several run here."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Class = Annotated[str, typer.Argument(metavar="CLASS", help="The class's name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The object's name.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"rayobjects {metadata.version('rayobjects')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Durable objects for Python, on Ray."""


@app.command()
def serve(
    target: Annotated[
        str, typer.Argument(metavar="FILE_OR_MODULE", help="app.py, or package.module")
    ],
    port: Annotated[int | None, typer.Option(help="The gateway's port (default: 8000).")] = None,
    storage: Annotated[
        str | None, typer.Option(help=f"The storage root, a directory (default: ./{STORAGE}).")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Shards of a new storage root (default: one for each CPU).")
    ] = None,
    hosting: Annotated[
        str | None, typer.Option(help="Of classes that do not say: shared (default) or dedicated.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that runs, instead of a new one here.")
    ] = None,
) -> None:
    """Serve a file's durable objects over HTTP and WebSocket, until Ctrl-C."""
    from rayobjects.cli.serving import serve as run

    chosen = settings(
        options=True, port=port, storage=storage, shards=shards, hosting=hosting, address=address
    )
    run(target, chosen, given_storage=storage)


app.command()(deploying.deploy)


@app.command()
def status(address: Address = None, as_json: AsJson = False) -> None:
    """Show hosts, classes and storage."""
    from rayobjects.runtime import admin, registry

    ray_address = connect(address)
    found = admin.status()
    record = registry.find(address or ray_address)
    url = record.facts.get("url", "") if record is not None else ""
    if as_json:
        print_json({"address": ray_address, "url": url, **msgspec.to_builtins(found)})
        return
    results.print(f"[dim]storage[/]  {found.storage}  [dim]({counted(found.shards, 'shard')})[/]")
    if url:
        results.print(f"[dim]gateway[/]  {url}")
    results.print(f"[dim]    ray[/]  {ray_address}\n")
    figures = ["pid", "live", "sockets"]
    print_table(
        "Hosts",
        ["name", *figures, "state"],
        [
            [host.name, *(host.figures.get(name, "") for name in figures), host.state]
            for host in found.hosts
        ],
    )
    results.print()
    print_table(
        "Classes",
        ["name", "version", "hosting", "methods"],
        [
            [each.name, each.version, each.hosting, ", ".join(each.methods)]
            for each in found.classes
        ],
    )


@app.command("list")
def list_objects(
    class_name: Class,
    prefix: Annotated[str, typer.Option(help="Only names that begin with this.")] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many.", min=0)] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """List a class's objects, sorted by name. A name with control characters, or one that begins
    with a quotation mark, is printed as JSON."""
    from rayobjects.runtime import admin

    connect(address)
    names: list[str] = []
    left = sys.maxsize if limit is None else limit
    after = ""
    while True:
        size = min(PAGE_KEYS_MAX, left)
        # Also asked when there is nothing to list: whether there is such a class.
        page = admin.list_objects(class_name, prefix, after, max(1, size))[:size]
        if as_json:
            names += page
        else:
            for name in page:
                print_name(name)
        left -= len(page)
        if len(page) < size or not left:
            break
        after = page[-1]
    if as_json:
        print_json(names)


@app.command()
def get(class_name: Class, name: Name, address: Address = None) -> None:
    """Print an object's state as JSON."""
    from rayobjects.runtime import admin

    connect(address)
    _check_exists(class_name, name)
    print_json(admin.object_state(class_name, name))


@app.command()
def call(
    class_name: Class,
    name: Name,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="The method's name.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="A value is JSON if it can be, else text."),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=TEXT", help="An entry of the request context; may be repeated."),
    ] = None,
    address: Address = None,
) -> None:
    """Call a method and print its result as JSON."""
    keywords = parse_arguments(arguments or [])
    entries = _parse_context(context or [])
    from rayobjects.objects.request_context import request_context
    from rayobjects.runtime import admin

    connect(address)
    with request_context(entries):
        print_json(admin.call(class_name, name, method, keywords))


@app.command()
def delete(
    class_name: Class,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = None,
) -> None:
    """Delete an object with all that it has."""
    from rayobjects.runtime import admin

    connect(address)
    _check_exists(class_name, name)
    if not yes and not sys.stdin.isatty():
        raise InvalidCall(f"nobody can be asked whether to delete {class_name}/{name}: add --yes")
    if not yes and not typer.confirm(f"Delete {class_name}/{name} and its state?", err=True):
        note("Nothing was deleted.")
        return
    if not admin.delete_object(class_name, name):
        raise _missing(class_name, name)
    note(f"Deleted {class_name}/{name}.")


app.command()(classes.rename)
app.command("delete-class")(classes.delete_class)
app.command()(promises.schedules)
app.command()(promises.intents)
app.command()(promises.retry)
app.command()(promises.discard)


@app.command()
def down(address: Address = None) -> None:
    """Stop hosts, gateway and the Ray that `serve` started. The objects stay in the storage."""
    from rayobjects.runtime import registry

    record = registry.find(address)
    if record is not None:
        with progress(f"Stopping {record.facts.get('url', record.address)}"):
            registry.stop(record)
        note("Stopped.")
        return
    from rayobjects.runtime import admin
    from rayobjects.serve.run import stop_gateway

    connect(address)
    with progress("Stopping"):
        stop_gateway()
        admin.stop_hosts()
    note("Stopped; the Ray cluster goes on.")


@app.command()
def environment(
    directory: Annotated[str, typer.Option(help="For HAProxy's files.")] = HAPROXY_DIRECTORY,
) -> None:
    """Print the variables that Ray must be started with on a node, for a shell to eval."""
    from rayobjects.runtime.cluster import RAY_ENVIRONMENT
    from rayobjects.serve import haproxy

    for name, value in (RAY_ENVIRONMENT | haproxy.environment(directory)).items():
        print(f"export {name}={shlex.quote(value)}")


def parse_arguments(arguments: list[str]) -> dict[str, Any]:
    """Keyword arguments from `key=value`: a value is JSON if it can be, else text.

    Raises:
        typer.BadParameter: an argument has no `=` or no name, or a name comes twice.
    """
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator or not key.isidentifier():
            raise typer.BadParameter(f"{argument!r} is not KEY=VALUE", param_hint="arguments")
        if key in keywords:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="arguments")
        try:
            keywords[key] = json.loads(text)
        except ValueError:
            keywords[key] = text
    return keywords


def _parse_context(entries: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{entry!r} is not KEY=TEXT", param_hint="--context")
        if key in values:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="--context")
        values[key] = text
    return values


def connect(address: str | None) -> str:
    """Attaches to the cluster and its objects; returns Ray's address."""
    from rayobjects.runtime import client, cluster

    ray_address = cluster.connect(address)
    client.init()
    return ray_address


def _check_exists(class_name: str, name: str) -> None:
    """Reading must not wake what does not exist."""
    from rayobjects.runtime import admin

    check_object_name(name)
    if admin.list_objects(class_name, name, "", 1) != [name]:
        raise _missing(class_name, name)


def _missing(class_name: str, name: str) -> InvalidCall:
    return InvalidCall(
        f"there is no object {class_name}/{name}: `rayobjects list {class_name}` shows those that "
        "exist"
    )


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point `rayobjects`. Exits with 0, 1 for an error, 2 for wrong usage or 130 after
    Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    code = 0
    try:
        app(given)
    except RayObjectsError as error:
        code = fail(error, debug=debug)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        silence()
    except Exception as error:
        code = fail(error, debug=debug)
    sys.exit(code)
