"""What objects with actors of their own had told others is delivered though their class is deleted
and those actors are gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_double import until

import rayobjects as ro
from rayobjects.ids import ObjectId
from rayobjects.objects.promised import told_to
from rayobjects.runtime import host_classes
from rayobjects.runtime.configuration import Catalog
from rayobjects.runtime.host import ShardHost
from rayobjects.runtime.remote_ledger import LedgerRequest
from rayobjects.storage import values
from rayobjects.storage.records import TELL, Record
from rayobjects.testing import LocalHost, life
from rayobjects.testing.life import LocalCore

MODEL = ObjectId("Model", "m")


class Log(ro.DurableObject):
    lines: list[str] = ro.durable(factory=list)

    def write(self, text: str) -> None:
        self.lines.append(text)

    def read(self) -> list[str]:
        return self.lines


def shard_host(local: LocalHost, dedicated: set[str]) -> ShardHost:
    """The actor of the host that the local one pretends to be."""
    host: Any = ShardHost.__new__(ShardHost)
    host.clock, host.core, host.shard = local.clock, local.core, local.shard
    host.classes = host_classes.HostClasses()
    host._link = type("Link", (), {"path": ""})
    host._dedicated, host._deleted, host._deletions = dedicated, set(), {}

    async def opened() -> Any:
        return host.core

    host._opened = opened
    return host


def told(local: LocalHost, *texts: str, to: str = "Log") -> list[Any]:
    """Messages of an object whose actor has told them."""
    now = local.clock.now()
    return [
        told_to(text, to, "l", "write", values.dump_arguments((text,), {}), now, 0, None)
        for text in texts
    ]


@pytest.fixture
def dedicated(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The classes whose objects have actors of their own."""
    names: set[str] = set()

    def core(**arguments: Any) -> LocalCore:
        owns = {"owns": lambda id, object_class: id.class_name not in names}
        return LocalCore(**arguments | owns)

    monkeypatch.setattr(life, "LocalCore", core)
    monkeypatch.setattr(host_classes, "read_catalog", lambda: Catalog(1, {}))
    return names


@pytest.mark.parametrize("known", [True, False])
def test_messages_of_a_deleted_class_are_delivered(dedicated: set[str], known: bool) -> None:
    """Whether the shard's host had known of the class, and of the messages, or not."""
    if known:
        dedicated.add("Model")

    async def main() -> None:
        async with LocalHost([Log]) as local:
            assert local.shard is not None
            record = Record(*MODEL, promises=told(local, "1", "2", "3"))
            local.shard.commit(record, lambda error, sequence: None)
            await until(lambda: local.shard.promises())
            if known:
                await local.kill()
            host = shard_host(local, dedicated)
            await asyncio.sleep(0.02)
            assert len(local.shard.promises()) == 3, "that is for their sender's actor"
            while await host.delete_objects("Model"):
                pass
            await until(lambda: not local.shard.promises())
            assert await local.get(Log, "l").read.remote() == ["1", "2", "3"]

    asyncio.run(main())


def test_messages_to_a_deleted_class_are_listed_as_failed(dedicated: set[str]) -> None:
    dedicated.add("Model")

    async def main() -> None:
        async with LocalHost([Log]) as local:
            assert local.shard is not None
            record = Record(*MODEL, promises=told(local, "1", to="Model"))
            local.shard.commit(record, lambda error, sequence: None)
            await until(lambda: local.shard.promises())
            await local.kill()
            host = shard_host(local, dedicated)
            while await host.delete_objects("Model"):
                pass
            for _ in range(20):
                await local.move(100)
                await asyncio.sleep(0.005)
            ((_, promise),) = local.shard.promises()
            assert "no class 'Model' is deployed" in promise.failed

    asyncio.run(main())


def test_an_actor_that_comes_back_has_its_messages_for_itself(dedicated: set[str]) -> None:
    """The class is deployed again before all of them are delivered."""
    dedicated.add("Model")

    async def main() -> None:
        async with LocalHost([Log]) as local:
            assert local.shard is not None
            record = Record(*MODEL, promises=told(local, "1", "2"))
            local.shard.commit(record, lambda error, sequence: None)
            await until(lambda: local.shard.promises())
            host = shard_host(local, dedicated)
            with local.syncs_held():  # so the receiver cannot answer
                while await host.delete_objects("Model"):
                    pass
                core = local.core
                assert core is not None
                assert core.courier.busy
                claiming = asyncio.ensure_future(host._ledger(LedgerRequest("claim", *MODEL)))
                host._deleted.discard("Model")
                await until(lambda: not core.courier.busy)
            answer = await claiming
            assert [each.key for each in answer.promises if each.kind == TELL] == ["1", "2"]
            await until(lambda: local.is_live(ObjectId("Log", "l")))
            await local.move(60)
            assert await local.get(Log, "l").read.remote() == ["1"]
            calls = local.shard._indexes.calls
            assert set(calls._held) == {"1"}, "its receiver knows it when the actor sends it again"

    asyncio.run(main())
