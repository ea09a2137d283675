"""The storage root: whose it is, how it is cut, and which classes live in it.

    root/
      manifest.json     format, pools, slot ranges → shards, classes with their versions
      manifest.lock     held for a moment by who changes it
      cluster           the id of the cluster that uses the root, or used it last
      cluster.lock      held, shared, by every host of the cluster for its life
      classes/          Room-3.pickle: the code of version 3 of Room, written before the manifest
                        names it
      shards/           one directory a shard (`storage.shard`)

A root has one cluster at a time. Every host holds `cluster.lock` shared. A newcomer first tries to
have it alone: if it can, nobody uses the root, and it writes its cluster's id into `cluster`, then
shares the lock. The id is written under the exclusive lock only, so whoever has the lock shared
reads one that stays: its own, or another cluster's, and then it leaves. Giving up the exclusive
lock for the shared one is not atomic, so the newcomer reads the id afterwards like everybody else.
A host that dies lets go of the lock, whatever happened to it.

All hosts of a cluster open the root at the same time: the first that has `manifest.lock` makes the
manifest, the others read it. Nothing is made in a directory before it is known to be ours or empty.
The manifest comes before the shards and the classes, so that a root that has those and no manifest
has lost it.

A class has a name, under which users know it, and a key, under which its objects and its code are
stored. The key is the first name that it had and stays: so to rename a class is one write of the
manifest, and no object moves to another slot.

A process that dies while it changes the manifest leaves the old or the new one, and perhaps a
class's code that no manifest names: not yet (the next version takes that file's place), or no more.
One that dies while it joins leaves an id of a cluster that does not hold the lock, which means
nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from rayobjects.errors import StorageFailed
from rayobjects.ids import SLOT_COUNT
from rayobjects.storage.files import Files, Lock, RealFiles, parse_root

FORMAT = 1
MANIFEST = "manifest.json"
CLUSTER = "cluster"
DEFAULT_POOL = "default"
_MANIFEST_LOCK = "manifest.lock"
_CLUSTER_LOCK = "cluster.lock"

_IGNORED = {"lost+found", ".DS_Store", CLUSTER, _MANIFEST_LOCK, _CLUSTER_LOCK}
"""What a root may contain before it is one: marks of file systems, and of a beginning that was cut
off."""

_JOIN_TRIES = 3
"""A newcomer of another cluster that is refused itself holds the lock for a moment. That it has
just gone is worth another look, a cluster that stays is not."""


class _Pool(msgspec.Struct):
    shards: int


class _Slots(msgspec.Struct):
    first: int
    last: int
    shard: str


class _Class(msgspec.Struct):
    version: int
    info: str  # base64: what it means is the deployer's matter
    key: str = ""  # where it is not the name


class _Content(msgspec.Struct):
    format: int
    pools: dict[str, _Pool]
    slots: list[_Slots]
    classes: dict[str, _Class] = {}


class _Format(msgspec.Struct):
    format: int


class Manifest:
    """An open storage root.

    Attributes:
        root: its absolute path.
        shards: how many shards the default pool has.
    """

    def __init__(self, files: Files, content: _Content, lock: Lock) -> None:
        self.root = files.root
        self.shards = content.pools[DEFAULT_POOL].shards
        self._files = files
        self._content = content
        self._lock: Lock | None = lock
        self._shard_of = [
            int(slots.shard.rpartition("-")[2])
            for slots in content.slots
            for _ in range(slots.first, slots.last + 1)
        ]

    @classmethod
    def open(cls, root: str | Files, cluster_id: str, shards: int) -> Manifest:
        """Opens a root for a cluster, and makes it one if the directory is empty or missing.

        Args:
            root: where it is, as `files.parse_root` takes it, or its files.
            cluster_id: the cluster that this host belongs to.
            shards: how many a new root gets; an existing one keeps its own number.

        Raises:
            StorageFailed: another cluster uses it, a newer version wrote it, or the directory has
                other things in it.
        """
        files = RealFiles(parse_root(root)) if isinstance(root, str) else root
        if not 1 <= shards <= SLOT_COUNT:
            raise StorageFailed(f"a root has 1 to {SLOT_COUNT:,} shards, not {shards}")
        files.make_directory("")
        _check_ours(files)
        lock = _join(files, cluster_id)
        try:
            content = _read(files)
            if content is None:
                with _changing(files):
                    content = _read(files)  # another host may have made it meanwhile
                    if content is None:
                        content = _new(shards)
                        _write(files, content)
            return cls(files, content, lock)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def check(root: str | Files) -> None:
        """Refuses what `open` would refuse now, for who wants to know before hosts are started.
        Makes and changes nothing.

        Raises:
            StorageFailed: as `open` does.
        """
        files = RealFiles(parse_root(root)) if isinstance(root, str) else root
        _check_ours(files)
        if not files.exists(_CLUSTER_LOCK):
            return
        lock = files.lock(_CLUSTER_LOCK, wait=False)
        if lock is None:
            raise _in_use(files, files.read(CLUSTER) or b"")
        lock.release()  # a newcomer that has met it in this moment tries again

    def close(self) -> None:
        """Lets go of the root. May be called twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    # -- shards -------------------------------------------------------------------------------

    def shard_of(self, slot: int) -> int:
        """The number of the shard that has a slot."""
        return self._shard_of[slot]

    def shard_name(self, number: int) -> str:
        """The name of a shard, such as `default-0003`."""
        return f"{DEFAULT_POOL}-{number:04d}"

    def shard_root(self, number: int) -> str:
        """The absolute path of a shard's own directory, which is made if it is missing."""
        name = f"shards/{self.shard_name(number)}"
        self._files.make_directory(name)
        return self._files.path(name)

    # -- classes ------------------------------------------------------------------------------

    def store_class(self, name: str, version: int, blob: bytes, info: bytes, key: str = "") -> None:
        """Stores a version of a class, which becomes the current one.

        Args:
            blob: its code, a pickle.
            info: what the deployer wants to find beside it.
            key: of the class, where it is not its name.

        Raises:
            StorageFailed: the disk refuses, or the name is no identifier. The version before it
                stays the current one.
        """
        if not name.isidentifier():
            raise StorageFailed(f"{name!r} cannot be the name of a class: use an identifier")
        files = self._files
        with self._changed() as content:
            files.make_directory("classes")
            files.replace(_class_file(key or name, version), blob)
            content.classes[name] = _Class(version, base64.b64encode(info).decode(), key)

    def change_class(self, name: str, info: bytes, new_name: str = "") -> None:
        """Changes what is said of a class, and its name if a new one is given; its version, its
        code and its key stay. One write.

        Raises:
            StorageFailed: there is no such class, there is one of the new name, or the disk
                refuses. Nothing was changed.
        """
        with self._changed() as content:
            if name not in content.classes or (new_name and new_name in content.classes):
                raise StorageFailed(f"the storage has no class {name!r}, or has {new_name!r}")
            each = content.classes.pop(name)
            key = each.key or name
            name = new_name or name
            content.classes[name] = _Class(
                each.version, base64.b64encode(info).decode(), key if key != name else ""
            )

    def remove_class(self, name: str) -> None:
        """Forgets a class, whose objects are gone. Does nothing where there is none.

        Raises:
            StorageFailed: the disk refuses.
        """
        with self._changed() as content:
            each = content.classes.pop(name, None)
        if each is None:
            return
        files, key = self._files, each.key or name
        for file in files.list("classes"):
            if file.rpartition("-")[0] == key:
                files.remove(f"classes/{file}")

    @contextmanager
    def _changed(self) -> Iterator[_Content]:
        """Hands out the manifest's content, and writes it when the block has changed it."""
        files = self._files
        with _changing(files):
            content = _read(files)
            if content is None:
                raise StorageFailed(
                    f"{files.path(MANIFEST)} is gone though this cluster uses the root: restore "
                    "it from a copy"
                )
            yield content
            _write(files, content)
            self._content = content

    def classes(self) -> dict[str, tuple[int, bytes]]:
        """Each class's current version, with its info: as last stored by any host."""
        content = _read(self._files) or self._content
        return {
            name: (each.version, base64.b64decode(each.info))
            for name, each in content.classes.items()
        }

    def class_blob(self, name: str, version: int) -> bytes:
        """The code of a version of a class, by its present name.

        Raises:
            StorageFailed: the file is gone.
        """
        known = (_read(self._files) or self._content).classes.get(name)
        file = _class_file(known.key or name if known is not None else name, version)
        blob = self._files.read(file)
        if blob is None:
            raise StorageFailed(
                f"{self._files.path(file)} is missing: deploy the class {name} again"
            )
        return blob


