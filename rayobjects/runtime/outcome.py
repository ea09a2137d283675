"""The callback of a ledger, as something to await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rayobjects.errors import RayObjectsError, StorageFailed
from rayobjects.objects.ledger import Done


def outcome(start: Callable[[Done], object]) -> asyncio.Future[int]:
    """Starts a ledger operation at once; the future brings what its callback brings, or what the
    operation raised."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(error: StorageFailed | None, value: int) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    try:
        start(done)
    except RayObjectsError as error:
        future.set_exception(error)
    return future
