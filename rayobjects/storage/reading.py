"""Reading: the memtable laid over the checkpoint.

Every reader takes the oldest generation first and asks the checkpoint second (see `memtable`).
Loads of one tick, and those that come while a query is under way, go together in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from rayobjects.errors import StorageFailed
from rayobjects.ids import ObjectId
from rayobjects.limits import LOAD_WHOLE_BYTES_MAX, LOAD_WHOLE_KEYS_MAX, PAGE_KEYS_MAX
from rayobjects.storage.folding import Folding
from rayobjects.storage.indexes import Indexes
from rayobjects.storage.memtable import Generation, Key, Memtable, is_live
from rayobjects.storage.records import ITEM, SCHEDULE, Loaded
from rayobjects.storage.worker import Worker


@dataclass
class Stored:
    """An object as the checkpoint has it; `whole`, `entries` and `version` as in
    `records.Loaded`."""

    exists: bool = False
    whole: bool = True
    keys: int = 0
    entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    version: int = 0


_Waiting = tuple[Key, "asyncio.Future[Loaded]"]


class Reading:
    """`load` and `names` on the loop's thread; `read`, `scan` and `count` on any."""

    def __init__(
        self,
        memtable: Memtable,
        indexes: Indexes,
        folding: Folding,
        worker: Worker,
        *,
        soon: Callable[[Callable[[], None]], object],
        post: Callable[[Callable[[], None]], object],
        inline: bool,
    ) -> None:
        self._memtable = memtable
        self._indexes = indexes
        self._folding = folding
        self._worker = worker
        self._soon = soon
        self._post = post
        self._inline = inline
        self._waiting: list[_Waiting] = []
        self._names: set[asyncio.Future[list[str]]] = set()
        self._under_way: list[_Waiting] = []
        self._failed: StorageFailed | None = None

    # -- loading ------------------------------------------------------------------------------

    async def load(self, key: Key) -> Loaded:
        self._check()
        if self._inline:
            oldest = self._memtable.oldest
            return self._loaded(key, self._stored([key]).get(key), oldest)
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if len(self._waiting) == 1 and not self._under_way:
            self._soon(self._begin)
        return await future

    def _begin(self) -> None:
        if self._under_way or not self._waiting:
            return
        batch = self._under_way = self._waiting[:PAGE_KEYS_MAX]
        del self._waiting[: len(batch)]
        oldest = self._memtable.oldest
        if self._folding.checkpoint is None:
            self._end({}, None, oldest)
            return
        keys = list(dict.fromkeys(key for key, _ in batch))

        def task() -> None:
            stored: dict[Key, Stored] = {}
            failure: Exception | None = None
            try:
                stored = self._stored(keys)
            except Exception as error:
                failure = error
            _quietly(self._post, lambda: self._end(stored, failure, oldest))

        self._worker.submit(task)

    def _end(
        self, stored: dict[Key, Stored], failure: Exception | None, oldest: Generation
    ) -> None:
        batch, self._under_way = self._under_way, []
        for key, future in batch:
            if future.done():
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(self._loaded(key, stored.get(key), oldest))
        if self._waiting:
            self._begin()

    def _stored(self, keys: list[Key]) -> dict[Key, Stored]:
        checkpoint = self._folding.checkpoint
        if checkpoint is None:
            return {}
        result: dict[Key, Stored] = {}
        sizes = checkpoint.sizes([ObjectId(*key) for key in keys], LOAD_WHOLE_KEYS_MAX)
        for key in keys:  # not in `sizes`: other objects with the same hashes may be there too
            if key in sizes:
                items, size, version = sizes[key]
                whole = items <= LOAD_WHOLE_KEYS_MAX and size <= LOAD_WHOLE_BYTES_MAX
                result[key] = Stored(exists=True, whole=whole, keys=items, version=version)
        for whole in (True, False):
            ids = [ObjectId(*key) for key, stored in result.items() if stored.whole is whole]
            if ids:
                found = checkpoint.entries(ids, attributes_only=not whole)
                for key, entries in found.items():
                    if key in result:
                        result[key].entries = entries
        return result

    def _loaded(self, key: Key, stored: Stored | None, oldest: Generation) -> Loaded:
        delta = self._memtable.overlay(key, oldest)
        base = stored if stored is not None else Stored()
        # A copy: two loads of one tick may be for the same object.
        entries, whole, keys = dict(base.entries), base.whole, base.keys
        if delta.hides_items:
            whole, keys = True, 0
            entries = (
                {}
                if delta.deleted
                else {k: entry for k, entry in entries.items() if not k.startswith(ITEM)}
            )
        for name, entry in delta.entries.items():
            if is_live(entry):
                entries[name] = entry
            else:
                entries.pop(name, None)
        if whole:
            sizes = [len(data) for name, (_, data) in entries.items() if name.startswith(ITEM)]
            keys = len(sizes)
            whole = keys <= LOAD_WHOLE_KEYS_MAX and sum(sizes) <= LOAD_WHOLE_BYTES_MAX
        if not whole:
            entries = {k: entry for k, entry in entries.items() if not k.startswith(ITEM)}
        return Loaded(
            base.exists if delta.exists is None else delta.exists,
            whole,
            entries,
            keys,
            self._indexes.sockets_of(key),
            self._indexes.owner(key),
            delta.version or base.version,
            self._indexes.promises.of(key, SCHEDULE),
        )

    # -- parts of large objects ---------------------------------------------------------------

    def read(self, key: Key, name: str) -> tuple[int, bytes] | None:
        self._check()
        oldest = self._memtable.oldest
        decided, entry = self._memtable.entry(key, name, oldest)
        if decided:
            return entry
        checkpoint = self._folding.checkpoint
        stored = checkpoint.read(ObjectId(*key), name) if checkpoint is not None else None
        # Once more: commits may have been folded between the two.
        decided, entry = self._memtable.entry(key, name, oldest)
        return entry if decided else stored

    def scan(
        self,
        key: Key,
        prefix: str,
        start: str | None,
        end: str | None,
        limit: int,
        reverse: bool,
    ) -> list[tuple[str, int, bytes]]:
        self._check()
        if limit <= 0:
            return []

        def within(name: str) -> bool:
            return (
                name.startswith(prefix)
                and (start is None or name >= start)
                and (end is None or name < end)
            )

        oldest = self._memtable.oldest
        checkpoint = self._folding.checkpoint
        # Each entry of the memtable may hide one of the checkpoint, so ask for that many more;
        # and again if there were still more of them after the query.
        hidden = 0
        while True:
            stored = (
                checkpoint.scan(
                    ObjectId(*key),
                    prefix=prefix,
                    start=start,
                    end=end,
                    limit=limit + hidden,
                    reverse=reverse,
                )
                if checkpoint is not None
                else []
            )
            delta = self._memtable.overlay(key, oldest)
            over = {name: entry for name, entry in delta.entries.items() if within(name)}
            if len(over) <= hidden or len(stored) < limit + hidden:
                break
            hidden = len(over)
        page = {
            name: (encoding, data)
            for name, encoding, data in stored
            if not (delta.deleted or (delta.cleared and name.startswith(ITEM)))
        }
        full = len(stored) == limit + hidden
        if full and not delta.hides_items:
            # The page ends where the query did: what lies beyond has not been asked for.
            edge = stored[-1][0]
            over = {n: e for n, e in over.items() if (n >= edge if reverse else n <= edge)}
        page.update(over)
        names = sorted((n for n, e in page.items() if is_live(e)), reverse=reverse)
        return [(name, *page[name]) for name in names[:limit]]

    def count(self, key: Key) -> int:
        self._check()
        while True:
            oldest = self._memtable.oldest
            checkpoint = self._folding.checkpoint
            delta = self._memtable.overlay(key, oldest)
            items = {name: e for name, e in delta.entries.items() if name.startswith(ITEM)}
            stored = 0
            if checkpoint is not None and not delta.hides_items:
                stored = checkpoint.count(ObjectId(*key), list(items))
            # A fold or a commit in between would be counted twice or not at all.
            if oldest is self._memtable.oldest:
                return stored + sum(map(is_live, items.values()))

    # -- names --------------------------------------------------------------------------------

    async def names(self, class_name: str, prefix: str, after: str, limit: int) -> list[str]:
        self._check()
        if self._inline or self._folding.checkpoint is None:
            return self._page_of_names(class_name, prefix, after, limit)
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._names.add(future)
        future.add_done_callback(self._names.discard)

        def task() -> None:
            names: list[str] = []
            failure: Exception | None = None
            try:
                names = self._page_of_names(class_name, prefix, after, limit)
            except Exception as error:
                failure = error

            def end() -> None:
                if future.done():
                    return
                if failure is not None:
                    future.set_exception(failure)
                else:
                    future.set_result(names)

            _quietly(self._post, end)

        self._worker.submit(task)
        return await future

    def _page_of_names(self, class_name: str, prefix: str, after: str, limit: int) -> list[str]:
        oldest = self._memtable.oldest
        checkpoint = self._folding.checkpoint
        hidden = 0
        while True:
            stored = (
                checkpoint.names(class_name, prefix, after, limit + hidden)
                if checkpoint is not None
                else []
            )
            over = self._memtable.names(class_name, prefix, after, oldest)
            gone = sum(not exists for exists in over.values())
            if gone <= hidden or len(stored) < limit + hidden:
                break
            hidden = gone
        names = {name for name in stored if over.get(name, True)}
        edge = stored[-1] if len(stored) == limit + hidden and stored else None
        names.update(
            name for name, exists in over.items() if exists and (edge is None or name <= edge)
        )
        return sorted(names)[:limit]

    # -- the end ------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def fail(self, error: StorageFailed) -> None:
        """The shard has failed or is closed: ends what waits."""
        if self._failed is not None:
            return
        self._failed = error
        waiting, self._waiting = self._waiting + self._under_way, []
        self._under_way = []
        names = list(self._names)

        def end() -> None:
            for future in [future for _, future in waiting] + names:
                if not future.done():
                    future.set_exception(error)

        if waiting or names:
            _quietly(self._post, end)

    def stop(self) -> None:
        """Waits for the query that is under way."""
        self._worker.stop()


def _quietly(post: Callable[[Callable[[], None]], object], task: Callable[[], None]) -> None:
    try:
        post(task)
    except RuntimeError:
        pass  # the loop is closed: nobody waits any more
