"""The file system, as far as the storage needs it: one directory tree, named by relative paths.

Everything that must survive a power loss goes through two operations, and they are the whole
protocol:

    append   write, then `sync`: what was synced stays; of the rest any prefix, or none, may stay
    replace  a new file beside the old one, synced, renamed over it, and the directory synced: after
             a power loss there is the old content or the new one, never a mixture

So a file that `replace` made is whole if it exists at all. A sync that failed is never retried: the
kernel marks the pages clean that it could not write, and a second sync would report success for
data that is not on the disk (Rebello et al., "Can Applications Recover from fsync Failures?",
USENIX ATC 2020).

This is the one place where an OSError becomes a StorageFailed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rayobjects.errors import StorageFailed

_LOCK_TRIES = 400
_LOCK_TRY_S = 0.025
"""Locks that are waited for are held for a few file operations: 10 s means that the holder has
been stopped, or that the file system's lock service is down."""


class AppendFile(Protocol):
    """A file that only grows."""

    size: int

    def write(self, data: bytes) -> None:
        """Appends all of the data."""
        ...

    def sync(self) -> None:
        """Returns when everything written so far is on the disk (fdatasync)."""
        ...

    def close(self) -> None: ...


class HeldFile(Protocol):
    """A file that is kept open to notice that another one took its name."""

    def same(self) -> bool:
        """Whether the name still means this very file. A few µs."""
        ...

    def close(self) -> None: ...


class Lock(Protocol):
    """A lock on a file (flock); the system releases it when the process dies."""

    def downgrade(self) -> None:
        """From exclusive to shared. Not atomic: another may have had it in between."""
        ...

    def release(self) -> None: ...


class Files(Protocol):
    """A directory tree. Names are relative to its root, with `/`.

    All methods raise StorageFailed, with the path and what to do, for what the operating system
    refuses.
    """

    root: str

    def path(self, name: str) -> str:
        """The absolute path, for those that open files themselves (DuckDB)."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self, directory: str) -> list[str]:
        """The sorted names in a directory; none if there is no such directory."""
        ...

    def make_directory(self, name: str) -> None:
        """Makes a directory and those above it; it may exist already."""
        ...

    def read(self, name: str) -> bytes | None:
        """The whole file, None if there is none."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Writes a whole file; after a power loss there is the old one or the new one."""
        ...

    def overwrite(self, name: str, data: bytes) -> None:
        """Writes a short file in place, without a promise for a power loss: for a file that is
        itself a lock, and so must stay the same file."""
        ...

    def append(self, name: str) -> AppendFile:
        """Opens a file, which must exist, for appending."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file; it may be gone already, and may come back after a power loss."""
        ...

    def sync_directory(self, name: str) -> None:
        """Returns when the files that are in a directory would be there after a power loss: for
        those that others make (DuckDB); `replace` does it by itself."""
        ...

    def hold(self, name: str) -> HeldFile:
        """Opens a file to compare it with what has its name later."""
        ...

    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> Lock | None:
        """Locks a file, which is made if need be; None if it is taken and `wait` is False."""
        ...