def _class_file(name: str, version: int) -> str:
    return f"classes/{name}-{version}.pickle"


@contextmanager
def _changing(files: Files) -> Iterator[None]:
    """Keeps others from changing the manifest."""
    lock = files.lock(_MANIFEST_LOCK)
    assert lock is not None  # it waits, or raises
    try:
        yield
    finally:
        lock.release()


def _check_ours(files: Files) -> None:
    """Refuses, without having changed anything, a directory that cannot become or be a root."""
    names = files.list("")
    # A listing may miss what is made or replaced meanwhile, so the manifest is looked for after it.
    if files.exists(MANIFEST):
        _read(files)
        return
    if "shards" in names or "classes" in names:
        raise StorageFailed(
            f"{files.path(MANIFEST)} is missing, but there are shards: restore it from a copy, or "
            "use another directory"
        )
    strange = [name for name in names if name not in _IGNORED and not _is_beginning(name)]
    if strange:
        raise StorageFailed(
            f"{files.root} is no storage root and not empty (it has {strange[0]!r}): pass an empty "
            "or a new directory"
        )


def _is_beginning(name: str) -> bool:
    """Whether a file is what `Files.replace` had begun to write when its process died."""
    return name.endswith(".tmp") and name.startswith((f"{MANIFEST}.", f"{CLUSTER}."))


