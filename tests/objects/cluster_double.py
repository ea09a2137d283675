"""Hosts without Ray, with the real router and the real channels between them: everything that a
call does on its way from one process to another, but for the processes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

import pytest

from rayobjects.clock import SystemClock
from rayobjects.messages import decode_batch, decode_poll
from rayobjects.objects.catalog import ClassInfo, describe
from rayobjects.objects.context import local_router
from rayobjects.objects.model import DurableObject
from rayobjects.runtime import placement
from rayobjects.runtime import router as router_module
from rayobjects.runtime.channel import Channel
from rayobjects.runtime.configuration import Catalog, Configuration
from rayobjects.runtime.router import Router
from rayobjects.runtime.stubs import Stub
from rayobjects.testing import LocalHost


class _Reference:
    """What a Ray call returns."""

    def __init__(self, answer: asyncio.Task[bytes]) -> None:
        self._answer = answer

    def as_future(self, *, _internal: bool) -> asyncio.Task[bytes]:
        return self._answer


class _Method:
    def __init__(self, member: Member, name: str) -> None:
        self._member = member
        self._name = name

    def remote(self, body: bytes) -> _Reference:
        return _Reference(self._member.in_its_context(self._asked(body)))

    async def _asked(self, body: bytes) -> bytes:
        member = self._member
        await member.answering.wait()
        decode = decode_batch if self._name == "deliver" else decode_poll
        if member.dead or decode(body).channel in member.cluster.ended:
            raise ConnectionError("one end is dead")
        answer: bytes = await getattr(member, self._name)(body)
        await member.returning.wait()
        return answer


class Member(LocalHost):
    """One host. Its objects call others by a router, which ends with its life.

    Attributes:
        answering: cleared, it takes nothing, as one whose node does not answer.
        returning: cleared, its answers take long.
    """

    def __init__(self, cluster: LocalCluster, number: int) -> None:
        super().__init__(cluster.classes)
        self.answering = asyncio.Event()
        self.returning = asyncio.Event()
        self.answering.set()
        self.returning.set()
        self.name = placement.shard_host(number)
        self.deliver_, self.poll_ = _Method(self, "deliver"), _Method(self, "poll")
        self.cluster = cluster

    def in_its_context(self, coroutine: Any) -> asyncio.Task[Any]:
        return self.loop.create_task(coroutine, context=self._context.copy())

    def _open(self) -> None:
        self.router: Any = self.cluster.new_router()
        self._context.run(local_router.set, self.router)
        super()._open()
        if self.core is not None:
            self.router.serve_locally(self.name, self.core)

    def _incarnation(self, epoch: int) -> str:
        return f"{self.name}-{epoch}"  # no two hosts have the same

    def _die(self) -> None:
        self.cluster.end(self.router)
        super()._die()

    @property
    def held(self) -> int:
        """How many replies it holds for objects that have called its own."""
        assert self.shard is not None
        return len(self.shard._indexes.calls._held)


class Handle:
    """Stands for a host's actor."""

    def __init__(self, member: Member) -> None:
        self.deliver, self.poll = member.deliver_, member.poll_


class LocalCluster:
    """Hosts of shards, and a client, which is this test.

    Attributes:
        catalog: of classes, as everybody reads it.
        router: the client's.
        host: that of shard 0.
        ended: ids of processes that are gone: what they had sent does not arrive any more.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        classes: Iterable[type[DurableObject]],
        *,
        shards: int = 2,
    ) -> None:
        self.classes = list(classes)
        self.catalog = Catalog(1, {info.name: info for info in map(_deployed, self.classes)})
        self.configuration = Configuration("test", "", shards, "shared", 60.0, 30.0, "")
        self._ids = itertools.count(1)
        self.hosts: list[Member] = []
        self.ended: set[str] = set()
        self._stack = AsyncExitStack()
        patch.setattr(router_module, "read_catalog", lambda: self.catalog)
        patch.setattr(router_module, "read_configuration", lambda: self.configuration)
        patch.setattr(placement, "locate", self._locate)

    async def __aenter__(self) -> Self:
        for number in range(self.configuration.shards):
            self.hosts.append(await self._stack.enter_async_context(Member(self, number)))
        self.router = self.new_router()
        local_router.set(self.router)  # type: ignore[arg-type]
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.end(self.router)
        await self._stack.__aexit__(*error)

    @property
    def host(self) -> Member:
        return self.hosts[0]

    def new_router(self) -> Router:
        """That of a new process."""
        loop = asyncio.get_running_loop()
        id = f"process-{next(self._ids)}"
        return Router(id, loop, self.configuration, SystemClock())

    def end(self, router: Router) -> None:
        """The router's process is gone."""
        self.ended.add(router.id)
        router.serve_locally("", None)
        for channel in router._channels.values():
            channel.close()
        make = router._new_channel

        def make_closed(host: str, info: ClassInfo | None) -> Channel:
            channel = make(host, info)
            channel.close()
            return channel

        router._new_channel = make_closed  # type: ignore[method-assign]

    async def _locate(self, host: str, info: ClassInfo | None, *, again: bool) -> Handle:
        return Handle(next(each for each in self.hosts if each.name == host))

    def get(self, object_class: type[DurableObject], shard: int = 0) -> Stub:
        """An object that lives in a shard."""
        for name in map(str, itertools.count()):
            stub = Stub(object_class.__name__, name)
            if placement.shard_of(stub.id, self.configuration.shards) == shard:
                return stub
        raise AssertionError


def _deployed(object_class: type[DurableObject]) -> ClassInfo:
    info = describe(object_class)
    info.version = 1
    return info


async def until(condition: Any, within_s: float = 20.0) -> None:
    """Returns when something is so."""

    async def waiting() -> None:
        while not condition():  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0.001)

    await asyncio.wait_for(waiting(), within_s)
