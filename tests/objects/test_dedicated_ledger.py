"""What the actors of dedicated objects ask of their shard's host concerns their own object only."""

from __future__ import annotations

import asyncio
from typing import Any

import rayobjects as ro
from rayobjects.ids import ObjectId
from rayobjects.runtime.host import ShardHost
from rayobjects.runtime.remote_ledger import LedgerRequest
from rayobjects.testing import LocalHost


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def add(self) -> int:
        self.count += 1
        return self.count


def test_guarantee_5_an_actor_does_not_forget_the_call_of_another_object() -> None:
    """Idempotency-Keys belong to their objects: two may have the same."""

    async def main() -> None:
        async with LocalHost([Counter]) as local:
            host: Any = ShardHost.__new__(ShardHost)
            host.core, host.shard = local.core, local.shard
            a, b = local.get(Counter, "a"), local.get(Counter, "b")
            for counter in (a, b):
                assert await local.post(counter, "add", idempotency_key="k") == 1
            request = LedgerRequest("commit", *ObjectId("Counter", "c"), forget=["key:k"])
            await host._ledger(request)
            request = LedgerRequest("commit", *b.id, forget=["key:k"])
            await host._ledger(request)
            assert await local.post(a, "add", idempotency_key="k") == 1
            assert await local.post(b, "add", idempotency_key="k") == 2

    asyncio.run(main())
