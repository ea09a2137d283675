"""Methods as people outside of Python see them: JSON schemas, and checking of JSON arguments.

A method's parameters become a typed dictionary, which pydantic turns into a schema and, when the
first call comes, into a validator. What pydantic cannot handle is "any": a method with a strange
annotation can still be called, and whoever deploys it is told.
"""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import typing_extensions
from pydantic import TypeAdapter
from pydantic_core import ValidationError

from rayobjects.errors import InvalidCall, MethodError
from rayobjects.messages import encode_json
from rayobjects.objects.json_bytes import JsonSchemas, validator_of
from rayobjects.objects.marks import stream_of
from rayobjects.objects.strict_json import mistake_in
from rayobjects.objects.typed_dicts import checkable

REF_PREFIX = "#/components/schemas/"
"""Where the schemas refer to their definitions, as OpenAPI wants it."""

ERRORS_MAX = 20
"""Wrong fields that one error names: a list of a million wrong numbers needs no million lines."""

_PLAIN = frozenset({int, str, float, bool, bytes, None, type(None), Any, list, dict})


class Parameters(NamedTuple):
    """What a method takes by name.

    Attributes:
        types: parameter → its type; Any where it has none that pydantic can handle.
        defaults: parameter → its default, of those that have one.
        positional_only: those that Python takes by position only, in order.
        extra: the type of further keyword arguments; None if there may not be any.
        unchecked: what is Any because pydantic cannot handle it: parameter → why.
        returns: the type of the result, or of a generator's items; `inspect.Signature.empty` if the
            method does not say.
    """

    types: dict[str, Any]
    defaults: dict[str, Any]
    positional_only: tuple[str, ...]
    extra: Any
    returns: Any
    unchecked: dict[str, str]


