"""Messages keep their order though their receiver's class is renamed between them."""

from __future__ import annotations

import asyncio

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.objects.promised import decode_told
from rayobjects.runtime.configuration import Catalog

HEARD: list[str] = []


class Log(ro.DurableObject):
    lines: list[str] = ro.durable(factory=list)

    def write(self, text: str) -> None:
        HEARD.append(text)
        if len(HEARD) == 1:
            raise ValueError("not yet")
        self.lines.append(text)

    def read(self) -> list[str]:
        return self.lines


class Teller(ro.DurableObject):
    told: int = ro.durable(0)

    def tell(self, class_name: str, name: str, text: str) -> None:
        self.told += 1
        ro.namespace(class_name).get(name).write.tell(text)


def test_guarantee_5_the_order_of_a_pair_outlasts_a_new_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    HEARD.clear()

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Log, Teller]) as cluster:
            log, teller = cluster.get(Log, 1), cluster.get(Teller)
            info = cluster.catalog.classes.pop("Log")
            info.name, info.stored_as, info.former = "Diary", "Log", ["Log"]
            cluster.catalog = Catalog(2, {**cluster.catalog.classes, "Diary": info})
            await cluster.host.router.refresh()
            host = cluster.host
            for number, name in enumerate(("Diary", "Log", "Diary")):
                await teller.tell.remote(name, log.id.name, f"{number}")
            await until(lambda: HEARD)
            assert host.shard is not None
            told = [decode_told(promise.body) for _, promise in host.shard.promises()]
            assert {each.class_name for each in told} == {"Log"}
            await asyncio.sleep(0.05)
            while host.shard.promises():
                await host.move(1)
                await asyncio.sleep(0.005)
            assert HEARD == ["0", "0", "1", "2"]
            assert await log.read.remote() == ["0", "1", "2"]

    asyncio.run(main())