def parse_root(location: str) -> str:
    """The absolute path of a storage root given as `./data`, `/abs` or `file:///abs`.

    Raises:
        StorageFailed: the location is empty or of a kind that is not supported.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        if not location:
            raise StorageFailed("the storage location is empty: pass a directory, such as ./data")
        return os.path.abspath(os.path.expanduser(location))
    if scheme != "file":
        raise StorageFailed(
            f"storage at {location} is not supported yet: pass a directory or file:///directory"
        )
    if not rest.startswith("/"):
        raise StorageFailed(
            f"{location} names a host, not a directory: write file:///absolute/directory"
        )
    return os.path.abspath(rest)


def storage_failed(error: OSError, path: str, action: str) -> StorageFailed:
    """Translates what the operating system said about `action` on `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFailed(
            f"cannot {action} {path}: the disk is full. Free some space (or raise the quota), then "
            "try again: nothing that was acknowledged is lost"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageFailed(
            f"cannot {action} {path}: {error.strerror}. Let the user that runs the hosts write to "
            "the storage root"
        )
    if error.errno == errno.ENOTDIR:
        file = path
        while not os.path.lexists(file):
            file = os.path.dirname(file)
        return StorageFailed(f"cannot {action} {path}: {file} is a file: choose a directory")
    return StorageFailed(
        f"cannot {action} {path}: {error.strerror or error}. Check the disk and its mount; the "
        "shard recovers from the journal when its host starts again"
    )


@contextmanager
def _translated(path: str, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_failed(error, path, action) from error


class RealFiles:
    """`Files` on the machine's file system.

    The methods with a leading underscore are the steps that a power loss or a full disk can come
    between; `testing.files.FaultyFiles` overrides them.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.root, name))

    def exists(self, name: str) -> bool:
        return os.path.exists(self.path(name))

    def list(self, directory: str) -> list[str]:
        path = self.path(directory)
        with _translated(path, "list"):
            try:
                return sorted(os.listdir(path))
            except FileNotFoundError:
                return []

    def make_directory(self, name: str) -> None:
        path = self.path(name)
        with _translated(path, "make the directory"):
            missing = []
            while not os.path.isdir(path):
                missing.append(path)
                path = os.path.dirname(path)
            for each in reversed(missing):
                try:
                    os.mkdir(each)
                except FileExistsError:
                    pass  # another host made it at the same moment
                self._sync_directory(os.path.dirname(each))

    def read(self, name: str) -> bytes | None:
        path = self.path(name)
        with _translated(path, "read"):
            try:
                with open(path, "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def replace(self, name: str, data: bytes) -> None:
        path = self.path(name)
        # The process id keeps writers apart that do not share a lock.
        beside = f"{path}.{os.getpid()}.tmp"
        with _translated(path, "write"):
            if os.path.exists(beside):
                # Of a process with the same id that died (in containers ids come again): perhaps
                # of one whose sync had failed, and then no sync of this file can be believed.
                self._unlink(beside)
            descriptor = self._create(beside)
            try:
                self._write(descriptor, beside, data)
                self._sync(descriptor, beside)
            except OSError:
                # After a failed sync no later one of the same file can be believed: the next
                # attempt begins with a new file.
                with suppress(OSError):
                    self._unlink(beside)
                raise
            finally:
                os.close(descriptor)
            self._rename(beside, path)
            self._sync_directory(os.path.dirname(path))

    def overwrite(self, name: str, data: bytes) -> None:
        path = self.path(name)
        with _translated(path, "write"), open(path, "r+b") as file:
            file.truncate(0)
            file.write(data)

    def append(self, name: str) -> AppendFile:
        path = self.path(name)
        with _translated(path, "open"):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            return _Appender(self, descriptor, path)

    def remove(self, name: str) -> None:
        path = self.path(name)
        with _translated(path, "remove"):
            try:
                self._unlink(path)
            except FileNotFoundError:
                pass

    def sync_directory(self, name: str) -> None:
        path = self.path(name)
        with _translated(path, "sync"):
            self._sync_directory(path)

    def hold(self, name: str) -> HeldFile:
        path = self.path(name)
        with _translated(path, "open"):
            return _Holder(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)

    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> Lock | None:
        path = self.path(name)
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        with _translated(path, "lock"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            pause = threading.Event()
            for _ in range(_LOCK_TRIES):
                try:
                    fcntl.flock(descriptor, operation)
                    return _Flock(descriptor, path)
                except BlockingIOError:
                    if not wait:
                        break
                    pause.wait(_LOCK_TRY_S)
                except OSError:
                    os.close(descriptor)
                    raise
            os.close(descriptor)
        if not wait:
            return None
        raise StorageFailed(
            f"{path} has been locked by another process for {_LOCK_TRIES * _LOCK_TRY_S:.0f} s: "
            "end the process that holds it (`fuser` names it), then try again"
        )

    # The steps.

    def _create(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def _write(self, descriptor: int, path: str, data: bytes) -> None:
        written = os.write(descriptor, data)
        while written < len(data):  # a signal, or the last blocks of the disk
            written += os.write(descriptor, memoryview(data)[written:])

    def _sync(self, descriptor: int, path: str) -> None:
        os.fdatasync(descriptor)

    def _rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def _unlink(self, path: str) -> None:
        os.unlink(path)

    def _sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Appender:
    def __init__(self, files: RealFiles, descriptor: int, path: str) -> None:
        self._files = files
        self._descriptor = descriptor
        self._path = path
        self.size = os.fstat(descriptor).st_size

    def write(self, data: bytes) -> None:
        with _translated(self._path, "write to"):
            self._files._write(self._descriptor, self._path, data)
        self.size += len(data)

    def sync(self) -> None:
        with _translated(self._path, "sync"):
            self._files._sync(self._descriptor, self._path)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Holder:
    """Opens the name anew instead of calling `stat`: a network file system asks its server when a
    file is opened (close-to-open consistency), while `stat` may answer from a cache. The file
    stays open, so that its inode number is not given to a successor."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)

    def same(self) -> bool:
        if self._descriptor < 0:
            return False
        with _translated(self._path, "open"):
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            try:
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Flock:
    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path

    def downgrade(self) -> None:
        with _translated(self._path, "lock"):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
