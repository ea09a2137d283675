"""What dedicated objects ask of the cluster's nodes, and whether there is such a node.

Ray lets an actor that fits nowhere wait without a word. So it is looked at before: what no node
could ever give is an error at once, unless an autoscaler could add a node; what is in use by others
is waited for, and said when the wait is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private.state import state as _ray_state

from rayobjects.errors import Unavailable
from rayobjects.objects.catalog import ClassInfo

_SHOWN_AS = {"CPU": "num_cpus", "GPU": "num_gpus"}
_NODE_OWN = ("node:", "object_store_memory")
"""Resources of a node that nobody asks for."""


class NoRoom(Exception):
    """Nodes have what is asked for, but it is in use: wait."""


def asked(info: ClassInfo) -> dict[str, float]:
    """The resources that an object's actor takes, by Ray's names."""
    options = info.ray_options
    found = {
        "CPU": options.get("num_cpus", 0),
        "GPU": options.get("num_gpus", 0),
        "memory": options.get("memory", 0),
        **options.get("resources", {}),
    }
    return {name: amount for name, amount in found.items() if amount}


def selectors(info: ClassInfo) -> list[dict[str, str]]:
    """The label selectors that a node may satisfy: one of them is enough."""
    options = info.ray_options
    found = [options.get("label_selector") or {}]
    return found + [each["label_selector"] for each in options.get("fallback_strategy") or ()]


def a_node_for(info: ClassInfo) -> str | None:
    """The id of a node that could run the class's objects, were nothing in use; "" if any could,
    None if there is none. Asks Ray; blocks for about a millisecond."""
    if not asked(info) and selectors(info) == [{}]:
        return ""
    return next(iter(nodes_for(info)), None)


def nodes_for(info: ClassInfo) -> list[str]:
    """The ids of all nodes that could run the class's objects, were nothing in use."""
    wanted = asked(info)
    return [
        str(node["NodeID"])
        for node in _nodes()
        if _fits(wanted, node["Resources"]) and _is_selected(info, node["Labels"])
    ]


def check_possible(info: ClassInfo) -> None:
    """Checks that some node could run the class's objects. Blocks as `a_node_for`.

    Raises:
        Unavailable: none could, and none can be added.
    """
    if a_node_for(info) is None and not _may_grow():
        raise Unavailable(
            f"no node of this cluster can run {info.name}: it asks for {_said(info)}; {_have()}: "
            "add such a node, or change the class's ray_options"
        )


def check_room(info: ClassInfo) -> None:
    """Checks that some node could run one more of the class's objects now. Blocks as `a_node_for`.

    Raises:
        Unavailable: no node could, ever.
        NoRoom: those that could are full.
    """
    check_possible(info)
    free = _ray_state.available_resources_per_node()
    wanted = asked(info)
    for node in _nodes():
        if _is_selected(info, node["Labels"]) and _fits(wanted, free.get(node["NodeID"], {})):
            return
    raise NoRoom(
        f"it waits for {_said(info)}, which is all in use; {_have()}: let others end, add a node, "
        "or ask for less"
    )


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _fits(wanted: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(there.get(name, 0) >= amount for name, amount in wanted.items())


def _is_selected(info: ClassInfo, labels: Mapping[str, str]) -> bool:
    return any(
        all(_matches(labels.get(name), wanted) for name, wanted in selector.items())
        for selector in selectors(info)
    )


def _matches(label: str | None, wanted: str) -> bool:
    """Ray's own syntax: `value`, `!value`, `in(a,b)`, `!in(a,b)`."""
    positive = not wanted.startswith("!")
    wanted = wanted.removeprefix("!")
    values = [wanted]
    if wanted.startswith("in(") and wanted.endswith(")"):
        values = [each.strip() for each in wanted[3:-1].split(",")]
    return (label in values) is positive


def _said(info: ClassInfo) -> str:
    parts = _amounts(asked(info).items())
    labels = [selector for selector in selectors(info) if selector]
    if labels:
        nodes = " or ".join(
            ", ".join(f"{name}={wanted}" for name, wanted in selector.items())
            for selector in labels
        )
        parts.append(f"a node with {nodes}")
    return ", ".join(parts) or "nothing"


def _have() -> str:
    """What the nodes have, in words."""
    described = []
    for node in _nodes():
        total = {
            name: amount
            for name, amount in node["Resources"].items()
            if not name.startswith(_NODE_OWN)
        }
        parts = _amounts(sorted(total.items()))
        parts += [
            f"{name}={value}"
            for name, value in sorted(node["Labels"].items())
            if not name.startswith("ray.io/")
        ]
        described.append(" ".join(parts) or "nothing")
    return f"its nodes have: {'; '.join(described)}"


def _amounts(resources: Iterable[tuple[str, float]]) -> list[str]:
    return [
        f"{_SHOWN_AS.get(name, name)}={amount:,g}" if amount < 1e6 else f"{name}={amount:,.0f}"
        for name, amount in resources
    ]


def _may_grow() -> bool:
    """Whether an autoscaler has said that it may add nodes."""
    config = _ray_state.get_cluster_config()
    return config is not None and any(group.max_count != 0 for group in config.node_group_configs)
