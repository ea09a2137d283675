"""Names the method that blocks a host's event loop, and with it every other object of the host.

A thread asks the loop to answer, again and again. Where it does not for a while, the thread looks
at what the loop's thread is running: the outermost frame of an object's method is the one to name,
while it is still at it, so that one which never ends is named too. Where it runs nothing of the
user's, nothing is said: then the machine is short of CPU, or the runtime itself took its time, and
no mark on a method would help.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from types import FrameType

from rayobjects.clock import Clock
from rayobjects.objects.model import DurableObject

logger = logging.getLogger("rayobjects")

BLOCKED_S = 0.1
"""Whatever holds the loop for so long is reported."""

ASK_EVERY_S = 0.02

SAME_AGAIN_S = 60.0
"""The same method is named at most so often."""

NAMES_MAX = 1_000

LOOPS = frozenset({"asyncio", "concurrent", "ray", "runpy", "selectors", "threading", "uvloop"})
"""The packages whose frames run a loop and wait in it, whatever they run."""


class Watchdog:
    """Watches the running event loop, from its thread on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._stopped = threading.Event()
        self._named: dict[str, float] = {}
        threading.Thread(target=self._watch, name="rayobjects-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(ASK_EVERY_S):
            answered = threading.Event()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                return  # the loop is closed
            # It may have been blocked for as long as this thread slept before it asked.
            if answered.wait(BLOCKED_S - ASK_EVERY_S):
                continue
            frame = sys._current_frames().get(self._thread)
            found = culprit(frame) if frame is not None else None
            del frame
            if found is not None:
                self._report(*found)
            while not answered.wait(1.0) and not self._stopped.is_set():
                pass

    def _report(self, what: str, where: str) -> None:
        now = self._clock.monotonic()
        if now - self._named.get(what, float("-inf")) < SAME_AGAIN_S:
            return
        if len(self._named) >= NAMES_MAX:
            self._named.clear()
        self._named[what] = now
        logger.error(
            "%s has blocked its host for over %g ms (at %s), and with it every other object there: "
            "mark it with @ro.blocking, or await what takes long",
            what,
            BLOCKED_S * 1_000,
            where,
        )


def culprit(frame: FrameType) -> tuple[str, str] | None:
    """(what is running, where it is), from the innermost frame of a loop's thread: the method of an
    object if there is one, else what the loop runs if that is the user's; None if it is not."""
    method: FrameType | None = None
    task: FrameType | None = None  # the outermost frame of what the loop runs
    each: FrameType | None = frame
    while each is not None and each.f_code.co_name != "run_forever":
        if isinstance(each.f_locals.get("self"), DurableObject):
            method = each
        if _package(each) not in LOOPS:
            task = each
        each = each.f_back
    if method is not None:
        return f"{method.f_locals['self'].id}.{method.f_code.co_name}", _where(method)
    if task is None or _package(task) == "rayobjects":
        return None
    return f"{task.f_globals.get('__name__', '?')}.{task.f_code.co_qualname}", _where(task)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?")).partition(".")[0]


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
