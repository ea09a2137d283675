"""Threads for methods that are marked `blocking`, so that they hold up their own object only."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rayobjects.limits import BLOCKING_THREADS_MAX

if TYPE_CHECKING:
    from rayobjects.objects.invocation import Invocation


class Threads:
    """One host's, started when they are first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, invocation: Invocation) -> Any:
        """Calls the function on a thread. A thread cannot be stopped, and until it ends the object
        is being written: so a call that is cancelled meanwhile ends no sooner."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(BLOCKING_THREADS_MAX, "rayobjects-blocking")
        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(
            self._pool, context.run, _call, invocation
        )
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        result = running.result()
        return await result if hasattr(result, "__await__") else result

    def close(self) -> None:
        """Starts nothing more; what runs goes on."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _call(invocation: Invocation) -> Any:
    return invocation.function(*invocation.arguments, **invocation.keywords)
