"""The classes that a host has loaded, each in the version that the catalog names."""

from __future__ import annotations

import asyncio

from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import ObjectClass, load_classes
from rayobjects.runtime.configuration import read_catalog, read_class


class HostClasses:
    """Loads classes from the cluster's catalog when they are first used here."""

    def __init__(self) -> None:
        self._loaded: dict[str, ObjectClass] = {}
        self._loading: dict[str, asyncio.Future[ObjectClass]] = {}

    async def get(self, name: str) -> ObjectClass:
        """The class in its current version.

        Raises:
            InvalidCall: it is not deployed, or does not import here.
        """
        loaded = self._loaded.get(name)
        if loaded is not None:
            return loaded
        loading = self._loading.get(name)  # thousands of objects may ask at once
        if loading is None:
            loading = asyncio.ensure_future(asyncio.to_thread(_load, name))
            self._loading[name] = loading
            loading.add_done_callback(lambda done: self._take(name, done))
        return await asyncio.shield(loading)

    def _take(self, name: str, done: asyncio.Future[ObjectClass]) -> None:
        if self._loading.get(name) is done:
            del self._loading[name]
            if not done.cancelled() and done.exception() is None:
                self._loaded[name] = done.result()

    def outdated(self, names: set[str]) -> set[str]:
        """Forgets those of the classes that have a new version by now; returns their names."""
        catalog = read_catalog()
        old = {
            name
            for name in names & self._loaded.keys()
            if name not in catalog.classes
            or catalog.classes[name].version != self._loaded[name].info.version
        }
        for name in old:
            del self._loaded[name]
        for name in names:
            if self._loading.pop(name, None) is not None:
                old.add(name)  # it may have read the catalog too early
        return old


def _load(name: str) -> ObjectClass:
    catalog = read_catalog()
    info = catalog.classes.get(name)
    blob = read_class(name, info.version) if info is not None else None
    if info is None or blob is None:
        known = ", ".join(sorted(catalog.classes)) or "none"
        raise InvalidCall(f"no class {name!r} is deployed (there are: {known})", status=404)
    return ObjectClass(load_classes(blob, info.sys_path)[name], info)
