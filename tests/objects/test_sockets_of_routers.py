"""What a gateway's router keeps of its sockets."""

from __future__ import annotations

import asyncio
from copy import copy

import pytest
from cluster_double import LocalCluster

import rayobjects as ro
from rayobjects.runtime.configuration import Catalog


class Room(ro.DurableObject):
    pass


def test_a_socket_of_a_class_that_was_renamed_and_deleted_leaves_its_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with LocalCluster(monkeypatch, [Room]) as cluster:
            router = cluster.router
            router.on_push = lambda push: None
            await router.refresh()
            room = cluster.get(Room)
            router.socket_opened("Room", room.id.name, "a")
            info = copy(cluster.catalog.classes["Room"])
            info.name, info.stored_as, info.former = "Hall", "Room", ["Room"]
            cluster.catalog = Catalog(2, {"Hall": info})
            await router.refresh()
            router.socket_opened("Hall", room.id.name, "b")
            (channel,) = router._channels.values()
            assert len(channel.sockets) == 2
            cluster.catalog = Catalog(3, {})
            await router.refresh()
            router.socket_closed("Hall", room.id.name, "b")
            assert channel.sockets == {("Room", room.id.name, "a")}
            router.socket_closed("Room", room.id.name, "a")
            assert not channel.sockets

    asyncio.run(run())
