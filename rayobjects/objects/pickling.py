"""Classes on their way to the hosts.

A user's class is pickled by value, with the functions, classes and modules of the user's own that
it needs, so that a host runs it without having its file. What is installed (site-packages, the
standard library, this package) goes by name.

What a loaded class brings is registered on its host in two ways:

    by module     `sys.modules["app"]` has the deployed `Message`: arguments that a caller pickled
                  by name become instances of what the methods know
    by name       stored values name their class (`app:Message`) instead of containing it, so that
                  after the next deployment they are instances of the new version. Each global of
                  the user's modules that is such a class is a name for it, too: one that was
                  renamed (`Bid = Offer`) or moved is found where its old name still leads

Both only ever add what a deployment brought; nothing is lost with the process, which loads the
class again when it is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any

import cloudpickle

from rayobjects.errors import InvalidCall
from rayobjects.limits import CALL_BYTES_MAX
from rayobjects.objects.culprits import culprit
from rayobjects.objects.signatures import resolved
from rayobjects.objects.typed_dicts import is_plain, reduced
from rayobjects.storage.values import name_class

_INSTALLED = tuple(
    str(Path(path).resolve())
    for path in {
        sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)

_lock = threading.Lock()
"""What is pickled by value is a setting of the whole process."""


def pickle_class(cls: type) -> bytes:
    """Pickles one class, see `pickle_classes`."""
    return pickle_classes([cls])


def pickle_classes(classes: Iterable[type]) -> bytes:
    """Pickles classes together with everything of the user's own that they need.

    Raises:
        InvalidCall: something that they need cannot be pickled; the message says what.
    """
    wanted = {cls.__name__: cls for cls in classes}
    modules = _modules_of(wanted.values())
    with _lock, _by_value(modules), _with_types(modules, wanted.values()):
        try:
            seen = _dump(wanted)[1]
            blob = _dump({"classes": wanted, "names": _names_of(seen, modules)})[0]
        except Exception as error:
            raise _refusal(wanted.values(), error) from error
    if len(blob) > CALL_BYTES_MAX:
        raise InvalidCall(
            f"{' and '.join(wanted)} need {len(blob):,} bytes of code and data, at most "
            f"{CALL_BYTES_MAX:,} can be deployed: load large data in on_start"
        )
    return blob


def load_classes(blob: bytes, sys_path: Iterable[str] = ()) -> dict[str, type]:
    """Loads what `pickle_classes` made, and registers what came along.

    Args:
        sys_path: folders that modules may be imported from, where this machine has them: for
            imports inside of methods, which pickling does not see.

    Raises:
        InvalidCall: a module that the classes import is not here, or they cannot be loaded.
    """
    classes, named = _unpickled(blob, sys_path)
    _register(named)
    return classes


def _register(named: dict[str, type]) -> None:
    for name, cls in named.items():
        name_class(name, cls)  # what is stored has the last of a class's names, which is its own
        _publish(cls)


def try_classes(blob: bytes, sys_path: Iterable[str] = ()) -> dict[str, type]:
    """The same, but registers nothing: what is loaded so may be thrown away.

    Raises:
        InvalidCall: as `load_classes`.
    """
    before = list(sys.path)
    try:
        return _unpickled(blob, sys_path)[0]
    finally:
        sys.path[:] = before


def _unpickled(
    blob: bytes, sys_path: Iterable[str], what: str = "the class"
) -> tuple[dict[str, Any], dict[str, type]]:
    """(what was wanted by name, the classes that came along by their stored names)."""
    for folder in sys_path:
        if folder not in sys.path and Path(folder).is_dir():
            sys.path.append(folder)
    try:
        content = pickle.loads(blob)
        wanted: dict[str, Any] = content["classes"]
        named: dict[str, type] = content["names"]
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        raise InvalidCall(
            f"{what} cannot be loaded on its host: the module {missing!r} is missing there "
            f"({error}): install it on every node, or name it in the runtime_env of the class's "
            "ray_options",
            status=500,
        ) from error
    except Exception as error:  # unpickling runs the user's code
        raise InvalidCall(
            f"{what} cannot be loaded on its host ({type(error).__name__}: {error}): use the "
            "same versions of Python and of the packages on every node, then deploy it again",
            status=500,
        ) from error
    return wanted, named


def pickle_functions(wanted: Any, functions: Iterable[Any]) -> tuple[str, bytes]:
    """Pickles functions, or objects that act as such, in the same way as classes.

    Args:
        wanted: them, in whatever they are to be found in after loading.

    Returns:
        A SHA-256 of their code, in the manner of `digest_of`, and the pickle.

    Raises:
        InvalidCall: something that they need cannot be pickled.
    """
    modules = _user_modules(getattr(each, "__module__", "") for each in functions)
    buffer = BytesIO()
    with _lock, _by_value(modules), _with_types(modules, []):
        try:
            seen = _dump(wanted)[1]
            blob = _dump({"classes": wanted, "names": _names_of(seen, modules)})[0]
            _Digester(buffer, protocol=5).dump(wanted)
        except Exception as error:
            raise InvalidCall(
                f"filters and process_setup must be such that they can be pickled ({error}): make "
                "what cannot inside of them"
            ) from error
    if len(blob) > CALL_BYTES_MAX:
        raise InvalidCall(
            f"filters and process_setup need {len(blob):,} bytes of code and data, at most "
            f"{CALL_BYTES_MAX:,} can be handed in"
        )
    return hashlib.sha256(buffer.getvalue()).hexdigest(), blob


def load_functions(blob: bytes, sys_path: Iterable[str] = ()) -> Any:
    """Loads what `pickle_functions` made.

    Raises:
        InvalidCall: as `load_classes`.
    """
    wanted, named = _unpickled(blob, sys_path, "a filter, or process_setup,")
    _register(named)
    return wanted


def digest_of(cls: type, *others: bytes) -> str:
    """A SHA-256 of a class's code that is the same whichever process computes it.

    Left out is what differs without a reason: the random id that cloudpickle gives each class,
    the order of sets, addresses. Should the digest differ all the same, the class merely gets a
    new version.

    Raises:
        InvalidCall: something that the class needs cannot be pickled.
    """
    modules = _modules_of([cls])
    buffer = BytesIO()
    others_names: list[str] = []
    try:
        with _lock, _by_value(modules), _with_types(modules, [cls]):
            digester = _Digester(buffer, protocol=5)
            digester.dump(cls)
            others_names = sorted(_former_names(digester.seen, modules))
    except Exception:  # a class with an odd part
        buffer = BytesIO(pickle_class(cls))
    digest = hashlib.sha256(buffer.getvalue())
    for name in others_names:
        digest.update(name.encode())
    for other in others:
        digest.update(other)
    return digest.hexdigest()


def is_user_module(module: ModuleType) -> bool:
    """Whether a module is the user's own: not installed, not built in, not of this package."""
    if module.__name__ == "__main__" or module.__name__.partition(".")[0] == "rayobjects":
        return module.__name__ == "__main__" and getattr(module, "__file__", None) is not None
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return False
    path = str(Path(file).resolve())
    return "site-packages" not in path and not path.startswith(_INSTALLED)


