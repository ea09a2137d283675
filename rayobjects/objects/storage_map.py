"""`self.storage`: the keys of one object as a mutable mapping, sorted and with range queries.

A thin face over the object's `State`, which keeps the overlay. A large object's keys come page
by page. Values that can be changed inside (lists, dicts) are held until the call ends, because
they may have been; keys and plain values are not.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any

from rayobjects.errors import InvalidCall, misuse
from rayobjects.limits import KEY_BYTES_MAX
from rayobjects.storage.records import ITEM

if TYPE_CHECKING:
    from rayobjects.objects.state import State

MISSING: Any = object()
"""Instead of a value: the key is not there."""


class StorageMap(MutableMapping[str, Any]):
    """The object's own key-value storage.

    Keys are strings of 1 to 2,048 bytes of UTF-8, values anything that can be pickled, up to
    8 MiB. Iteration is in the order of the keys' UTF-8.
    """

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    def __getitem__(self, key: str) -> Any:
        return self._state.read_item(ITEM + _text(key))

    def __setitem__(self, key: str, value: Any) -> None:
        """Stores a value under a key.

        Raises:
            InvalidCall: the key is no string, is empty, too long or not UTF-8.
        """
        self._state.assign(_key(key), value)

    def __delitem__(self, key: str) -> None:
        stored = ITEM + _text(key)
        if not self._state.has_item(stored):
            raise KeyError(key)
        self._state.remove(stored)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._state.has_item(ITEM + key)

    def __iter__(self) -> Iterator[str]:
        for key in self._state.walk_items(ITEM):
            yield key[1:]

    def __reversed__(self) -> Iterator[str]:
        for key in self._state.walk_items(ITEM, reverse=True):
            yield key[1:]

    def __len__(self) -> int:
        return self._state.count_items()

    def __bool__(self) -> bool:
        return any(True for _ in self._state.walk_items(ITEM, limit=1))

    def items(self) -> ItemsView[str, Any]:
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def list(
        self,
        prefix: str = "",
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> dict[str, Any]:
        """The keys in a range, with their values, in the order of their UTF-8.

        Args:
            prefix: only keys that begin with it.
            start: only this key and those after it.
            end: only keys before this one.
            limit: at most so many.
            reverse: from the last one backwards.

        Raises:
            InvalidCall: an argument is of the wrong type.
        """
        if limit is not None and (type(limit) is not int or limit < 0):
            raise misuse(f"limit is a count of keys or None, not {limit!r}")
        found: dict[str, Any] = {}
        if limit == 0:
            return found
        keys = self._state.walk_items(
            ITEM + _text(prefix),
            None if start is None else ITEM + _text(start),
            None if end is None else ITEM + _text(end),
            reverse,
            limit,
        )
        for key, value in _found(self._state, keys):
            found[key] = value
            if len(found) == limit:
                break
        return found

    def delete_all(self) -> None:
        """Deletes all keys. Durable attributes stay."""
        self._state.clear_items()

    def clear(self) -> None:
        """The same as `delete_all`."""
        self._state.clear_items()

    def __repr__(self) -> str:
        return f"<storage of {self._state.id}>"


class _Items(ItemsView[str, Any]):
    _mapping: StorageMap

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        state = self._mapping._state
        return _found(state, state.walk_items(ITEM))


class _Values(ValuesView[Any]):
    _mapping: StorageMap

    def __iter__(self) -> Iterator[Any]:
        state = self._mapping._state
        return (value for _, value in _found(state, state.walk_items(ITEM)))


def _found(state: State, keys: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The keys with their values. A concurrent method walks while other calls commit: what they
    delete between a key and its value is left out."""
    for key in keys:
        value = state.find_item(key)
        if value is not MISSING:
            yield key[1:], value


def _key(key: object) -> str:
    """The key with its prefix, if it may be stored."""
    text = _text(key)
    size = len(text) if text.isascii() else len(text.encode())
    if not text:
        raise InvalidCall("a storage key must not be empty")
    if size > KEY_BYTES_MAX:
        raise InvalidCall(
            f"a storage key has at most {KEY_BYTES_MAX:,} bytes of UTF-8, this one has {size:,}: "
            "use a shorter one, for example a hash of it"
        )
    return ITEM + text


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise misuse(f"a storage key is a string, not {type(key).__name__}: use str(…)")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise InvalidCall(
                f"the storage key {key!r} cannot be written as UTF-8: remove the lone surrogates"
            ) from None
    return str(key) if type(key) is not str else key
