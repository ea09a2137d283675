"""Deployed classes: what everybody knows of one (`ClassInfo`), and what its host runs
(`ObjectClass`).

A `ClassInfo` is plain data. It is made where the class is deployed, stored beside the pickled
class, and read by gateways and clients, which never load the class itself.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from rayobjects.errors import InvalidCall
from rayobjects.ids import ObjectId
from rayobjects.objects.fields import Field, fields_of
from rayobjects.objects.marks import BLOCKING, CONCURRENT, INTERNAL, is_marked, stream_of
from rayobjects.objects.model import HOOKS, DurableObject, options_of
from rayobjects.objects.pickling import digest_of, is_user_module
from rayobjects.objects.pickling import load_classes as load_classes
from rayobjects.objects.pickling import pickle_classes as pickle_classes
from rayobjects.objects.ray_options import check_ray_options
from rayobjects.objects.signatures import ArgumentParser, by_name, parameters_of, schemas_of

logger = logging.getLogger("rayobjects")


class MethodInfo(msgspec.Struct):
    """A method, as callers see it.

    Attributes:
        doc: its docstring.
        internal: it cannot be called over HTTP.
        parameters: the JSON schema of the object of its keyword arguments.
        returns: the JSON schema of its result, or of an item if it is a stream; None if it does
            not say.
        stream: it is a generator, and yields items.
    """

    name: str
    doc: str
    internal: bool
    parameters: dict[str, Any]
    returns: dict[str, Any] | None
    stream: bool = False


class ClassInfo(msgspec.Struct):
    """A deployed class, as everybody sees it.

    Attributes:
        version: counts its deployments; 0 before the first.
        digest: SHA-256 of code and signatures: the same digest needs no new version.
        doc: its docstring.
        hosting: "shared", "dedicated", or "" for what the settings say.
        ray_options: options of the Ray actor that hosts its objects.
        methods: its methods, by name.
        sockets: it takes WebSockets.
        requests: it takes raw requests.
        definitions: JSON schemas that those of the methods refer to, under
            `#/components/schemas/`; their names begin with the class's.
        sys_path: folders that the class's module could import from where it was deployed.
        code_name: what the class is called in its code: its name when it was deployed.
        stored_as: the name under which its objects are stored, where that is another: it stays
            when the class is renamed.
        former: the names that it had before it was renamed; stubs may still have them.
        deleting: `rayobjects delete-class` has begun: no call is taken any more.
    """

    name: str
    version: int = 0
    digest: str = ""
    doc: str = ""
    hosting: str = ""
    ray_options: dict[str, Any] = {}
    methods: dict[str, MethodInfo] = {}
    sockets: bool = False
    requests: bool = False
    definitions: dict[str, Any] = {}
    sys_path: list[str] = []
    code_name: str = ""
    stored_as: str = ""
    former: list[str] = []
    deleting: bool = False

    @property
    def key(self) -> str:
        """What the class is called wherever that must not change: in the storage, in the ids of its
        objects on their way, in the names of its hosts."""
        return self.stored_as or self.name


class Method:
    """A method of a loaded class.

    Attributes:
        name: its name.
        function: takes the instance, then the arguments, all of them also by name.
        is_async: it returns an awaitable.
        internal: it cannot be called over HTTP.
        concurrent: it runs without the object's turn.
        blocking: it runs on a thread.
        stream: it returns a generator: `marks.LOOP` or `marks.THREAD`; else "".
    """

    __slots__ = (
        "_owner",
        "_parser",
        "_raw",
        "blocking",
        "concurrent",
        "function",
        "internal",
        "is_async",
        "name",
        "stream",
    )

    def __init__(self, owner: type[DurableObject], name: str, function: Callable[..., Any]) -> None:
        self._owner = owner
        self._raw = function
        self._parser: ArgumentParser | None = None
        self.name = name
        self.function = function
        if _has_positional_only(function):
            self.function = by_name(function, parameters_of(function, owner))
        # A plain function around a coroutine function returns what that one returns.
        self.is_async = any(map(inspect.iscoroutinefunction, (function, inspect.unwrap(function))))
        self.internal = is_marked(function, INTERNAL)
        self.concurrent = is_marked(function, CONCURRENT)
        self.blocking = is_marked(function, BLOCKING)
        self.stream = stream_of(function)

    def parse_json(self, body: bytes) -> dict[str, Any]:
        """Checks arguments that came as JSON against the signature.

        Returns:
            Keyword arguments, as the types that the signature says.

        Raises:
            InvalidCall: 422; the message names the fields, `details["errors"]` lists them.
            MethodError: a check of the user's own raised something that is no ValueError.
        """
        parser = self._parser
        if parser is None:
            target = f"{self._owner.__name__}.{self.name}"
            parser = ArgumentParser(target, parameters_of(self._raw, self._owner))
            self._parser = parser
        return parser.parse(body)


class ObjectClass:
    """A class as its host runs it.

    Attributes:
        cls: the class.
        info: what everybody knows of it.
        fields: its durable attributes, by name.
        methods: its methods, by name.
        concurrent: the names of those that run without the object's turn.
    """

    __slots__ = ("_hooks", "cls", "concurrent", "fields", "info", "methods")

    def __init__(self, cls: type[DurableObject], info: ClassInfo) -> None:
        self.cls = cls
        self.info = info
        self.fields: dict[str, Field] = fields_of(cls)
        self.methods = {
            name: Method(cls, name, function) for name, function in methods_of(cls).items()
        }
        self.concurrent = frozenset(
            name for name, method in self.methods.items() if method.concurrent
        )
        self._hooks = hooks_of(cls)

    def shown(self, id: ObjectId) -> ObjectId:
        """The id of one of its objects, as users know it."""
        return ObjectId(self.info.name, id.name)

    def hook(self, name: str) -> Callable[..., Any] | None:
        """The function of a hook (`on_start`, …), None if the class does not define it."""
        return self._hooks.get(name)


def methods_of(cls: type[DurableObject]) -> dict[str, Callable[..., Any]]:
    """The methods of a class that others can call: functions, of its bases too, that are no hooks
    and whose names do not begin with `_`."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(cls.__mro__):
        if base in (object, DurableObject):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") or name in HOOKS:
                continue
            if inspect.isfunction(value):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def hooks_of(cls: type[DurableObject]) -> dict[str, Callable[..., Any]]:
    """The hooks that a class defines, by name."""
    found = {name: getattr(cls, name) for name in HOOKS}
    return {name: hook for name, hook in found.items() if hook is not getattr(DurableObject, name)}


