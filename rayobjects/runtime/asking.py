"""Asking a host something outside of channels: one place where Ray's errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rayobjects.clock import Clock
from rayobjects.errors import RayObjectsError, Unavailable
from rayobjects.runtime import placement
from rayobjects.runtime.configuration import Configuration

AGAIN_S = 0.1
"""The pause before a host is asked again that is being started again."""


def answer(reference: Any, within_s: float, host: str) -> Any:
    """Waits for a host's answer.

    Raises:
        RayObjectsError: the host's own error, without Ray's traceback around it.
        Unavailable: no answer within `within_s` seconds, or the host has died.
    """
    try:
        return ray.get(reference, timeout=within_s)
    except GetTimeoutError as error:
        raise Unavailable(
            f"the host {host} did not answer within {within_s:g} s: look at `ray status` and at "
            "Ray's logs"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, RayObjectsError):
            raise error.cause from None
        raise Unavailable(f"the host {host} failed ({error.cause!r}): try again") from error
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(f"the host {host} could not be asked ({reason}): try again") from error


async def answer_of(
    host: str,
    configuration: Configuration,
    clock: Clock,
    ask: Callable[[Any], Any],
    within_s: float | None = None,
) -> Any:
    """Asks the host of a shard something that may be asked twice, until it answers.

    Args:
        ask: takes the host's actor, returns the reference of its answer.
        within_s: how long one answer may take; `unavailable_after_s` unless given.

    Raises:
        RayObjectsError: the host's own error.
        Unavailable: it could not be asked for `unavailable_after_s` seconds.
    """
    give_up_at = clock.monotonic() + configuration.unavailable_after_s
    while True:
        try:
            handle = await placement.locate(host, None)
            return await asyncio.wait_for(
                ask(handle), within_s or configuration.unavailable_after_s
            )
        except RayTaskError as error:
            if isinstance(error.cause, RayObjectsError):
                raise error.cause from None
            raise Unavailable(f"the host {host} failed ({error.cause!r}): try again") from error
        except (TimeoutError, RayError) as error:
            if clock.monotonic() > give_up_at:
                raise Unavailable(
                    f"the host {host} could not be asked ({type(error).__name__}): try again"
                ) from error
        await asyncio.sleep(AGAIN_S)
