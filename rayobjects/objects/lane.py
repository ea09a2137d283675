"""The lane: a second event loop for objects that are too large to be held whole.

Their methods block while a query reads a key from the checkpoint. On the host's own loop that would
hold up thousands of neighbours; on the lane it holds up at most other large objects.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """A thread with an event loop, started when it is first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def runs_here(self) -> bool:
        """Whether the caller is on the lane's own thread."""
        return self._thread is threading.current_thread()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs the coroutine on the lane. One that is cancelled may still do something before it
        ends, and until then the object is being written: so this ends no sooner either."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="rayobjects-lane", daemon=True
            )
            self._thread.start()
        lane = self._loop
        running: list[asyncio.Task[T]] = []
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()

        def begin() -> None:
            task = lane.create_task(coroutine)
            running.append(task)
            task.add_done_callback(lambda _: ended.set_result(None))

        lane.call_soon_threadsafe(begin)
        waiting = asyncio.wrap_future(ended)
        while not waiting.done():
            try:
                await asyncio.wait([waiting])
            except asyncio.CancelledError:
                lane.call_soon_threadsafe(lambda: running[0].cancel())
        return running[0].result()

    def close(self) -> None:
        """Cancels what runs, and ends the thread after it."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(_end, self._loop)
            self._loop = None


def _end(lane: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(lane)
    for task in tasks:
        task.cancel()
    ending = asyncio.gather(*tasks, return_exceptions=True)
    ending.add_done_callback(lambda _: lane.stop())
