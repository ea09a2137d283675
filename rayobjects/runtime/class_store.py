"""The classes of a cluster: how they are deployed, renamed and deleted, by the host of shard 0.

The manifest is the truth. A change is tried first (a new class must load on a host), then written
into the manifest in one piece, then published in Ray's key-value store, where every process looks;
then its caller tells the hosts. When a process dies

    before the manifest is written   nothing has happened; the old class serves
    before it is published           the host of shard 0 publishes what the manifest has whenever it
                                     opens its storage, and before every further change
    before the hosts are told        they find out by themselves within seconds (`host_classes`)

**Rename.** Objects are stored under their class's key, the first name that it had. A rename changes
the name beside the key: one write. Former names still lead to the class, so that no stub goes
stale; for that reason no other class can have them while it exists.

**Delete** takes several steps, and each may be repeated:

    1. the class is marked in the manifest: from now on nobody loads it
    2. dedicated objects that live end: they tell their sockets, delete their state, and their
       actors are ended
    3. each shard waits until none of the class's objects is live, makes new owner epochs for those
       that had one, and deletes object by object, in pages, as their own `delete` would
    4. the class is taken out of the manifest

Whoever dies in between leaves a marked class, whose calls fail with an error that says how to go
on: `rayobjects delete-class` again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from rayobjects.errors import InvalidCall
from rayobjects.objects.catalog import ClassInfo
from rayobjects.runtime.configuration import Catalog, no_class, read_catalog, write_catalog
from rayobjects.storage.manifest import Manifest


class Deployment(msgspec.Struct):
    """What `ro.deploy` hands over: the classes' descriptions and their code, in one pickle."""

    classes: list[ClassInfo]
    blob: bytes


Try = Callable[[list[ClassInfo], bytes], Awaitable[None]]
"""Loads classes on trial; raises InvalidCall if that fails."""


class ClassStore:
    """Used on the host's loop; what blocks is done on threads. One change at a time.

    Args:
        hosting: of classes that do not say.
    """

    def __init__(self, manifest: Manifest, try_classes: Try, hosting: str = "shared") -> None:
        self._manifest = manifest
        self._try = try_classes
        self._hosting = hosting
        self._changing = asyncio.Lock()

    def publish(self) -> Catalog:
        """Makes the catalog what the manifest says. Blocks."""
        stored = self._stored()
        catalog = read_catalog()
        if catalog.classes == stored:
            return catalog
        known = {(info.key, info.version, info.digest) for info in catalog.classes.values()}
        blobs = {
            name: self._manifest.class_blob(name, info.version)
            for name, info in stored.items()
            if (info.key, info.version, info.digest) not in known
        }
        catalog = Catalog(catalog.version + 1, stored)
        write_catalog(catalog, blobs)
        return catalog

    def _stored(self) -> dict[str, ClassInfo]:
        return {
            name: msgspec.msgpack.decode(info, type=ClassInfo)
            for name, (_, info) in self._manifest.classes().items()
        }

    async def deploy(self, deployment: Deployment) -> list[ClassInfo]:
        """Stores new versions of classes; an unchanged class keeps its version.

        Returns:
            The infos with their versions.

        Raises:
            InvalidCall: a class cannot be loaded, is being deleted, had its name before another
                got it, or would change its hosting. No class was changed.
            StorageFailed: it could not be stored.
        """
        async with self._changing:
            catalog = await asyncio.to_thread(self.publish)
            changed = [
                info
                for info in deployment.classes
                if not _is_known(info, catalog) and _prepare(info, catalog, self._hosting)
            ]
            if changed:
                await self._try(changed, deployment.blob)
            for info in changed:
                await asyncio.to_thread(
                    self._manifest.store_class,
                    info.name,
                    info.version,
                    deployment.blob,
                    msgspec.msgpack.encode(info),
                    info.stored_as,
                )
            if changed:
                catalog = await asyncio.to_thread(self.publish)
            return [catalog.classes[info.name] for info in deployment.classes]

    async def rename(self, name: str, new_name: str) -> ClassInfo:
        """Gives a class another name. Does nothing if it has that name already.

        Raises:
            InvalidCall: there is no such class, or the new name cannot be had.
            StorageFailed: it could not be stored.
        """
        async with self._changing:
            catalog = await asyncio.to_thread(self.publish)
            info = _existing(name, catalog)
            if info.name == new_name:
                return info
            if info.deleting:
                raise _being_deleted(info)
            holder = catalog.find(new_name)
            if holder is not None and holder is not info:
                raise _taken(new_name, holder)
            changed = msgspec.structs.replace(
                info,
                name=new_name,
                stored_as=info.key if info.key != new_name else "",
                former=[*_without(info.former, new_name), info.name],
            )
            await asyncio.to_thread(
                self._manifest.change_class, info.name, msgspec.msgpack.encode(changed), new_name
            )
            return (await asyncio.to_thread(self.publish)).classes[new_name]

    async def begin_deletion(self, name: str) -> ClassInfo:
        """Marks a class: nobody loads it any more. May be repeated.

        Raises:
            InvalidCall: there is no such class, or it is called otherwise by now.
            StorageFailed: it could not be stored.
        """
        async with self._changing:
            catalog = await asyncio.to_thread(self.publish)
            info = to_delete(name, catalog)
            if info.deleting:
                return info
            changed = msgspec.structs.replace(info, deleting=True)
            await asyncio.to_thread(
                self._manifest.change_class, info.name, msgspec.msgpack.encode(changed)
            )
            return (await asyncio.to_thread(self.publish)).classes[info.name]

    async def end_deletion(self, name: str) -> None:
        """Forgets a marked class whose objects are gone. May be repeated.

        Raises:
            InvalidCall: it is not marked.
            StorageFailed: it could not be stored.
        """
        async with self._changing:
            catalog = await asyncio.to_thread(self.publish)
            info = catalog.find(name)
            if info is None:
                return
            if not info.deleting:
                raise InvalidCall(f"the class {info.name} is not being deleted")
            await asyncio.to_thread(self._manifest.remove_class, info.name)
            await asyncio.to_thread(self.publish)


