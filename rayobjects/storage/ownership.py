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

A new process takes a shard whoever has it: it was started because the other one is believed dead.
A process that has had the shard before, and opens it again because its disk had failed, is not that
new process. If another one has claimed meanwhile, then it is the one that is believed dead: it is
refused (`Claims`), and ends. Else two that fail in turns would take the shard from each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rayobjects.errors import StorageFailed
from rayobjects.storage.files import Files, HeldFile, Lock

EPOCH = "epoch"
LOCK = "epoch.lock"


@dataclass
class Claims:
    """What one process knows of its own claims of a shard; it lives as long as the process.

    Attributes:
        epoch: of its last claim, whether that succeeded or not; 0 before the first one.
    """

    epoch: int = 0


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
    def claim(cls, files: Files, directory: str, claims: Claims | None = None) -> Ownership:
        """Takes the shard in `directory`, whoever has it now.

        Args:
            claims: of this process; if it has had the shard before, nobody may have claimed since.

        Raises:
            StorageFailed: the epoch file is not what this version writes, or the disk refuses; with
                `details["lost"]`, another process has claimed the shard since this one had it.
        """
        claims = claims if claims is not None else Claims()
        lock = _locked(files, directory)
        try:
            name = f"{directory}/{EPOCH}"
            present = _parse(files.read(name), files.path(name))
            if claims.epoch and claims.epoch != present:
                raise _lost(files.path(directory), claims.epoch)
            epoch = present + 1
            try:
                files.replace(name, b"%d\n" % epoch)
            except StorageFailed:
                # The old number or the new one, which is this process's then: under the lock
                # nobody else writes. If that cannot be read, no number fits any more.
                claims.epoch = -1
                claims.epoch = _parse(files.read(name), files.path(name))
                raise
            claims.epoch = epoch
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
        return _lost(self._files.path(self._directory), self.epoch)

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


def _lost(path: str, epoch: int) -> StorageFailed:
    ended = f"epoch {epoch} has ended" if epoch > 0 else "or may have been, the disk did not tell"
    return StorageFailed(
        f"{path} was taken over by another host ({ended}): try again, the call then goes to the "
        "new one",
        details={"lost": "epoch"},
    )


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
