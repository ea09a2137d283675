"""The options of the actor that a dedicated object gets: which there are, and what they may be.

They are checked where a class is deployed, so that a slip of the pen is an error there and not an
object that never wakes. What of the cluster has them is another question, see `runtime.resources`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayobjects.errors import InvalidCall

OPTIONS = (
    *("num_cpus", "num_gpus", "memory", "resources"),
    *("label_selector", "fallback_strategy", "runtime_env"),
)

_OWN_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Resources that have an option of their own."""


def check_ray_options(class_name: str, options: dict[str, Any]) -> None:
    """Checks the `ray_options` of a class.

    Raises:
        InvalidCall: there is no such option, or it has a value that it cannot have.
    """
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None:
            raise InvalidCall(
                f"{class_name} has the unknown ray_option {name!r}; there are "
                f"{', '.join(OPTIONS)}: everything else is the runtime's"
            )
        problem = check(value)
        if problem:
            raise InvalidCall(f"the ray_option {name} of {class_name} {problem}, not {value!r}")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _cpus(value: Any) -> str:
    return "" if _number(value) else "is a number of CPUs, 0 or more"


def _gpus(value: Any) -> str:
    if _number(value) and (value <= 1 or value == int(value)):
        return ""
    return "is a whole number of GPUs, or a part of one (0.5)"


def _memory(value: Any) -> str:
    return "" if _number(value) and value >= 1 else "is a number of bytes, 1 or more"


def _resources(value: Any) -> str:
    if not isinstance(value, dict) or not all(type(name) is str and name for name in value):
        return 'is a dict from a resource\'s name to how much of it, as in {"disk": 1}'
    for name, amount in value.items():
        if name in _OWN_OPTIONS:
            return f"has {name!r}, which has an option of its own: {_OWN_OPTIONS[name]}"
        if not _number(amount):
            return f"has a number, 0 or more, for each resource; {name!r} has none"
    return ""


def _labels(value: Any) -> str:
    plain = isinstance(value, dict) and all(
        type(name) is str and type(wanted) is str for name, wanted in value.items()
    )
    return "" if plain else 'is a dict from a node label to its value, as in {"region": "eu"}'


def _fallbacks(value: Any) -> str:
    if isinstance(value, list) and all(
        isinstance(each, dict) and each.keys() == {"label_selector"} for each in value
    ):
        return next(filter(None, (_labels(each["label_selector"]) for each in value)), "")
    return 'is a list of further label selectors, as in [{"label_selector": {"region": "us"}}]'


def _environment(value: Any) -> str:
    return "" if isinstance(value, dict) else 'is a dict, as in {"pip": ["torch"]}'


_CHECKS: dict[str, Callable[[Any], str]] = {
    "num_cpus": _cpus,
    "num_gpus": _gpus,
    "memory": _memory,
    "resources": _resources,
    "label_selector": _labels,
    "fallback_strategy": _fallbacks,
    "runtime_env": _environment,
}
assert tuple(_CHECKS) == OPTIONS
