"""What every process of the cluster must agree on, kept in Ray's key-value store.

The storage root's manifest is the truth about shards and classes; this is its copy for processes
that do not see the storage, and gone with the Ray cluster. `ro.init` writes the configuration, the
host of shard 0 writes the catalog of classes after it has stored them in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import ray
from ray.experimental import internal_kv

from rayobjects.errors import InvalidCall, Unavailable, miscalled
from rayobjects.objects.catalog import ClassInfo

NAMESPACE = b"rayobjects"
_CONFIGURATION = b"configuration"
_STOPPING = b"stopping"
_CATALOG = b"catalog"
_CATALOG_VERSION = b"catalog-version"
_CLASS = b"class:"
_AROUND = b"around"


class Configuration(msgspec.Struct):
    """The cluster's configuration.

    Attributes:
        cluster_id: made by the first `ro.init`; the storage root is locked to it.
        root: the storage root's absolute path.
        shards: of the pool `default`; fixed by the manifest once there is one.
        hosting: for classes that do not say: "shared" or "dedicated".
        idle_s: after how many seconds without a call an activation leaves.
        unavailable_after_s: how long a channel looks for its host before calls fail.
        node_id: the node whose disk has the storage root; hosts are pinned to it. "" where
            every node sees it.
    """

    cluster_id: str
    root: str
    shards: int
    hosting: str
    idle_s: float
    unavailable_after_s: float
    node_id: str


class Catalog(msgspec.Struct):
    """Every deployed class, by name. `version` grows with each change."""

    version: int
    classes: dict[str, ClassInfo]

    def find(self, name: str) -> ClassInfo | None:
        """The class of this name, or the one that had it before it was renamed."""
        info = self.classes.get(name)
        if info is None:
            for each in self.classes.values():
                if name in each.former or name == each.key:
                    return each
        return info


def read_configuration() -> Configuration | None:
    """The cluster's configuration; None where no `ro.init` has been before."""
    body = _get(_CONFIGURATION)
    return None if body is None else msgspec.msgpack.decode(body, type=Configuration)


def write_configuration(configuration: Configuration, *, overwrite: bool) -> None:
    """Writes it; without `overwrite` an existing one stays."""
    _put(_CONFIGURATION, msgspec.msgpack.encode(configuration), overwrite)


def begin_stop() -> None:
    """From now on no host is made: `rayobjects down`. Until `delete_configuration`."""
    _put(_STOPPING, b"1", True)


def configuration_to_start() -> Configuration:
    """The configuration for a host that is to be made.

    Raises:
        Unavailable: the cluster's objects have been stopped, or are being stopped.
    """
    configuration = read_configuration()
    if configuration is not None and _get(_STOPPING) is not None:
        raise Unavailable(
            "this cluster's objects are being stopped (`rayobjects down`): their state is in the "
            "storage. If that was cut off, run `rayobjects down` again before you go on"
        )
    if configuration is None:
        raise Unavailable(
            "this cluster's objects have been stopped (`rayobjects down`): their state is in the "
            "storage, and `rayobjects serve` or ro.init(storage=…) goes on with it"
        )
    return configuration


def delete_configuration() -> None:
    """Forgets the configuration and the catalog, when nothing runs any more."""
    for key in internal_kv._internal_kv_list(b"", namespace=NAMESPACE):
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def claim_mark(name: str) -> bool:
    """Whether this is the first time in this cluster that the mark is claimed."""
    _initialized()
    there: bool = internal_kv._internal_kv_put(
        f"mark:{name}".encode(), b"", overwrite=False, namespace=NAMESPACE
    )
    return not there


def read_catalog() -> Catalog:
    """The catalog of classes; empty where none is deployed."""
    body = _get(_CATALOG)
    return Catalog(0, {}) if body is None else msgspec.msgpack.decode(body, type=Catalog)


def read_catalog_version() -> int:
    """The catalog's version, without the catalog: for those who ask again and again."""
    return int(_get(_CATALOG_VERSION) or 0)


def write_catalog(catalog: Catalog, blobs: dict[str, bytes]) -> None:
    """Writes the classes' code first and the catalog that names it second."""
    for name, blob in blobs.items():
        _put(_code(catalog.classes[name]), blob, True)
    _put(_CATALOG, msgspec.msgpack.encode(catalog), True)
    _put(_CATALOG_VERSION, str(catalog.version).encode(), True)


def read_class(info: ClassInfo) -> bytes | None:
    """The pickled class of that version."""
    return _get(_code(info))


def read_around_name() -> str:
    """The name of what is around calls (`around`); "" for nothing."""
    return (_get(_AROUND) or b"").decode()


def read_around(name: str) -> bytes | None:
    """The bundle of that name; None if others have taken its place."""
    return _get(_AROUND + b":" + name.encode())


def write_around(name: str, bundle: bytes) -> None:
    """Writes the bundle first and the name that points to it second."""
    before = read_around_name()
    if name:
        _put(_AROUND + b":" + name.encode(), bundle, True)
    _put(_AROUND, name.encode(), True)
    if before and before != name:
        internal_kv._internal_kv_del(_AROUND + b":" + before.encode(), namespace=NAMESPACE)


def _code(info: ClassInfo) -> bytes:
    return _CLASS + f"{info.key}-{info.version}".encode()


def no_class(name: str, classes: Iterable[str]) -> InvalidCall:
    """The error for a class that is not there."""
    known = ", ".join(sorted(classes)) or "none"
    return miscalled(
        name,
        f"no class {name!r} is deployed (there are: {known}): ro.deploy it, or `rayobjects serve` "
        "its file",
        status=404,
    )


def _get(key: bytes) -> bytes | None:
    _initialized()
    body: bytes | None = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
    return body


def _put(key: bytes, value: bytes, overwrite: bool) -> None:
    _initialized()
    internal_kv._internal_kv_put(key, value, overwrite=overwrite, namespace=NAMESPACE)


def _initialized() -> None:
    if not internal_kv._internal_kv_initialized():
        internal_kv._initialize_internal_kv(ray._private.worker.global_worker.gcs_client)