def describe(cls: type[DurableObject], *, warn: bool = True) -> ClassInfo:
    """Describes a class for its deployment; `version` is left 0.

    Args:
        warn: logs what is no mistake and hardly meant; not if it is only tried.

    Raises:
        InvalidCall: it is no class of durable objects, is abstract, cannot be pickled, or has Ray
            options that there are not, or that are no plain data.
    """
    check_class(cls)
    functions = methods_of(cls)
    parameters = {name: parameters_of(function, cls) for name, function in functions.items()}
    for method, each in parameters.items():
        for argument, why in each.unchecked.items() if warn else ():
            logger.warning(
                "%s.%s takes any %s over HTTP, and hands it on unchecked: its annotation is of no "
                "use there (%s)",
                *(cls.__name__, method, argument, why),
            )
    schemas = schemas_of(cls.__name__, parameters)
    options = options_of(cls)
    hooks = hooks_of(cls)
    methods = {
        name: MethodInfo(
            name=name,
            doc=inspect.getdoc(function) or "",
            internal=is_marked(function, INTERNAL),
            parameters=schemas.parameters[name],
            returns=schemas.returns[name],
            stream=bool(stream_of(function)),
        )
        for name, function in functions.items()
    }
    info = ClassInfo(
        name=cls.__name__,
        doc=inspect.cleandoc(cls.__doc__ or ""),
        hosting=options.hosting or "",
        ray_options=options.ray_options,
        methods=methods,
        sockets=not hooks.keys().isdisjoint(("on_connect", "on_message", "on_close")),
        requests="on_request" in hooks,
        definitions=schemas.definitions,
    )
    try:
        plain = msgspec.json.encode(info, order="sorted")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidCall(
            f"the ray_options of {cls.__name__} must be plain data ({error}): use dicts, lists, "
            "strings and numbers"
        ) from error
    check_ray_options(info.name, info.ray_options)
    info.digest = digest_of(cls, plain)
    info.sys_path = import_path(cls)
    return info


def check_class(cls: object) -> None:
    """Checks that something can be deployed.

    Raises:
        InvalidCall: it is no class of durable objects, or an abstract one.
    """
    if isinstance(cls, type) and issubclass(cls, DurableObject) and cls is not DurableObject:
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise InvalidCall(
                f"{cls.__name__} is abstract, no object of it can be made: deploy a subclass that "
                f"defines {', '.join(missing)}"
            )
        return
    raise InvalidCall(
        f"{cls!r} is no class of durable objects: write class Name(rayobjects.DurableObject)"
    )


def import_path(definition: Any) -> list[str]:
    """Folders of the user's own that the module of a class or function is imported from."""
    found: list[str] = []
    module = sys.modules.get(getattr(definition, "__module__", ""))
    if module is not None and is_user_module(module):
        package = (getattr(module, "__package__", None) or "").split(".")
        folder = Path(str(module.__file__)).resolve().parent
        for _ in [part for part in package if part]:
            folder = folder.parent
        found.append(str(folder))
    return found


def _has_positional_only(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    return any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters[1:])
