"""The classes that a host has loaded, each in the version that the catalog names."""

from __future__ import annotations

import asyncio

from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import ObjectClass, load_classes
from rayobjects.runtime.configuration import Catalog, read_catalog, read_class


class HostClasses:
    """Loads classes from the cluster's catalog when they are first used here."""

    def __init__(self) -> None:
        self._loaded: dict[str, ObjectClass] = {}

    async def get(self, name: str) -> ObjectClass:
        """The class in its current version.

        Raises:
            InvalidCall: it is not deployed, or does not import here.
        """
        loaded = self._loaded.get(name)
        if loaded is None:
            loaded = self._loaded[name] = await asyncio.to_thread(_load, name, read_catalog())
        return loaded

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
        return old


def _load(name: str, catalog: Catalog) -> ObjectClass:
    info = catalog.classes.get(name)
    blob = read_class(name, info.version) if info is not None else None
    if info is None or blob is None:
        known = ", ".join(sorted(catalog.classes)) or "none"
        raise InvalidCall(f"no class {name!r} is deployed (there are: {known})", status=404)
    return ObjectClass(load_classes(blob, info.sys_path)[name], info)
