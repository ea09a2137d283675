"""Asking a host something outside of channels: one place where Ray's errors become ours."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rayobjects.errors import RayObjectsError, Unavailable


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
