"""Worker processes that wait for dedicated objects.

A new actor costs over a second where its process must start first, and a tenth of that where one
waits with everything imported. Ray starts such processes with a node (as many as it counts CPUs),
and nothing replaces those that actors take. So here

    when the first dedicated class is deployed     each node gets WORKERS_A_NODE
    when a dedicated object's new process comes    its node gets another, a moment later
    to its shard

The request to Ray is internal (`PrestartWorkers`, Ray 2.60), because Ray has no other: processes
that a task leaves behind are of no use for detached actors. If Ray refuses it or knows it no more,
objects wake more slowly, and that is all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import ray

from rayobjects.objects.catalog import ClassInfo
from rayobjects.runtime import resources
from rayobjects.runtime.background import spawn
from rayobjects.runtime.configuration import claim_mark

logger = logging.getLogger("rayobjects")

WORKERS_A_NODE = 2
"""Processes that wait on each node: 67 MB each. Two, so that an object that wakes another at once
finds one too."""

NODES_MAX = 16
"""Nodes that get theirs ahead; on others the first object waits."""

REFILL_AFTER_S = 1.0
"""A new process takes a second of a CPU, which the object that has just woken may need first."""

AT_ONCE_MAX = 2
"""Processes that a node is asked to start at once: Ray starts as many at a time as there are CPUs,
but two at least (`cluster.RAY_ENVIRONMENT`), and forgets what it is asked for beyond."""

STARTED_WITHIN_S = 2.0
"""After so long it is asked for the next ones."""

KEEP_S = 365 * 24 * 3600
"""How long Ray keeps one that nobody needs."""

ASKED_WITHIN_S = 10.0


class WarmPool:
    """Refills nodes from which dedicated objects have taken a process. Used on a host's loop."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._refilling = False

    def taken(self, node: str) -> None:
        """A dedicated object has come to life on this node."""
        self._taken[node] += 1
        if not self._refilling:
            self._refilling = True
            spawn(self._refill())

    async def _refill(self) -> None:
        try:
            while self._taken:
                await asyncio.sleep(REFILL_AFTER_S)
                for node, count in list(self._taken.items()):
                    some = min(count, AT_ONCE_MAX)
                    self._taken[node] -= some
                    await asyncio.to_thread(start_workers, node, some)
                self._taken = +self._taken  # only those of which more have been taken
                if self._taken:
                    await asyncio.sleep(STARTED_WITHIN_S)
        finally:
            self._refilling = False


def fill(info: ClassInfo) -> None:
    """Starts the first processes on the nodes where the class's objects may live, once for each
    node and cluster. Blocks for some milliseconds."""
    for node in resources.nodes_for(info)[:NODES_MAX]:
        if claim_mark(f"warm:{node}"):
            start_workers(node, WORKERS_A_NODE)


def start_workers(node: str, count: int) -> None:
    """Lets a node start processes that wait for actors. Blocks for some milliseconds, the first
    time longer; says in the log if it was in vain."""
    try:
        # 10 MB and a tenth of a second: only in the hosts of shards that have dedicated objects.
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

        for each in ray.nodes():
            if each["NodeID"] == node and each["Alive"]:
                address = f"{each['NodeManagerAddress']}:{each['NodeManagerPort']}"
                break
        else:
            return
        request = node_manager_pb2.PrestartWorkersRequest(
            language=common_pb2.Language.PYTHON, num_workers=count, keep_alive_duration_secs=KEEP_S
        )
        channel = init_grpc_channel(address)
        try:
            node_manager = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
            node_manager.PrestartWorkers(request, timeout=ASKED_WITHIN_S)
        finally:
            channel.close()
    except Exception as error:  # whatever an internal interface may do
        logger.warning(
            "no warm processes for dedicated objects: %s: %s", type(error).__name__, error
        )
