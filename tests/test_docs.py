"""What the documentation shows does what it says: its code is taken from the pages and run."""

from __future__ import annotations

import ast
import asyncio
import errno
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.errors import KINDS
from rayobjects.testing import LocalHost

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(page: str, containing: str) -> str:
    """The one block of Python of a page in which that occurs."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def names(page: str, containing: str, **given: Any) -> dict[str, Any]:
    """What such a block defines; what it does with a cluster is left out."""
    lines = [each for each in code(page, containing).splitlines() if not each.startswith("ro.init")]
    space: dict[str, Any] = {"ro": ro, "__name__": __name__, **given}
    exec("\n".join(lines), space)
    return space


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_pages_lead_to_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / target).read_text() if target else page.read_text()
        titles = re.findall(r"^#+ (.*)$", text, re.M)
        anchors = [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in titles]
        assert heading in anchors


class Everything(ro.DurableObject):
    """A method of each kind that the pages know."""

    count: int = ro.durable(0)

    def plain(self) -> int:
        self.count += 1
        return self.count

    @ro.concurrent
    async def reading(self) -> int:
        return self.count

    @ro.concurrent
    async def writing(self) -> int:
        async with self.turn():
            self.count += 1
        return self.count

    @ro.blocking
    def on_a_thread(self) -> int:
        return self.plain()

    async def stream(self) -> AsyncIterator[int]:
        yield self.plain()

    def plain_stream(self) -> Iterator[int]:
        yield self.plain()

    @ro.concurrent
    async def concurrent_stream(self) -> AsyncIterator[int]:
        yield await self.writing()

    def plan(self) -> None:
        self.schedule(self.plain, after=1, key="later")

    def pay(self) -> str:
        return "paid"

    def on_connect(self, ws: ro.WebSocket) -> None:
        ws.send("welcome")

    def on_request(self, request: ro.Request) -> ro.Response:
        return ro.Response("here")


def test_the_filter_of_the_docs_fits_every_method() -> None:
    audit = names("docs/middleware.md", "async def audit")["audit"]
    streams = {"stream", "plain_stream", "concurrent_stream"}
    called = {"plain", "reading", "writing", "on_a_thread", "plan"}

    async def main() -> None:
        async with LocalHost([Everything], filters=[audit]) as host:
            stub = host.get(Everything, "one")
            for method in called:
                await getattr(stub, method).remote()
            for method in streams:
                assert len([each async for each in getattr(stub, method).remote()]) == 1
            await host.fire(stub, "later")
            socket = await host.connect(stub)
            await socket.send("hello")
            await socket.close()
            assert (await host.fetch(stub)).body == b"here"
            with pytest.raises(ro.InvalidCall, match="cashiers only"):
                await stub.pay.remote()
            with ro.request_context(role="cashier"):
                assert await stub.pay.remote() == "paid"
            audited = {key.removeprefix("audit/") for key in (await host.state(stub))["storage"]}
            hooks = {"on_connect", "on_message", "on_close", "on_request"}
            assert audited == called | streams | hooks | {"pay"}

    asyncio.run(main())


def test_the_time_moves_as_the_docs_say() -> None:
    page = compile(
        code("docs/testing.md", "class Match"), "testing.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    asyncio.run(eval(page, {"ro": ro, "LocalHost": LocalHost, "__name__": __name__}))


def test_an_account_is_converted_once_whatever_its_version() -> None:
    class First(ro.DurableObject):
        euros: int = ro.durable(0)

        def deposit(self, euros: int) -> None:
            self.euros += euros

    class Same(First):
        """Deployed in between, as happens while one develops."""

    First.__name__ = Same.__name__ = "Account"
    converting = names("docs/classes.md", "def on_upgrade")["Account"]

    class Second(converting):  # type: ignore[misc, valid-type]
        def read(self) -> int:
            return int(self.cents)

    class Later(Second):
        """Finds what is converted already."""

    Second.__name__ = Later.__name__ = "Account"

    async def main() -> None:
        async with LocalHost([First]) as host:
            await host.get(First, "early").deposit.remote(3)
            await host.get(First, "untouched").deposit.remote(0)
            await host.deploy(Same)
            await host.get(First, "late").deposit.remote(4)
            for version in (Second, Later):
                await host.deploy(version)
                for name, cents in (("early", 300), ("late", 400), ("untouched", 0)):
                    assert await host.get(version, name).read.remote() == cents

    asyncio.run(main())


def test_the_table_of_errors_is_complete() -> None:
    table = (ROOT / "docs" / "errors.md").read_text()
    for kind in set(KINDS.values()) - {ro.RayObjectsError, ro.InvalidCall}:
        assert f"| `{kind.__name__}` | {kind.status} |" in table
        assert f"─ {kind.__name__} " in table


def test_what_a_method_raised_is_caught_by_its_type() -> None:
    space = names("docs/errors.md", "class SoldOut")
    stock_class, buy = space["Stock"], space["buy"]

    async def main() -> None:
        async with LocalHost([stock_class]) as host:
            stock = host.get(stock_class, "apples")
            assert await buy(stock) == "sorry: 0 left"
            with pytest.raises(ro.MethodError) as raised:
                await stock.sell.remote(1)
            assert raised.value.cause_type == "SoldOut"
            assert raised.value.__cause__ is raised.value.cause
            assert "raise SoldOut" in raised.value.traceback or "in sell" in raised.value.traceback

    asyncio.run(main())


class Outer(ro.DurableObject):
    runs: int = ro.durable(0)

    def fails(self) -> None:
        tried.append("fails")
        raise ValueError("no")

    async def fails_after_a_call(self) -> None:
        tried.append("fails_after_a_call")
        await ro.namespace("Outer").get("other").fine.remote()
        raise ValueError("no")

    @ro.concurrent
    async def fails_after_a_block(self) -> None:
        tried.append("fails_after_a_block")
        async with self.turn():
            self.runs += 1
        raise ValueError("no")

    def fine(self) -> int:
        self.runs += 1
        return self.runs


tried: list[str] = []


@pytest.mark.parametrize(
    ("method", "runs"), [("fails", 2), ("fails_after_a_call", 1), ("fails_after_a_block", 1)]
)
def test_which_errors_come_again_for_the_same_id(method: str, runs: int) -> None:
    async def main() -> None:
        async with LocalHost([Outer]) as host:
            tried.clear()
            for _ in range(2):
                with pytest.raises(ro.MethodError, match="no"):
                    await host.post(host.get(Outer, "one"), method, {}, idempotency_key="k")
            assert tried == [method] * runs

    asyncio.run(main())


def test_after_a_storage_that_failed_the_same_id_takes_effect_once() -> None:
    async def main() -> None:
        async with LocalHost([Outer]) as host:
            one = host.get(Outer, "one")
            host.files.fail("sync", errno.EIO, name="journal")
            with pytest.raises(ro.StorageFailed):
                await host.post(one, "fine", {}, idempotency_key="k")
            assert await host.post(one, "fine", {}, idempotency_key="k") == 1

    asyncio.run(main())