def to_delete(name: str, catalog: Catalog) -> ClassInfo:
    """The class that has this name now. A former name leads to its class everywhere else; but who
    deletes by one may mean a class that has been long gone, and what is deleted does not come back.

    Raises:
        InvalidCall: there is no such class, or it is called otherwise by now.
    """
    info = _existing(name, catalog)
    if info.name != name:
        raise InvalidCall(
            f"{name} is a former name of the class that is called {info.name} now, and nothing was "
            f"deleted: if you mean that class, delete it by its name (`rayobjects delete-class "
            f"{info.name}`)"
        )
    return info


def _is_known(info: ClassInfo, catalog: Catalog) -> bool:
    known = catalog.classes.get(info.name)
    return known is not None and known.digest == info.digest and not known.deleting


def _prepare(info: ClassInfo, catalog: Catalog, default: str) -> bool:
    """Makes an info of what is to be deployed the next version of its class; returns True."""
    known = catalog.find(info.name)
    info.code_name = info.name
    info.version = 1
    if known is None:
        return True
    if known.deleting:
        raise _being_deleted(known)
    if known.name != info.name:
        raise _taken(info.name, known)
    before, now = known.hosting or default, info.hosting or default
    if before != now:
        # Its live objects would have two homes for a while, and both could commit.
        raise InvalidCall(
            f"{info.name} is deployed with hosting={before!r}, which cannot be changed to {now!r}: "
            "deploy the class under another name"
        )
    info.version = known.version + 1
    info.stored_as, info.former = known.stored_as, known.former
    return True


def _existing(name: str, catalog: Catalog) -> ClassInfo:
    info = catalog.find(name)
    if info is None:
        raise no_class(name, catalog.classes)
    return info


def _taken(name: str, holder: ClassInfo) -> InvalidCall:
    if holder.name == name:
        return InvalidCall(
            f"there is a class {name} already: choose another name, or delete that class first "
            f"(`rayobjects delete-class {name}`)"
        )
    return InvalidCall(
        f"{name} was the name of the class {holder.name} before that was renamed, and stubs may "
        f"still use it: choose another name, or call the class {holder.name}"
    )


def _being_deleted(info: ClassInfo) -> InvalidCall:
    return InvalidCall(
        f"the class {info.name} is being deleted: finish that first, with `rayobjects delete-class "
        f"{info.name}`"
    )


def _without(names: Iterable[str], name: str) -> list[str]:
    return [each for each in names if each != name]
