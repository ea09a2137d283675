"""Callers that look for a host which is none any more."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any

import pytest
import ray
from cluster_double import LocalCluster

import rayobjects as ro
from rayobjects.errors import Unavailable
from rayobjects.messages import PICKLE, REDIRECT, Call, Reply
from rayobjects.objects.catalog import ClassInfo
from rayobjects.runtime import placement
from rayobjects.runtime.configuration import Catalog, Configuration
from rayobjects.runtime.follow import Follow
from rayobjects.runtime.stubs import Stub

CONFIGURATION = Configuration("test", "", 2, "shared", 60.0, 30.0, "")


class Model(ro.DurableObject):
    calls: int = ro.durable(0)

    def call(self) -> int:
        self.calls += 1
        return self.calls


def test_an_old_catalog_says_that_it_has_an_actor_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The class was deleted, and deployed again for shared hosting."""

    async def run() -> None:
        async with LocalCluster(monkeypatch, [Model]) as cluster:
            model = cluster.get(Model)
            locate = placement.locate
            looked: list[str] = []

            async def found(host: str, info: ClassInfo | None, *, again: bool) -> Any:
                if host == str(model.id):
                    looked.append(host)
                    raise placement.Moved(host)
                return await locate(host, info, again=again)

            monkeypatch.setattr(placement, "locate", found)
            now, old = cluster.catalog, copy(cluster.catalog.classes["Model"])
            old.hosting = "dedicated"
            cluster.catalog = Catalog(1, {"Model": old})
            await cluster.router.refresh()
            cluster.catalog = now
            assert await asyncio.wait_for(model.call.remote(), 10) == 1
            assert looked == [str(model.id)]
            assert await asyncio.wait_for(Stub(*model.id).call.remote(), 10) == 2

    asyncio.run(run())


def no_actor(name: str, namespace: str) -> None:
    raise ValueError(f"there is no actor {name}")


def test_none_is_made_for_a_class_that_is_shared_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = ClassInfo("Model")
    old = copy(now)
    old.hosting = "dedicated"
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", no_actor)
    monkeypatch.setattr(placement, "configuration_to_start", lambda: CONFIGURATION)
    monkeypatch.setattr(placement, "read_catalog", lambda: Catalog(2, {"Model": now}))
    with pytest.raises(placement.Moved):
        placement.locate_blocking("Model/a", old)


def test_ray_is_not_begun_anew_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By asking it for an actor, after ray.shutdown()."""
    asked: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: asked.append(name))
    with pytest.raises(Unavailable, match="disconnected this process"):
        placement.locate_blocking(placement.shard_host(0), None)
    assert not asked


def test_the_old_host_need_not_keep_its_redirection() -> None:
    """Nobody else would say so to it: the call goes to another."""

    class Double:
        def __init__(self) -> None:
            self.id = "process"
            self.acknowledged: list[int] = []
            self.moving: list[str] = []

        def acknowledge(self, number: int) -> None:
            self.acknowledged.append(number)

        def redirected(self, call: Call, *_: object) -> None:
            self.moving.append(call.id)

    both: Any = Double()
    for context in (object(), None):
        call = Call(7, "Model", "a", "call", PICKLE, b"")
        follow = Follow(both, both, call, lambda outcome: None, context, 0)  # type: ignore[arg-type]
        follow.number = 7
        follow(Reply(7, REDIRECT, b""))
    assert both.acknowledged == [7]
    assert both.moving == ["process:7", "process:7"]