def _join(files: Files, cluster_id: str) -> Lock:
    """Takes the cluster's lock, for a cluster that may use the root."""
    mine = cluster_id.encode()
    found = b""
    for _ in range(_JOIN_TRIES):
        lock = files.lock(_CLUSTER_LOCK, wait=False)
        try:
            if lock is not None:
                if files.read(CLUSTER) != mine:
                    files.replace(CLUSTER, mine)
                lock.downgrade()
            else:
                # Taken: by hosts, for long, or by another newcomer, for a moment.
                lock = files.lock(_CLUSTER_LOCK, shared=True)
                assert lock is not None  # it waits, or raises
            found = files.read(CLUSTER) or b""
            if found == mine:
                return lock
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        lock.release()
    raise _in_use(files, found)


def _in_use(files: Files, cluster_id: bytes) -> StorageFailed:
    return StorageFailed(
        f"{files.root} is in use by the cluster {cluster_id.decode(errors='replace')!r}: stop that "
        "cluster, or use another storage root"
    )


def _new(shards: int) -> _Content:
    # The slots that `slot * shards // SLOT_COUNT` gives to each.
    starts = [-(-number * SLOT_COUNT // shards) for number in range(shards + 1)]
    return _Content(
        FORMAT,
        {DEFAULT_POOL: _Pool(shards)},
        [
            _Slots(starts[number], starts[number + 1] - 1, f"{DEFAULT_POOL}-{number:04d}")
            for number in range(shards)
        ],
    )


def _read(files: Files) -> _Content | None:
    data = files.read(MANIFEST)
    if data is None:
        return None
    path = files.path(MANIFEST)
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found == FORMAT:
            content = msgspec.json.decode(data, type=_Content)
            _check(content)
            return content
    except (msgspec.DecodeError, ValueError, KeyError) as error:
        raise StorageFailed(f"{path} is damaged ({error}): restore it from a copy") from error
    raise StorageFailed(
        f"{path} has the format {found}, this version knows {FORMAT}: use the version of "
        "rayobjects that wrote it"
    )


def _check(content: _Content) -> None:
    expected = 0
    for number, slots in enumerate(content.slots):
        fits = slots.first == expected <= slots.last
        if not fits or slots.shard != f"{DEFAULT_POOL}-{number:04d}":
            raise ValueError(f"the slots from {expected} on belong to no shard")
        expected = slots.last + 1
    if expected != SLOT_COUNT or len(content.slots) != content.pools[DEFAULT_POOL].shards:
        raise ValueError("the slots and the shards do not match")


def _write(files: Files, content: _Content) -> None:
    plain: Any = msgspec.to_builtins(content)
    files.replace(MANIFEST, msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n")
