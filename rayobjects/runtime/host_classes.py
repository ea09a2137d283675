"""The classes that a host has loaded, each in the version that the catalog names.

A host knows classes by their keys, which stay when a class is renamed. It is told where one has
changed (`refresh`), and looks at the catalog's version from time to time by itself: whoever
deployed may have died before it could tell everybody.
"""

from __future__ import annotations

import asyncio
from functools import partial

from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import ObjectClass, load_classes
from rayobjects.runtime.configuration import (
    no_class,
    read_catalog,
    read_catalog_version,
    read_class,
)

LOOK_EVERY_S = 5.0
"""How often a host looks at the catalog's version. Usually it has been told; to look costs a
quarter of a millisecond."""


class HostClasses:
    """Loads classes from the cluster's catalog when they are first used here."""

    def __init__(self) -> None:
        self._loaded: dict[str, ObjectClass] = {}
        self._loading: dict[str, asyncio.Future[ObjectClass]] = {}
        self._seen = 0
        self._looked_at_s = float("-inf")

    async def get(self, name: str) -> ObjectClass:
        """The class of this key, in its current version.

        Raises:
            InvalidCall: it is not deployed, is being deleted, or does not import here.
        """
        while True:
            loaded = self._loaded.get(name)
            if loaded is not None:
                return loaded
            loading = self._loading.get(name)  # thousands of objects may ask at once
            if loading is None:
                loading = asyncio.ensure_future(asyncio.to_thread(_load, name))
                self._loading[name] = loading
                loading.add_done_callback(partial(self._take, name))
            if loading.done():  # its callback has not run: to wait here would be no wait at all
                self._take(name, loading)
                loading.result()
                continue
            await asyncio.shield(loading)  # and again, if it became outdated meanwhile

    def _take(self, name: str, done: asyncio.Future[ObjectClass]) -> None:
        if self._loading.get(name) is done:
            del self._loading[name]
            if not done.cancelled() and done.exception() is None:
                self._loaded[name] = done.result()

    async def look(self, now_s: float) -> list[str]:
        """Looks, every LOOK_EVERY_S, whether the catalog has changed; the keys of the classes that
        may have.

        Args:
            now_s: the monotonic time.
        """
        if now_s - self._looked_at_s < LOOK_EVERY_S:
            return []
        self._looked_at_s = now_s
        version = await asyncio.to_thread(read_catalog_version)
        if version == self._seen:
            return []
        self._seen = version
        return [*self._loaded, *self._loading]

    def outdated(self, names: set[str]) -> set[str]:
        """Forgets those of the classes that have changed by now; returns their keys."""
        catalog = read_catalog()
        old = {
            name
            for name in names & self._loaded.keys()
            if catalog.find(name) != self._loaded[name].info
        }
        for name in old:
            del self._loaded[name]
        for name in names:
            if self._loading.pop(name, None) is not None:
                old.add(name)  # it may have read the catalog too early
        return old


def _load(name: str) -> ObjectClass:
    catalog = read_catalog()
    info = catalog.find(name)
    if info is not None and info.deleting:
        raise InvalidCall(
            f"the class {info.name} is being deleted: finish that with `rayobjects delete-class "
            f"{info.name}`",
            status=404,
        )
    blob = read_class(info) if info is not None else None
    if info is None or blob is None:
        raise no_class(name, catalog.classes)
    return ObjectClass(load_classes(blob, info.sys_path)[info.code_name or info.name], info)
