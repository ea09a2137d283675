"""Deleting the objects of a class that is marked as deleted (`class_store`), shard by shard.

When this begins nobody loads the class any more. What still lives of it leaves, or is waited for;
what was committed until then is deleted object by object, each by a record of its own, as if the
object had been asked. To do it again finds less, or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from rayobjects.clock import Clock
from rayobjects.errors import Unavailable
from rayobjects.ids import ObjectId
from rayobjects.limits import PAGE_KEYS_MAX
from rayobjects.objects.host_core import HostCore
from rayobjects.objects.ledger import Ledger
from rayobjects.objects.sockets import farewells
from rayobjects.runtime.outcome import outcome
from rayobjects.storage.records import SCHEDULE, Record
from rayobjects.storage.shard import Shard

CALLS_END_WITHIN_S = 20.0
"""How long calls that run are waited for; less than an answer may take."""

SENT_WITHIN_S = 3.0
"""How long gateways may take to fetch the last messages of a dedicated object."""

LOOK_AGAIN_S = 0.01


async def end_activations(core: HostCore, class_key: str, clock: Clock) -> None:
    """Takes the class's live objects out of memory, and waits until they have left.

    Raises:
        Unavailable: a call runs for too long.
    """
    core.refresh({class_key})

    def live() -> list[str]:
        return [
            str(activation.id)
            for activation in core.activations.values()
            if activation.id.class_name == class_key and activation.object_class is not None
        ]

    if not await _until(lambda: not live() or core.failed is not None, CALLS_END_WITHIN_S, clock):
        raise Unavailable(f"{live()[0]} still runs a call: let it end, then delete the class again")


class ShardDeletion:
    """Deletes the objects of one class in one shard.

    Args:
        core: that runs the shard's objects; it must be given up with the core.
        class_key: the class, as it is called in the storage.
    """

    def __init__(self, core: HostCore, shard: Shard, class_key: str) -> None:
        self.core = core
        self._shard = shard
        self._key = class_key
        self._epochs: dict[str, int] | None = None

    async def page(self) -> int:
        """Deletes up to PAGE_KEYS_MAX objects; returns how many: 0 when there are none.

        Raises:
            StorageFailed, Overloaded: not all could be deleted.
        """
        if self._epochs is None:
            self._epochs = await self._fence()
        names = await self._shard.list_objects(self._key, limit=PAGE_KEYS_MAX)
        if not names:
            names = self._planning()[:PAGE_KEYS_MAX]
        await asyncio.gather(*(self._delete(name, self._epochs.get(name, 0)) for name in names))
        return len(names)

    def _planning(self) -> list[str]:
        """Objects that have never written anything, and have schedules all the same."""
        promises = self._shard.promises()
        return list(
            dict.fromkeys(
                id.name
                for id, promise in promises
                if id.class_name == self._key and promise.kind == SCHEDULE
            )
        )

    async def _fence(self) -> dict[str, int]:
        """Takes the objects away from whatever actors they had: those can commit no more."""
        owned = self._shard.owned_objects(self._key)
        claims = [outcome(partial(self._shard.claim_object, id)) for id in owned]
        epochs = await asyncio.gather(*claims)
        return {id.name: epoch for id, epoch in zip(owned, epochs, strict=True)}

    async def _delete(self, name: str, owner_epoch: int) -> None:
        id = ObjectId(self._key, name)
        # The gateways of a dedicated object's sockets ask its actor, and not here, for messages.
        sockets = self._shard.sockets_of(id) if not owner_epoch else []
        await delete_object(self.core, self._shard, id, {s.gateway for s in sockets}, owner_epoch)


async def delete_object(
    core: HostCore, ledger: Ledger, id: ObjectId, gateways: set[str], owner_epoch: int = 0
) -> None:
    """Deletes an object that is not live, and closes its sockets.

    Args:
        gateways: those that hold its sockets.
        owner_epoch: in whose name, where the ledger does not know.

    Raises:
        StorageFailed, Overloaded: it could not be deleted.
    """
    sends = farewells(sorted(gateways))
    record = Record(*id, delete=True, sends=sends, owner_epoch=owner_epoch)
    sequence = await outcome(lambda done: ledger.commit(record, done))
    core.committed(record, sequence)


async def messages_fetched(core: HostCore, clock: Clock) -> None:
    """Returns when gateways have fetched what was sent to them, or after SENT_WITHIN_S."""
    await _until(lambda: not any(map(len, core.gateways.outboxes.values())), SENT_WITHIN_S, clock)


async def _until(condition: Callable[[], bool], within_s: float, clock: Clock) -> bool:
    deadline = clock.monotonic() + within_s
    while not condition():
        if clock.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_AGAIN_S)
    return True
