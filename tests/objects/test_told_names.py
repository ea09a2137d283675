"""Messages keep their order though their receiver's class is renamed between them."""

from __future__ import annotations

import asyncio
from copy import copy

import pytest
from cluster_double import LocalCluster, until

import rayobjects as ro
from rayobjects.runtime import router
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


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
def test_guarantee_5_the_order_of_a_pair_outlasts_a_new_name(
    monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """Also where its sender's host has not heard of it yet."""
    HEARD.clear()

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Log, Teller]) as cluster:
            log, teller = cluster.get(Log, 1), cluster.get(Teller)
            host = cluster.host
            await host.router.refresh()
            info = copy(cluster.catalog.classes["Log"])
            others = {"Teller": cluster.catalog.classes["Teller"]}
            info.name, info.stored_as, info.former = "Diary", "Log", ["Log"]
            cluster.catalog = Catalog(2, {**others, "Diary": info})
            if heard:
                await host.router.refresh()
            for number, name in enumerate(("Log", "Diary", "Log", "Diary")):
                await teller.tell.remote(name, log.id.name, f"{number}")
            assert host.shard is not None
            await until(lambda: HEARD)
            await asyncio.sleep(0.05)
            while host.shard.promises():
                await host.move(1)
                await asyncio.sleep(0.005)
            assert HEARD == ["0", "0", "1", "2", "3"]
            assert await log.read.remote() == ["0", "1", "2", "3"]

    asyncio.run(main())


def test_a_name_that_cannot_be_looked_up_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    HEARD[:] = ["before"]

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Log, Teller]) as cluster:
            log, teller = cluster.get(Log, 1), cluster.get(Teller)
            await teller.tell.remote("Log", log.id.name, "0")
            await until(lambda: HEARD[1:] == ["0"])
            failures = iter([ConnectionError("no answer")] * 3)

            def fail() -> Catalog:
                if (error := next(failures, None)) is not None:
                    raise error
                return cluster.catalog

            info = copy(cluster.catalog.classes["Log"])
            info.name, info.stored_as, info.former = "Diary", "Log", ["Log"]
            cluster.catalog = Catalog(2, {**cluster.catalog.classes, "Diary": info})
            del cluster.catalog.classes["Log"]
            monkeypatch.setattr(router, "read_catalog", fail)
            await teller.tell.remote("Diary", log.id.name, "1")
            await teller.tell.remote("Log", log.id.name, "2")
            host = cluster.host
            assert host.shard is not None
            while host.shard.promises():
                await host.move(1)
                await asyncio.sleep(0.005)
            assert HEARD[1:] == ["0", "1", "2"]
            assert next(failures, None) is None

    asyncio.run(main())


def test_a_message_to_a_class_that_there_is_not_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    HEARD[:] = ["before"]

    async def main() -> None:
        async with LocalCluster(monkeypatch, [Log, Teller]) as cluster:
            log, teller = cluster.get(Log, 1), cluster.get(Teller)
            await teller.tell.remote("Nobody", "n", "0")
            await teller.tell.remote("Log", log.id.name, "1")
            host = cluster.host
            assert host.shard is not None
            while any(not promise.failed for _, promise in host.shard.promises()):
                await host.move(30)
                await asyncio.sleep(0.005)
            (failed,) = [promise for _, promise in host.shard.promises()]
            assert "no class 'Nobody'" in failed.failed
            assert HEARD[1:] == ["1"]

    asyncio.run(main())
