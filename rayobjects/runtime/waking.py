"""Wakes dedicated objects that have something to do: a schedule that is due, a message to deliver,
a call to end. Their shard's host has all of that in its storage; their own actor may have ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rayobjects.ids import ObjectId
from rayobjects.runtime import placement
from rayobjects.runtime.background import spawn
from rayobjects.runtime.configuration import Configuration, read_catalog

logger = logging.getLogger("rayobjects")

WAKING_AT_ONCE_MAX = 4
"""Each is a process that starts: more at once would only be slower."""

WAKE_WITHIN_S = 60.0


class Waker:
    """One host's; what fails is asked for again by whoever has something to do."""

    def __init__(self, configuration: Callable[[], Configuration]) -> None:
        self._configuration = configuration
        self._waking: set[ObjectId] = set()
        self._gate = asyncio.Semaphore(WAKING_AT_ONCE_MAX)

    def wake(self, id: ObjectId) -> None:
        """Sees to it that the object's actor runs, which then takes up what is to be done."""
        if id not in self._waking:
            self._waking.add(id)
            spawn(self._wake(id))

    async def _wake(self, id: ObjectId) -> None:
        try:
            async with self._gate:
                info = (await asyncio.to_thread(read_catalog)).find(id.class_name)
                if info is None or info.deleting:
                    return
                configuration = self._configuration()
                host = placement.host_of(id, info, configuration)
                handle = await placement.locate(host, info)
                await asyncio.wait_for(handle.start.remote(), WAKE_WITHIN_S)
        except Exception as error:  # Ray's, or whatever it lets through
            logger.warning("%s has something to do, but could not be woken: %s", id, error)
        finally:
            self._waking.discard(id)