def parameters_of(function: Callable[..., Any], owner: type) -> Parameters:
    """Reads a method's signature; never fails."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return Parameters({}, {}, (), Any, inspect.Signature.empty, {})
    hints = annotations_of(function, owner)
    types: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    positional_only: list[str] = []
    unchecked: dict[str, str] = {}
    extra: Any = None
    for parameter in list(signature.parameters.values())[1:]:
        hint, problem = _checked(hints.get(parameter.name, Any))
        if problem:
            unchecked[parameter.name] = problem
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = hint
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            positional_only.append(parameter.name)
        types[parameter.name] = hint
        if parameter.default is not inspect.Parameter.empty:
            defaults[parameter.name] = parameter.default
    try:
        returns = checkable(hints.get("return", inspect.Signature.empty))
    except Exception:  # a name that is there for type checkers only
        returns = inspect.Signature.empty
    if stream_of(function):
        of = typing.get_args(returns)  # such as Iterator[int] or AsyncGenerator[int, None]
        returns = of[0] if of else inspect.Signature.empty
    return Parameters(types, defaults, tuple(positional_only), extra, returns, unchecked)


def annotations_of(function: Callable[..., Any], owner: type) -> dict[str, Any]:
    """A function's annotations, with names looked up where they are strings; those that cannot be
    found are left out."""
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # an annotation may raise anything when it is evaluated
        pass
    names = getattr(function, "__globals__", {})
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        value = resolved(annotation, names, vars(owner))
        if value is not annotation or not isinstance(annotation, str):
            found[name] = value
    return found


def resolved(annotation: Any, names: dict[str, Any], local: Mapping[str, Any]) -> Any:
    """An annotation with its names looked up, or as it is if one cannot be found. A class's own
    names come second: a method called `list` must not hide the type."""
    holder = SimpleNamespace(__annotations__={"value": annotation})
    for local_names in (None, {**names, **local}):
        try:
            hints = typing.get_type_hints(holder, names, local_names, include_extras=True)
        except Exception:
            continue
        return hints["value"]
    return annotation


class ArgumentParser:
    """Checks JSON arguments against one method's parameters. Built when it is first needed."""

    __slots__ = ("_parameters", "_target", "_validate")

    def __init__(self, target: str, parameters: Parameters) -> None:
        self._target = target
        self._parameters = parameters
        adapter: TypeAdapter[Any] = TypeAdapter(_arguments_type(target, parameters))
        self._validate = validator_of(adapter.core_schema).validate_json

    def parse(self, body: bytes) -> dict[str, Any]:
        """Checks a JSON object of keyword arguments; nothing at all is an empty one.

        Raises:
            InvalidCall: 422; the message names the fields, `details["errors"]` lists them.
            MethodError: a check of the user's own raised something that is no ValueError.
        """
        try:
            arguments: dict[str, Any] = self._validate(body or b"{}")
        except ValidationError as error:
            raise self._refusal(error) from None
        except Exception as error:
            raise MethodError.of(f"checking the arguments of {self._target}", error) from error
        mistake = mistake_in(body, len(arguments)) if body else None
        if mistake is not None:
            field, message = mistake
            raise InvalidCall(
                f"wrong arguments for {self._target}: {field}: {message}",
                details={"errors": [{"field": field, "message": message}]},
            )
        return arguments

    def _refusal(self, error: ValidationError) -> InvalidCall:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        first = problems[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            return InvalidCall(f"body is not JSON: {reason}", details={"errors": []})
        if not first["loc"]:
            return InvalidCall(
                f"the body for {self._target} must be a JSON object of keyword arguments",
                details={"errors": [{"field": "", "message": first["msg"]}]},
            )
        found = []
        for problem in problems[:ERRORS_MAX]:
            field = ".".join(map(str, problem["loc"]))
            message = problem["msg"]
            if len(problem["loc"]) == 1 and problem["type"] == "extra_forbidden":
                known = ", ".join(self._parameters.types) or "none"
                message = f"there is no such argument; there are: {known}"
            elif len(problem["loc"]) == 1 and problem["type"] == "missing":
                message = "this argument is required"
            found.append({"field": field, "message": message})
        listed = "; ".join(f"{item['field']}: {item['message']}" for item in found[:3])
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        return InvalidCall(
            f"wrong arguments for {self._target}: {listed}{more}", details={"errors": found}
        )


def by_name(function: Callable[..., Any], parameters: Parameters) -> Callable[..., Any]:
    """A function that also takes its positional-only parameters by name, as HTTP gives them."""
    names = parameters.positional_only

    def call(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not args and kwargs:
            last = max((i for i, name in enumerate(names) if name in kwargs), default=-1)
            args = tuple(
                kwargs.pop(name) if name in kwargs else parameters.defaults[name]
                for name in names[: last + 1]
            )
        return function(instance, *args, **kwargs)

    setattr(call, "__wrapped__", function)  # noqa: B010  (mypy knows no such attribute)
    return call


class Schemas(NamedTuple):
    """The schemas of a class's methods.

    Attributes:
        parameters: method → the schema of its keyword arguments.
        returns: method → the schema of its result, None if it does not say.
        definitions: what they refer to, under names that begin with the class's.
    """

    parameters: dict[str, dict[str, Any]]
    returns: dict[str, dict[str, Any] | None]
    definitions: dict[str, Any]


def schemas_of(class_name: str, methods: Mapping[str, Parameters]) -> Schemas:
    """The JSON schemas of methods, made together so that types of the same name stay apart."""
    inputs: list[tuple[tuple[str, str], Any, TypeAdapter[Any]]] = []
    for name, parameters in methods.items():
        adapter = TypeAdapter(_arguments_type(name, parameters))
        inputs.append(((name, "in"), "validation", adapter))
        returns = parameters.returns
        if returns is not inspect.Signature.empty and not _problem(returns, "serialization"):
            inputs.append(((name, "out"), "serialization", TypeAdapter(returns)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a default without a JSON form is left out, that is all
        found, rest = TypeAdapter.json_schemas(
            inputs,
            ref_template=f"{REF_PREFIX}{class_name}.{{model}}",
            schema_generator=JsonSchemas,
        )
    definitions: dict[str, Any] = rest.get("$defs", {})
    result = Schemas({}, {}, {})
    for (name, direction), _, _ in inputs:
        mode: Any = "validation" if direction == "in" else "serialization"
        schema: dict[str, Any] = found[(name, direction), mode]
        if direction == "out":
            result.returns[name] = schema
            continue
        reference = schema.get("$ref", "")
        if reference:  # the arguments themselves are no type of the user's: inline them
            schema = definitions.pop(reference.removeprefix(f"{REF_PREFIX}{class_name}."))
        schema.pop("title", None)
        for field, default in methods[name].defaults.items():
            _add_default(schema["properties"], field, default)
        result.parameters[name] = schema
        result.returns.setdefault(name, None)
    for key, definition in definitions.items():
        result.definitions[f"{class_name}.{key}"] = definition
    return result


def _arguments_type(name: str, parameters: Parameters) -> Any:
    fields = {
        field: typing_extensions.NotRequired[kind]
        if field in parameters.defaults
        else typing_extensions.Required[kind]
        for field, kind in parameters.types.items()
    }
    # The name must not be one of the user's types: schemas are told apart by it.
    title = f"{name.replace('.', '_')}__arguments__"
    make: Any = typing_extensions.TypedDict  # the functional form, with names made at run time
    if parameters.extra is None:
        return make(title, fields, closed=True)
    return make(title, fields, extra_items=parameters.extra)


def _checked(annotation: Any) -> tuple[Any, str]:
    """An annotation as pydantic takes it, and ""; or Any, and why it does not take it."""
    try:
        annotation = checkable(annotation)
    except Exception as error:  # as below
        return Any, f"{type(error).__name__}: {error}"
    problem = _problem(annotation)
    return (Any, problem) if problem else (annotation, "")


def _problem(annotation: Any, mode: Any = "validation") -> str:
    """Why pydantic cannot check a value against the annotation, or not describe it; "" if it
    can."""
    try:
        if annotation in _PLAIN:
            return ""
    except TypeError:  # an unhashable annotation
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TypeAdapter(annotation).json_schema(mode=mode)
    except Exception as error:  # pydantic has a dozen ways to say no
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return ""


def _add_default(properties: dict[str, Any], field: str, default: Any) -> None:
    schema = properties.get(field)
    if schema is None:
        return
    try:
        encoded = encode_json(default)
    except Exception:  # a default without a JSON form is not shown
        return
    properties[field] = {**schema, "default": msgspec.json.decode(encoded)}
