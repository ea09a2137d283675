"""Whether a gateway's process lives: its id names the actor that it is.

A gateway that dies has no chance to say so, and one that is silent may only be slow: closing the
sockets of a living one throws out everybody in their rooms. So a host that has not heard of a
gateway for a while asks Ray, which sees at once when a process ends. Serve gives every replica a
name that is never used again, and Ray forgets a name when its actor has died.

If Ray cannot be asked, nothing is known; then only long silence counts (GATEWAY_SILENT_S).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import ray

from rayobjects.runtime.background import spawn

logger = logging.getLogger("rayobjects")

SERVE_NAMESPACE = "serve"
REPLICA = "SERVE_REPLICA::"
"""What Serve's names of replicas begin with; left out of ids, which are stored with each socket."""


def gateway_id(unique: str) -> str:
    """The id of the gateway in this process; `unique` itself where it is no replica of Serve."""
    context = ray.get_runtime_context()
    name = context.get_actor_name() if context.get_actor_id() is not None else ""
    if not name or not name.startswith(REPLICA):
        return unique
    return f"{unique}@{name.removeprefix(REPLICA)}"


def has_ended(gateway: str) -> bool:
    """Whether the gateway's process is known to have ended. Blocks for a question to Ray."""
    _, named, name = gateway.partition("@")
    if not named:
        return False
    try:
        ray.get_actor(REPLICA + name, namespace=SERVE_NAMESPACE)
    except ValueError:  # there is no such actor any more
        return True
    except Exception as error:  # Ray cannot be asked just now
        logger.warning("whether the gateway %s lives could not be asked: %s", gateway, error)
    return False


class Lookout:
    """Looks after gateways that a host suspects, one question for each at a time.

    Args:
        died: is told of those that have ended.
    """

    def __init__(self, died: Callable[[str], None]) -> None:
        self._died = died
        self._asking: set[str] = set()

    def suspect(self, gateway: str) -> None:
        """Asks about a gateway, unless that is under way."""
        if gateway not in self._asking:
            self._asking.add(gateway)
            spawn(self._look(gateway))

    async def _look(self, gateway: str) -> None:
        try:
            if await asyncio.to_thread(has_ended, gateway):
                self._died(gateway)
        finally:
            self._asking.discard(gateway)
