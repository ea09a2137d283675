"""Whether classes load, found out in a process of its own before they are deployed.

A Ray task does it, started by a host and so with the host's environment, on a node where the
class's objects could live, and with the `runtime_env` of the class if it has one. What it loads is
thrown away: the process registers nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError, RuntimeEnvSetupError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayobjects.errors import InvalidCall, RayObjectsError, Unavailable, from_wire, to_wire
from rayobjects.objects.catalog import ClassInfo, ObjectClass
from rayobjects.objects.pickling import try_classes
from rayobjects.runtime import placement, resources
from rayobjects.runtime.configuration import Configuration

LOADED_WITHIN_S = 45.0
"""Loading takes milliseconds, a new process for it one to two seconds, packages of a runtime_env
their time. Less than `ro.deploy` waits for its answer."""


async def on_trial(classes: list[ClassInfo], blob: bytes, configuration: Configuration) -> None:
    """Loads classes somewhere.

    Raises:
        InvalidCall: one cannot be loaded; says why.
        Unavailable: Ray did not come to it.
    """
    groups: dict[str, list[ClassInfo]] = {}
    for info in classes:
        environment = info.ray_options.get("runtime_env") or {}
        groups.setdefault(repr(environment), []).append(info)
    trials = [_one_trial(group, blob, configuration) for group in groups.values()]
    await asyncio.gather(*trials)


async def _one_trial(classes: list[ClassInfo], blob: bytes, configuration: Configuration) -> None:
    first = classes[0]
    options: dict[str, Any] = {}
    node = configuration.node_id
    if placement.is_dedicated(first, configuration):
        found = await asyncio.to_thread(resources.a_node_for, first)
        node = found or ""
    if node:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
    if first.ray_options.get("runtime_env"):
        options["runtime_env"] = first.ray_options["runtime_env"]
    names = ", ".join(info.name for info in classes)
    body = msgspec.msgpack.encode(classes)
    try:
        load = ray.remote(num_cpus=0, max_retries=1)(_load)
        answer = load.options(**options).remote(body, blob)
        failure: bytes = await asyncio.wait_for(answer, LOADED_WITHIN_S)
    except (TimeoutError, GetTimeoutError):
        raise Unavailable(
            f"no process could be had to try {names} within {LOADED_WITHIN_S:g} s; nothing was "
            "deployed: look at `ray status`, then deploy again"
        ) from None
    except RuntimeEnvSetupError as error:
        raise InvalidCall(
            f"the runtime_env of {names} cannot be made ({_brief(error)}); nothing was deployed: "
            "correct its ray_options",
            status=500,
        ) from error
    except WorkerCrashedError as error:
        raise InvalidCall(
            f"loading {names} ended the process that tried it; nothing was deployed: look for what "
            "its modules do when they are imported",
            status=500,
        ) from error
    except (RayError, ValueError, TypeError) as error:
        raise Unavailable(
            f"{names} could not be tried ({_brief(error)}); nothing was deployed: try again"
        ) from error
    if failure:
        raise from_wire(failure)


def _load(body: bytes, blob: bytes) -> bytes:
    """Returns the error as `to_wire` encodes it; nothing if all went well."""
    infos = msgspec.msgpack.decode(body, type=list[ClassInfo])
    try:
        loaded = try_classes(blob, infos[0].sys_path)
        for info in infos:
            ObjectClass(loaded[info.code_name], info)
    except RayObjectsError as error:
        return to_wire(error, with_cause=False)
    return b""


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
