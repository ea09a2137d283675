"""A thread that does one thing after another, and its double for simulations.

A shard has up to three: one writes and syncs, one folds, one loads. They share nothing with the
loop but what they are handed, and answer by posting. `on_loop` is the way back for whoever waits.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Protocol

Task = Callable[[], None]

_HAND_OVER_S = 5.0
"""How long `on_loop` waits for a loop that may have stopped."""


class Worker(Protocol):
    def submit(self, task: Task) -> None:
        """Runs the task after those before it. Tasks do not raise."""
        ...

    def stop(self) -> None:
        """Returns when the tasks so far have run; later ones are dropped. May be called twice."""
        ...


class ThreadWorker:
    """The thread begins with the first task and dies with the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def submit(self, task: Task) -> None:
        if self._stopped:
            return
        self._tasks.put(task)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


class InlineWorker:
    """Runs each task where it is submitted: for simulations, which need one order of events."""

    def submit(self, task: Task) -> None:
        task()

    def stop(self) -> None:
        pass


def on_loop(post: Callable[[Task], object], task: Task, *, inline: bool = False) -> None:
    """Runs a task on the loop's thread and returns when it has run; here, if this is that thread,
    or if the loop does not run any more.

    Args:
        post: `loop.call_soon_threadsafe`.
        inline: there are no threads.
    """
    if not inline and not _is_loop_thread():
        ran = threading.Event()
        claimed = threading.Lock()

        def once() -> None:
            if claimed.acquire(blocking=False):
                task()
                ran.set()

        try:
            post(once)
        except RuntimeError:
            pass  # the loop is closed
        else:
            if ran.wait(_HAND_OVER_S) or not claimed.acquire(blocking=False):
                ran.wait()
                return
    task()


def _is_loop_thread() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