class _Recorder(cloudpickle.Pickler):  # type: ignore[misc]
    """Notes the classes that it pickles by value."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.seen: dict[type, None] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and not _is_installed(value):
            self.seen[value] = None
            if is_plain(value):
                return reduced(value)
        # Fields of a dataclass have them, and are told by identity: a copy would be a default.
        elif value is dataclasses.MISSING:
            return "MISSING"
        elif value is dataclasses.KW_ONLY:
            return "KW_ONLY"
        return super().reducer_override(value)


class _Digester(cloudpickle.Pickler):  # type: ignore[misc]
    """Makes something that is the same for the same code, and cannot be loaded."""

    def __init__(self, file: BytesIO, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.seen: list[type] = []

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, CodeType):
            return tuple, ([_stable(getattr(value, name)) for name in _CODE_PARTS],)
        if isinstance(value, type) and not _is_installed(value):
            self.seen.append(value)
            return str, (value.__qualname__,), (value.__bases__, _class_parts(value))
        return super().reducer_override(value)


def _class_parts(cls: type) -> list[tuple[str, Any]]:
    """What a class is made of, without what pydantic and abc derive from it: their schemas and
    registries have addresses inside."""
    parts: list[tuple[str, Any]] = []
    for name, value in vars(cls).items():
        if name == "__pydantic_fields__":
            parts.append((name, _ADDRESS.sub("", repr(value))))
        elif name.startswith("__pydantic_") or name in ("_abc_impl", "__signature__"):
            continue
        elif not isinstance(value, GetSetDescriptorType | MemberDescriptorType):
            parts.append((name, _stable(value)))
    return parts


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_CODE_PARTS = (
    *("co_name", "co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_firstlineno"),
    "co_linetable",
)


def _stable(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, tuple):
        return [_stable(item) for item in value]
    return value


def _refusal(classes: Iterable[type], error: Exception) -> InvalidCall:
    classes = list(classes)
    names = " and ".join(cls.__name__ for cls in classes)
    return InvalidCall(
        f"{names} cannot be deployed: {culprit(classes)} cannot be pickled ({error}): make it in "
        "on_start, or inside the method that uses it"
    )


def _dump(value: Any) -> tuple[bytes, list[type]]:
    buffer = BytesIO()
    recorder = _Recorder(buffer)
    recorder.dump(value)
    return buffer.getvalue(), list(recorder.seen)


def _is_installed(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__":
        return False
    return not is_user_module(module) and not getattr(module, "__rayobjects__", False)


def _stored_name(cls: type) -> str:
    """What stored values call a class. A script's classes are called as if it were imported."""
    return f"{_stored_module(cls.__module__)}:{cls.__qualname__}"


