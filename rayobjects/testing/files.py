"""A disk that fails where it is told to: full, broken, or without power.

`FaultyFiles` is one process's view of a real directory. Every step that a power loss could come
between counts as an operation: create, write, sync, rename, unlink, sync_directory, and look (at a
held file). At any of them it can raise what a disk raises (`fail`), or stop dead (`crash_at`): then
that operation and all later ones raise `Crashed`, which is no Exception, so no handler of errors
takes it for one. Two ways lead on from there, each to a new FaultyFiles:

    kill    the process died: what it had written is there, synced or not
    crash   the power failed: each file keeps what was synced, and of the rest any prefix, perhaps
            with zeros at its end; what was made, renamed or removed in a directory that was not
            synced afterwards may have happened or not, each for itself

A sync that failed leaves its data where reading finds it and the disk does not have it; no later
sync of that file brings it there. So whoever reads the file after `kill` and builds on it finds out
by a `crash`.

Which outcome it is, among those that may be, is drawn from the seed. Files that others write
(DuckDB's) are left as they are, and directories stay. `RealFiles.overwrite` promises nothing, and
is not watched.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from hashlib import blake2b

from rayobjects.storage.files import AppendFile, HeldFile, Lock, RealFiles, storage_failed

STEPS = ("create", "write", "sync", "rename", "unlink", "sync_directory", "look")


class Crashed(BaseException):
    """The process does not live any more."""


@dataclass
class _Fault:
    step: str
    error: int
    name: str
    skip: int
    times: int


@dataclass(eq=False)
class _Node:
    """A file, whatever its name is now.

    Attributes:
        synced: how many bytes are on the disk for sure.
        broken: a sync failed: later ones do not count.
        content: what it had when it lost its name, else None.
    """

    synced: int = 0
    broken: bool = False
    content: bytes | None = None


@dataclass
class _Change:
    """A change of a directory that has not been synced: `source` (if any) goes, `target` (if any)
    becomes the node."""

    directory: str
    node: _Node
    source: str = ""
    target: str = ""

    def apply(self, names: dict[str, _Node]) -> None:
        if self.source and names.get(self.source) is self.node:
            del names[self.source]
        if self.target:
            names[self.target] = self.node


@dataclass
class _Disk:
    """What is on the disk, as opposed to what the processes see. Paths are absolute."""

    now: dict[str, _Node] = field(default_factory=dict)
    synced: dict[str, _Node] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)
    inodes: dict[int, _Node] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def at(self, path: str) -> _Node:
        """The node of a file that is there; one that was there before is on the disk."""
        node = self.now.get(path)
        if node is None:
            status = os.stat(path)
            node = self.now[path] = self.synced[path] = _Node(status.st_size)
            self.inodes[status.st_ino] = node
        return node

    def of(self, descriptor: int, path: str) -> _Node:
        """The node of an open file, which another one may have taken the name of."""
        inode = os.fstat(descriptor).st_ino
        if inode not in self.inodes and os.path.exists(path):
            self.at(path)
        return self.inodes.setdefault(inode, _Node())

    def change(self, change: _Change) -> None:
        change.apply(self.now)
        self.changes.append(change)


class _Dice:
    """Numbers that look random and are the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._thrown = 0

    def below(self, limit: int) -> int:
        self._thrown += 1
        digest = blake2b(f"{self.seed}/{self._thrown}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % limit

    def coin(self) -> bool:
        return self.below(2) == 0


class FaultyFiles(RealFiles):
    """`Files` for tests.

    Attributes:
        operations: how many there have been.
        steps: which ones, in order: (step, name of the file or directory).
        crash_at: the operation (the first is 0) at which it stops dead; None for never.
    """

    def __init__(self, root: str, *, seed: int = 0, beside: FaultyFiles | None = None) -> None:
        """A process that works on the directory `root`.

        Args:
            seed: decides among the outcomes that may be.
            beside: another process that lives on the same disk.
        """
        super().__init__(root)
        self.operations = 0
        self.steps: list[tuple[str, str]] = []
        self.crash_at: int | None = None
        self._disk: _Disk = beside._disk if beside is not None else _Disk()
        self._dice = _Dice(seed)
        self._dead = False
        self._faults: list[_Fault] = []
        self._open: list[AppendFile | HeldFile] = []
        self._locks: list[Lock] = []

    # -- what the test says ---------------------------------------------------------------------

    def fail(self, step: str, error: int, *, name: str = "", skip: int = 0, times: int = 1) -> None:
        """Lets a step raise an OSError; a write that fails has written a part.

        Args:
            step: one of STEPS.
            error: the errno.
            name: a part of the file's name; "" for any.
            skip: so many matching ones succeed first.
            times: so many fail then.
        """
        if step not in STEPS:
            raise ValueError(f"{step!r} is none of {STEPS}")
        self._faults.append(_Fault(step, error, name, skip, times))

    def kill(self) -> FaultyFiles:
        """The process dies; its locks are free. Returns the next process."""
        self._die()
        for file in self._open:
            file.close()
        for lock in self._locks:
            lock.release()
        return FaultyFiles(self.root, seed=self._dice.seed + 1, beside=self)

    def crash(self) -> FaultyFiles:
        """The power fails, for everything that lives on this disk. Returns the first process after
        that; those before must be dead, or not be used any more."""
        successor = self.kill()
        disk, successor._disk = self._disk, _Disk()
        with disk.lock:
            names = dict(disk.synced)
            for change in disk.changes:
                if self._dice.coin():
                    change.apply(names)
            contents = {path: self._left_of(path, node) for path, node in sorted(names.items())}
            for path in disk.now.keys() - names.keys():
                if os.path.exists(path):
                    os.unlink(path)
            for path, content in contents.items():
                # A new file, because something dead may still have the old one open.
                with open(f"{path}.left", "wb") as file:
                    file.write(content)
                os.replace(f"{path}.left", path)
        return successor

    # -- what dies with the process ---------------------------------------------------------------

    def exists(self, name: str) -> bool:
        self._live()
        return super().exists(name)

    def list(self, directory: str) -> list[str]:
        self._live()
        return super().list(directory)

    def make_directory(self, name: str) -> None:
        self._live()
        super().make_directory(name)

    def read(self, name: str) -> bytes | None:
        self._live()
        return super().read(name)

    def append(self, name: str) -> AppendFile:
        self._live()
        file = super().append(name)
        self._open.append(file)
        return file

    def hold(self, name: str) -> HeldFile:
        self._live()
        file = _Held(self, super().hold(name), self.path(name))
        self._open.append(file)
        return file

    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> Lock | None:
        self._live()
        lock = super().lock(name, shared=shared, wait=wait)
        if lock is not None:
            self._locks.append(lock)
        return lock

    # -- the steps ----------------------------------------------------------------------------

    def _create(self, path: str) -> int:
        path = os.path.normpath(path)
        self._step("create", path)
        with self._disk.lock:
            if os.path.exists(path):  # cut to nothing, and still the same file
                node = self._disk.at(path)
                node.synced = 0
                return super()._create(path)
            descriptor = super()._create(path)
            node = _Node()
            self._disk.inodes[os.fstat(descriptor).st_ino] = node
            self._disk.change(_Change(os.path.dirname(path), node, target=path))
        return descriptor

    def _write(self, descriptor: int, path: str, data: bytes) -> None:
        path = os.path.normpath(path)
        self._live()
        with self._disk.lock:
            self._disk.of(descriptor, path)
        try:
            self._step("write", path)
        except (OSError, Crashed):
            super()._write(descriptor, path, data[: self._dice.below(len(data) + 1)])
            raise
        super()._write(descriptor, path, data)

    def _sync(self, descriptor: int, path: str) -> None:
        path = os.path.normpath(path)
        with self._disk.lock:
            node = self._disk.of(descriptor, path)
        try:
            self._step("sync", path)
        except OSError:
            node.broken = True
            raise
        # A real sync would add its milliseconds and change nothing: there is no real power loss.
        if not node.broken:
            node.synced = os.fstat(descriptor).st_size

    def _rename(self, source: str, target: str) -> None:
        source, target = os.path.normpath(source), os.path.normpath(target)
        self._step("rename", source)
        with self._disk.lock:
            node = self._disk.at(source)
            self._keep(target)
            super()._rename(source, target)
            self._disk.change(_Change(os.path.dirname(target), node, source, target))

    def _unlink(self, path: str) -> None:
        path = os.path.normpath(path)
        self._step("unlink", path)
        with self._disk.lock:
            self._keep(path)
            super()._unlink(path)
            self._disk.change(_Change(os.path.dirname(path), self._disk.now[path], path))

    def _sync_directory(self, path: str) -> None:
        path = os.path.normpath(path)
        self._step("sync_directory", path)
        with self._disk.lock:
            disk = self._disk
            for change in disk.changes:
                if change.directory == path:
                    change.apply(disk.synced)
            disk.changes = [change for change in disk.changes if change.directory != path]

    # -- inside -------------------------------------------------------------------------------

    def _step(self, step: str, path: str) -> None:
        """Counts an operation, and ends it where it should end."""
        self._live()
        name = os.path.relpath(path, self.root)
        number = self.operations
        self.operations += 1
        self.steps.append((step, name))
        if self.crash_at is not None and number >= self.crash_at:
            self._die()
            raise Crashed(f"{step} {name}")
        for fault in self._faults:
            if fault.step != step or fault.name not in name or not fault.times:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            raise OSError(fault.error, os.strerror(fault.error), path)

    def _live(self) -> None:
        if self._dead:
            raise Crashed("the process is dead")

    def _die(self) -> None:
        self._dead = True

    def _keep(self, path: str) -> None:
        """Remembers what a file has that is about to lose its name."""
        if not os.path.exists(path):
            return
        node = self._disk.at(path)
        with open(path, "rb") as file:
            node.content = file.read()
        self._disk.inodes = {i: each for i, each in self._disk.inodes.items() if each is not node}

    def _left_of(self, path: str, node: _Node) -> bytes:
        """What a power loss leaves of a file."""
        content = node.content
        if content is None:
            here = path
            if self._disk.now.get(path) is not node:  # it has another name at the moment
                here = next(name for name, each in self._disk.now.items() if each is node)
            with open(here, "rb") as file:
                content = file.read()
        end = node.synced + self._dice.below(len(content) - node.synced + 1)
        if end > node.synced and self._dice.below(4) == 0:
            # The size was there before the data.
            zeros = self._dice.below(end - node.synced) + 1
            return content[: end - zeros] + bytes(zeros)
        return content[:end]


class _Held:
    """A held file whose looks count as operations."""

    def __init__(self, files: FaultyFiles, held: HeldFile, path: str) -> None:
        self._files = files
        self._held = held
        self._path = path

    def same(self) -> bool:
        try:
            self._files._step("look", self._path)
        except OSError as error:
            raise storage_failed(error, self._path, "open") from error
        return self._held.same()

    def close(self) -> None:
        self._held.close()
