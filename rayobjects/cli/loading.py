"""From what the user names, a file or a module, to the classes that are to be served."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import describe
from rayobjects.objects.filters import check as check_filters
from rayobjects.objects.model import DurableObject
from rayobjects.objects.pickling import pickle_classes, pickle_functions


@dataclass(frozen=True)
class Application:
    """What a module has to serve.

    Attributes:
        name: the module's.
        classes: its durable objects' classes.
        pages: its attribute `pages`: static pages by path.
        app: its attribute `app`: an ASGI application of the user's own.
        filters: its attribute `filters`; None if it has none.
        process_setup: likewise.
    """

    name: str
    classes: list[type[DurableObject]]
    pages: Mapping[str, Any]
    app: Any
    filters: list[Any] | None
    process_setup: Any


def load(target: str) -> Application:
    """Imports a file (`app.py`) or a module (`package.app`) and collects what it serves.

    Raises:
        InvalidCall: there is no such file or module, it cannot be imported, it has no class, or
            two of one name.
    """
    module = _import(target)
    found = _classes(module)
    _check_names(target, module, found)
    if not found:
        raise InvalidCall(
            f"{target} has no durable object: write a class that inherits from ro.DurableObject"
        )
    pages = getattr(module, "pages", None) or {}
    if not isinstance(pages, Mapping):
        raise InvalidCall(
            f"`pages` in {target} is a {type(pages).__name__}: make it a dict from a path, such as "
            "'/', to a file"
        )
    filters = getattr(module, "filters", None)
    if filters is not None and not isinstance(filters, list | tuple):
        raise InvalidCall(
            f"`filters` in {target} is a {type(filters).__name__}: make it a list of async "
            "functions (call, proceed)"
        )
    return Application(
        module.__name__,
        found,
        pages,
        getattr(module, "app", None),
        None if filters is None else list(filters),
        getattr(module, "process_setup", None),
    )


def check_deployable(application: Application) -> None:
    """Tries whether classes, filters and set-up can be handed to a cluster, as far as that can be
    known without one.

    Raises:
        InvalidCall: they cannot; the message says what to mend.
    """
    for each in application.classes:
        describe(each, warn=False)
    pickle_classes(application.classes)
    filters, setup = check_filters(application.filters or ()), application.process_setup
    if filters or setup is not None:
        functions = [*filters, *([] if setup is None else [setup])]
        pickle_functions({"filters": filters, "setup": setup}, functions)


def _classes(module: ModuleType) -> list[type[DurableObject]]:
    """The classes that the module defines; if it defines none, those that it has imported. An
    abstract one is there for the others."""
    every = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, DurableObject)
        and value is not DurableObject
        and not name.startswith("_")
        and not inspect.isabstract(value)
    ]
    unique = list(dict.fromkeys(every))
    return [value for value in unique if value.__module__ == module.__name__] or unique


def _check_names(target: str, module: ModuleType, classes: list[type[DurableObject]]) -> None:
    """Objects are found by the name of their class."""
    called: dict[str, str] = {}  # the class's name → where the module has it
    for each in classes:
        held = next(name for name, value in vars(module).items() if value is each)
        other = called.setdefault(each.__name__, held)
        if other != held:
            raise InvalidCall(
                f"{target} has two classes of the name {each.__name__!r}, in {other} and in "
                f"{held}: give one of them another name"
            )


def _import(target: str) -> ModuleType:
    if not target:
        raise InvalidCall("no file is named: give one (./app.py), or a module")
    if target.endswith(".py") or "/" in target or target.startswith("."):
        path = Path(target).absolute()
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise InvalidCall(f"the file {target} {what}: give the path of a Python file")
        return _run(target, lambda: _import_file(path))
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    if Path(f"{target}.py").is_file() and "." not in target:
        return _run(target, lambda: _import_file(Path(f"{target}.py").absolute()))
    return _run(target, lambda: importlib.import_module(target))


def _import_file(path: Path) -> ModuleType:
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidCall(f"{path} is no Python file: give it the ending .py")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # its neighbours, as if it had been run
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run(target: str, load_it: Any) -> ModuleType:
    """Runs the user's code and says in one line what is wrong with it, and where."""
    try:
        module: ModuleType = load_it()
        return module
    except InvalidCall:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (target == error.name or target.startswith(error.name + ".")):
            raise InvalidCall(
                f"there is no module {error.name!r} here: give a file (./app.py), or start "
                "where the module can be imported"
            ) from error
        raise InvalidCall(
            f"{target} needs the module {error.name!r}, which is not installed: install it"
        ) from error
    except SyntaxError as error:
        raise InvalidCall(
            f"{error.filename}, line {error.lineno}: {error.msg}: correct it"
        ) from error
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise InvalidCall(
            f"{target} cannot be imported: {type(error).__name__}: {error} ({where.filename}, "
            f"line {where.lineno}): correct it"
        ) from error