def _stored_module(module: str) -> str:
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(file).stem if file else module
    return module


def _names_of(classes: Iterable[type], modules: Iterable[ModuleType]) -> dict[str, type]:
    """Classes by all names that stored values may have for them, each one's own name last."""
    own = {_stored_name(cls): cls for cls in classes}
    former = _former_names(own.values(), modules)
    return {name: cls for name, cls in former.items() if name not in own} | own


def _former_names(classes: Iterable[type], modules: Iterable[ModuleType]) -> dict[str, type]:
    """What else the globals of the user's modules call these classes."""
    wanted = {id(cls) for cls in classes}
    found = {
        f"{_stored_module(module.__name__)}:{name}": value
        for module in modules
        for name, value in vars(module).items()
        if id(value) in wanted
    }
    return {name: cls for name, cls in found.items() if name != _stored_name(cls)}


def _publish(cls: type) -> None:
    """Makes a class importable under its own name."""
    if cls.__module__ == "__main__" or "." in cls.__qualname__:
        return  # those go by value, and are recognised by cloudpickle's own id
    module = sys.modules.get(cls.__module__)
    if module is None:
        module = ModuleType(cls.__module__, "What a deployed class brought along.")
        module.__dict__["__rayobjects__"] = True
        sys.modules[cls.__module__] = module
    setattr(module, cls.__qualname__, cls)


def _modules_of(classes: Iterable[type]) -> list[ModuleType]:
    return _user_modules(base.__module__ for cls in classes for base in cls.__mro__)


def _user_modules(names: Iterable[str]) -> list[ModuleType]:
    """The user's modules of these names, those that they refer to, and those in turn."""
    found: dict[str, ModuleType] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in found or not is_user_module(module):
            continue
        found[name] = module
        for value in list(vars(module).values()):
            if isinstance(value, ModuleType):
                waiting.append(value.__name__)
            elif isinstance(value, type | FunctionType):
                waiting.append(value.__module__ or "")
            else:
                waiting.append(type(value).__module__)
    return list(found.values())


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    registered = cloudpickle.list_registry_pickle_by_value()
    ours = [m for m in modules if m.__name__ not in registered and m.__name__ != "__main__"]
    ours = [m for m in ours if sys.modules.get(m.__name__) is m]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def _with_types(modules: list[ModuleType], classes: Iterable[type]) -> Iterator[None]:
    """Replaces annotations that are strings by what they mean, for the time of the pickling.

    A function takes along what its code names, not what its annotations name: on the host, there
    would be nothing to look `"Message"` up in.
    """
    undo: list[Callable[[], None]] = []
    holders: list[Any] = [base for cls in classes for base in cls.__mro__]
    for module in modules:
        holders += [v for v in vars(module).values() if isinstance(v, type | FunctionType)]
    seen: set[int] = set()
    names_of = {module.__name__: vars(module) for module in modules}
    try:
        while holders:
            holder = holders.pop()
            holder = getattr(holder, "__func__", holder)
            names = names_of.get(getattr(holder, "__module__", None) or "")
            if id(holder) in seen or names is None:
                continue
            seen.add(id(holder))
            local: dict[str, Any] = {}
            if isinstance(holder, type):
                local = dict(vars(holder))
                members = [m for m in local.values() if not isinstance(m, property)]
                holders += [m for m in members if isinstance(m, type | FunctionType)]
                holders += [m for m in members if isinstance(m, staticmethod | classmethod)]
                for field in local.get("__dataclass_fields__", {}).values():
                    restore = _replaced(field, "type", resolved(field.type, names, local))
                    undo.append(restore)
            annotations = vars(holder).get("__annotations__") if local else None
            if isinstance(holder, FunctionType):
                annotations = holder.__annotations__
                holders += [v for v in vars(holder).values() if isinstance(v, FunctionType)]
            for name, annotation in list((annotations or {}).items()):
                value = resolved(annotation, names, local)
                if value is not annotation:
                    undo.append(_reset(annotations, name, annotation))
                    annotations[name] = value  # type: ignore[index]
        yield
    finally:
        for step in reversed(undo):
            step()


def _replaced(holder: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    return lambda: setattr(holder, name, before)


def _reset(values: Any, name: str, before: Any) -> Callable[[], None]:
    return lambda: values.__setitem__(name, before)
