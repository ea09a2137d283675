"""An object's state as people see it: in JSON types, for the command line.

Reads only what is committed, and never fails for what it finds there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rayobjects.messages import encode_json
from rayobjects.objects.committed import Committed
from rayobjects.objects.fields import Entry, Field
from rayobjects.storage.records import ITEM
from rayobjects.storage.values import decode_value

_REPR_CHARACTERS_MAX = 1_000
"""Of a value without a JSON form: enough to recognise it."""


def state_json(fields: Mapping[str, Field], committed: Committed, limit: int) -> dict[str, Any]:
    """The committed state of an object.

    Args:
        fields: the durable attributes of its class; those that nothing was stored for are shown
            with their defaults.
        limit: at most so many storage keys; `truncated` says that there are more.

    Returns:
        `{"attributes": {…}, "storage": {…}}`; a value without a JSON form is `{"$python": repr}`.
    """
    attributes: dict[str, Any] = {}
    storage: dict[str, Any] = {}
    for name, field in fields.items():
        if field.key not in committed.entries:
            attributes[name] = _plain(field.make()[0])
    for key, entry in committed.entries.items():
        if key[0] != ITEM and key[1:].isidentifier():  # else it is no attribute of the class's own
            attributes[key[1:]] = _decoded(entry)
    result: dict[str, Any] = {"attributes": attributes, "storage": storage}
    for key in committed.walk(ITEM, None, None, False, limit + 1):
        if len(storage) == limit:
            result["truncated"] = True
            break
        item = committed.get(key)
        if item is not None:
            storage[key[1:]] = _decoded(item)
    return result


def _decoded(entry: Entry) -> Any:
    try:
        return _plain(decode_value(*entry))
    except Exception as error:  # unpickling runs foreign code
        return {"$python": f"<cannot be read: {type(error).__name__}: {error}>"}


def _plain(value: Any) -> Any:
    """The value in JSON types."""
    try:
        return msgspec.json.decode(encode_json(value))
    except Exception:  # whatever a foreign type's conversion may raise
        pass
    try:
        return {"$python": repr(value)[:_REPR_CHARACTERS_MAX]}
    except Exception:
        return {"$python": f"<{type(value).__name__}>"}
