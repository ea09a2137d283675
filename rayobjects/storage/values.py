"""Values on disk: JSON where JSON gives back exactly the same, cloudpickle for everything else.

JSON lets SQL look into the state; cloudpickle stores whatever Python can make. The choice is by
exact type, never by equality: `True == 1`, an IntEnum equals its int and a named tuple a list of
the same items, and none of them would come back as what it was.
"""

from __future__ import annotations

import importlib
import io
import math
import pickle
from collections.abc import Callable
from types import CoroutineType
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import msgspec

from rayobjects.errors import InvalidCall, misuse
from rayobjects.limits import VALUE_BYTES_MAX
from rayobjects.storage.records import JSON, PICKLE

_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder().decode

_INT64_MAX = 2**63 - 1


def is_exact_json(value: Any) -> bool:
    """Whether JSON gives back exactly this value, types included."""
    kind = type(value)
    if kind is str:
        return value.isascii() or _is_utf8(value)
    if kind is int:
        return bool(-_INT64_MAX <= value <= _INT64_MAX)
    if kind is bool or value is None:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is list:
        return all(map(is_exact_json, value))
    if kind is dict:
        return all(
            type(key) is str and _is_utf8(key) and is_exact_json(item)
            for key, item in value.items()
        )
    return False


def encode_value(value: Any) -> tuple[int, bytes]:
    """Encodes a value for the storage, as (JSON or PICKLE, bytes).

    Raises:
        InvalidCall: it cannot be pickled, or is larger than 8 MiB.
    """
    encoding, data = PICKLE, b""
    try:
        if is_exact_json(value):
            encoding, data = JSON, _to_json(value)
    except RecursionError:
        pass  # too deep for JSON, or contains itself: pickle can do both
    if encoding == PICKLE:
        data = dump(value, _StoredPickler)
    if len(data) > VALUE_BYTES_MAX:
        raise InvalidCall(
            f"a stored value has at most {VALUE_BYTES_MAX:,} bytes, this one has {len(data):,}: "
            "split it over several keys"
        )
    return encoding, data


def decode_value(encoding: int, data: bytes) -> Any:
    """Decodes what `encode_value` made."""
    return _from_json(data) if encoding == JSON else pickle.loads(data)


class _PlainPickler(pickle.Pickler):
    """Pickles plain data at C speed and gives up on the first function, class or instance: those
    need cloudpickle, which costs 5 µs just to begin."""

    def reducer_override(self, value: Any) -> Any:
        raise _NotPlain


class _NotPlain(Exception):
    pass


_SCALARS = frozenset((int, str, float, bool, bytes, type(None)))


_class_names: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_named_classes: dict[str, type] = {}


def name_class(name: str, cls: type) -> None:
    """Lets stored values refer to a deployed class as `module:Class` instead of containing it.
    What was stored with an earlier version becomes an instance of the one that was named last."""
    _class_names[cls] = name
    _named_classes[name] = cls


def named_class(name: str) -> type:
    """The class that a stored value refers to.

    Raises:
        ImportError: it was not deployed here, and cannot be imported.
    """
    found = _named_classes.get(name)
    if found is None:
        module, _, path = name.partition(":")
        target: Any = importlib.import_module(module)
        for part in path.split("."):
            target = getattr(target, part, None)
        if not isinstance(target, type):
            raise ImportError(f"the deployed code has no class {name}", name=module)
        found = target
    return found


_REFERENCES = frozenset(
    {"ObjectRef", "ClientObjectRef", "ObjectRefGenerator", "DynamicObjectRefGenerator"}
)
"""What Ray calls its futures."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Refuses what stands for a value that is not there yet. Ray's reference can be pickled, but
    whoever has it then waits for ever: only Ray's own pickling tells its owner."""

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is CoroutineType:
            raise misuse("a coroutine has no value yet: `await` it first, and pass the result")
        if kind.__name__ in _REFERENCES and kind.__module__.partition(".")[0] == "ray":
            raise misuse(
                f"a Ray {kind.__name__} cannot be an argument, a result or a stored value: pass "
                "the value, which `await ref` or ray.get(ref) brings"
            )
        return super().reducer_override(value)


class _StoredPickler(_Pickler):
    """For values that outlive the version of the code that made them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type):
            name = _class_names.get(value)
            if name is not None:
                return named_class, (name,)
        return super().reducer_override(value)


def dump(value: Any, pickler: Callable[..., Any] = _Pickler) -> bytes:
    """Pickles a value: plain data with the C pickler, everything else with cloudpickle.

    Raises:
        InvalidCall: it cannot be pickled; the message says what is in the way.
    """
    if type(value) in _SCALARS:
        return pickle.dumps(value, protocol=5)
    buffer = io.BytesIO()
    try:
        _PlainPickler(buffer, protocol=5).dump(value)
        return buffer.getvalue()
    except _NotPlain:
        pass
    except RecursionError:
        pass
    try:
        buffer = io.BytesIO()
        pickler(buffer, protocol=5).dump(value)
        return buffer.getvalue()
    except Exception as error:
        if isinstance(error, InvalidCall) and error.status >= 500:
            raise error.with_traceback(None) from None  # it says what to do; the way is no matter
        raise misuse(
            f"a {type(value).__name__} cannot be pickled ({error}): pass plain data, and keep "
            "locks, connections and files in plain attributes that on_start makes"
        ) from error


def dump_arguments(args: tuple[Any, ...], keywords: dict[str, Any]) -> bytes:
    """Pickles a call's arguments as `(args, keywords)`; scalars, the most of all, at once.

    Raises:
        InvalidCall: one cannot be pickled; the message says what is in the way.
    """
    if not keywords:
        if not args:
            return _NO_ARGUMENTS
        for each in args:
            if type(each) not in _SCALARS:
                break
        else:
            return pickle.dumps((args, keywords), protocol=5)
    return dump((args, keywords))


_NO_ARGUMENTS = pickle.dumps(((), {}), protocol=5)

load = pickle.loads


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
