"""Questions to a router from other threads, which get an answer whatever becomes of it.

What is asked of an event loop that has stopped is never answered: neither what it had begun nor
what came a moment too late. So each question is kept until its answer is there; when the router is
closed, whoever waits is told so.

Whoever asks notes the question first and looks second whether the router is closed, which is closed
first and answers the questions second: one of the two threads sees the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from rayobjects.objects.caller_channel import shut_down

T = TypeVar("T")


class Questions:
    """Those to one router."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked: set[Future[Any]] = set()
        self._closed = False

    def ask(self, question: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Runs a question on the router's loop, from any other thread; the answer raises
        Unavailable if the router is closed first."""
        answer: Future[T] = Future()
        self._asked.add(answer)
        if self._closed:
            self._refuse()
        else:
            self._loop.call_soon_threadsafe(self._begin, question, answer)
        return answer

    def _begin(self, question: Callable[[], Coroutine[Any, Any, T]], answer: Future[T]) -> None:
        if self._closed:
            return
        task = self._loop.create_task(question())

        def ended(_: object) -> None:
            self._asked.discard(answer)
            with suppress(InvalidStateError):  # it has been refused, or nobody waits any more
                error = shut_down() if task.cancelled() else task.exception()
                if error is None:
                    answer.set_result(task.result())
                else:
                    answer.set_exception(error)

        task.add_done_callback(ended)

    def close(self) -> None:
        """Refuses those that are under way, and those that come later."""
        self._closed = True
        self._refuse()

    def _refuse(self) -> None:
        for answer in list(self._asked):
            self._asked.discard(answer)
            with suppress(InvalidStateError):
                answer.set_exception(shut_down())
