"""Who owns a shard: the `epoch` file, and how a stale owner finds out.

A claimant raises the epoch first and reads the journal second. A writer syncs first and looks at
the epoch second. So whatever the order in which the two meet, every acknowledged record is seen:

    writer:    write  sync  ........  look: still mine → acknowledge
    claimant:                                              raise → read        sees the record
    claimant:         ..  raise → read  ..                                     may see it or not;
    writer:                             look: not mine → never acknowledged    either is right

The file is replaced (`Files.replace`), never written to, so an owner keeps the file that it made
open and looks whether the name still means that file: one open and one fstat, a few µs. It is the
same for reads: an activation that wants to answer without having written looks after the call, and
a claimant that came before would have changed the file.

What is done to the journal's set of files (making a segment) is done under `epoch.lock` with the
epoch looked at inside: two owners never race for a segment's name.

A process that dies while it claims leaves the old file, or the new one that nobody holds: the next
claimant raises it again. Numbers may be skipped, never used twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rayobjects.errors import StorageFailed
from rayobjects.storage.files import Files, HeldFile, Lock

EPOCH = "epoch"
LOCK = "epoch.lock"


class Ownership:
    """One claim of a shard; made by `claim`.

    Attributes:
        epoch: its number.
    """

    def __init__(self, files: Files, directory: str, epoch: int, held: HeldFile) -> None:
        self._files = files
        self._directory = directory
        self._held = held
        self.epoch = epoch

    @classmethod
    def claim(cls, files: Files, directory: str) -> Ownership:
        """Takes the shard in `directory`, whoever has it now.

        Raises:
            StorageFailed: the epoch file is not what this version writes, or the disk refuses.
        """
        lock = _locked(files, directory)
        try:
            name = f"{directory}/{EPOCH}"
            epoch = _parse(files.read(name), files.path(name)) + 1
            files.replace(name, b"%d\n" % epoch)
            return cls(files, directory, epoch, files.hold(name))
        finally:
            lock.release()

    def holds(self) -> bool:
        """Whether nobody else has claimed the shard since."""
        return self._held.same()

    def check(self) -> None:
        """Raises StorageFailed if the shard has another owner now."""
        if not self._held.same():
            raise self.lost()

    def lost(self) -> StorageFailed:
        """The error of a stale owner."""
        return StorageFailed(
            f"{self._files.path(self._directory)} was taken over by another host (epoch "
            f"{self.epoch} has ended): try again, the call then goes to the new one",
            details={"lost": "epoch"},
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps claimants out for a few file operations, after a look at the epoch."""
        lock = _locked(self._files, self._directory)
        try:
            self.check()
            yield
        finally:
            lock.release()

    def release(self) -> None:
        """Lets go of the file; the epoch stays used up."""
        self._held.close()


def _locked(files: Files, directory: str) -> Lock:
    lock = files.lock(f"{directory}/{LOCK}")
    assert lock is not None  # it waits, or raises
    return lock


def _parse(data: bytes | None, path: str) -> int:
    if data is None:
        return 0
    text = data.removesuffix(b"\n")
    if not text.isdigit() or len(text) > 18:
        raise StorageFailed(
            f"{path} is damaged: it should hold one number. Write into it a number that is larger "
            "than the epoch of every journal segment beside it"
        )
    return int(text)
