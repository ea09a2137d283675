"""Chains of objects that wait for each other's calls: they must not close, and have a bound."""

from __future__ import annotations

from rayobjects.errors import Deadlock, InvalidCall, RayObjectsError
from rayobjects.ids import ObjectId
from rayobjects.limits import CHAIN_DEPTH_MAX
from rayobjects.messages import Call


def chain_error(id: ObjectId, call: Call) -> RayObjectsError | None:
    """Why a call cannot run at this object: it would wait for itself, or the chain is too long."""
    if str(id) in call.chain:
        circle = " → ".join((*call.chain, str(id)))
        return Deadlock(
            f"{circle} wait for each other in a circle: let one answer without the other, or use "
            "tell"
        )
    if len(call.chain) >= CHAIN_DEPTH_MAX:
        return InvalidCall(
            f"{id}.{call.method} is called through {len(call.chain)} objects that wait for each "
            f"other; at most {CHAIN_DEPTH_MAX} may"
        )
    return None
