"""examples/bank.py on a host without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from test_examples_local import example

import rayobjects as ro
from rayobjects.objects import deadlocks
from rayobjects.testing import LocalHost

bank = example("bank")
CLASSES = [bank.Account, bank.LimitedAccount]


def run(test: Callable[[LocalHost], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost(CLASSES, filters=bank.filters) as host:
            await asyncio.wait_for(test(host), 60)

    asyncio.run(main())


@pytest.fixture(params=["Account", "LimitedAccount"])
def kind(request: pytest.FixtureRequest) -> str:
    param: str = request.param
    return param


async def balances(host: LocalHost, kind: str, *names: str) -> list[int]:
    """When everything that was told has arrived."""
    assert host.shard is not None
    while host.shard.promises():  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(0)
    found = []
    for name in names:
        found.append(await host.get(kind, name).withdraw.remote(1) + 1)
        await host.get(kind, name).deposit.remote(1)
    return found


async def entries(host: LocalHost, kind: str, name: str) -> list[tuple[int, str, str]]:
    found = await host.get(kind, name).statement.remote()
    return [(each.amount, each.other, each.note) for each in reversed(found)]


def test_transfers(kind: str) -> None:
    async def test(host: LocalHost) -> None:
        ann, bob = host.get(kind, "ann"), host.get(kind, "bob")
        assert await ann.deposit.remote(100) == 100
        assert await bob.deposit.remote(5) == 5
        assert await ann.transfer.remote("bob", 30, "Lunch") == 70
        assert await balances(host, kind, "ann", "bob") == [70, 35]
        assert (await entries(host, kind, "ann"))[:2] == [
            (100, "", "cash"),
            (-30, "bob", "Lunch"),
        ]
        assert (30, "ann", "Lunch") in await entries(host, kind, "bob")
        newest = await bob.statement.remote(limit=1)
        assert [(each.amount, each.balance) for each in newest] == [(1, 35)]

    run(test)


def test_what_is_refused_has_not_happened(kind: str) -> None:
    async def test(host: LocalHost) -> None:
        ann = host.get(kind, "ann")
        await ann.deposit.remote(100)
        for arguments in (("bob", 101), ("bob", 0), ("bob", -5)):
            with pytest.raises(ro.InvalidCall):
                await ann.transfer.remote(*arguments)
        with pytest.raises(ro.InvalidCall):
            await host.post(ann, "receive", {"sender": "me", "amount": 1_000, "note": ""})
        with pytest.raises(ro.InvalidCall):
            await ann.withdraw.remote(101)
        assert await balances(host, kind, "ann") == [100]
        assert await host.list(kind) == ["ann"]

    run(test)


def test_an_account_is_its_owners_and_a_statement_says_who_has_asked(kind: str) -> None:
    """Also that of the other account, which learns it with the call, or the message, it gets."""

    async def test(host: LocalHost) -> None:
        ann, bob = host.get(kind, "ann"), host.get(kind, "bob")
        with ro.request_context(user="eve"):
            assert await host.post(ann, "deposit", {"amount": 100}) == 100
        transfer = {"to": "bob", "amount": 30}
        for user in ({}, {"user": "eve"}, {"user": "bob"}):
            with ro.request_context(user):
                for method, arguments in (("transfer", transfer), ("statement", {})):
                    with pytest.raises(ro.InvalidCall, match="of somebody else") as refused:
                        await host.post(ann, method, arguments)
                    assert refused.value.status == 403
        with ro.request_context(user="ann"):
            assert await host.post(ann, "transfer", transfer, idempotency_key="k") == 70
            with pytest.raises(ro.InvalidCall, match="of somebody else"):
                await host.post(bob, "statement")
        await host.crash()
        assert await balances(host, kind, "ann", "bob") == [70, 30]
        with ro.request_context(user="bob"):
            entries = await host.post(bob, "statement")
        assert ("ann", 30, "ann") in [
            (each["by"], each["amount"], each["other"]) for each in entries
        ]
        found = [(each.by, each.amount) for each in await ann.statement.remote()]
        assert found[-2:] == [("ann", -30), ("eve", 100)]

    run(test)


def test_statements_that_did_not_say_who_has_asked(kind: str) -> None:
    async def test(host: LocalHost) -> None:
        ann = host.get(kind, "ann")
        await ann.deposit.remote(100)

        class Old(getattr(bank, kind)):  # type: ignore[misc]
            def _book(self, amount: int, other: str, note: str) -> None:
                super()._book(amount, other, note)
                del self.storage[f"{self.entries:012}"]["by"]

        Old.__name__ = Old.__qualname__ = kind
        await host.deploy(Old)
        await ann.deposit.remote(1)
        await host.deploy(getattr(bank, kind))
        assert [each.by for each in await ann.statement.remote()] == ["", ""]

    run(test)


def test_an_account_that_may_not_hold_so_much() -> None:
    async def test(host: LocalHost) -> None:
        ann, bob = host.get("LimitedAccount", "ann"), host.get("LimitedAccount", "bob")
        await ann.deposit.remote(100)
        await bob.set_limit.remote(20)
        with pytest.raises(ro.InvalidCall, match="may not hold more than 20"):
            await ann.transfer.remote("bob", 30)
        assert await ann.transfer.remote("bob", 20) == 80
        await bob.set_limit.remote(1_000)
        assert await balances(host, "LimitedAccount", "ann", "bob") == [80, 20]

    run(test)


def test_money_is_kept_in_all_directions_though_the_host_dies(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transfer is in the books of both once, or of none."""
    monkeypatch.setattr(deadlocks, "PROBE_EVERY_S", 0.01)

    async def test(host: LocalHost) -> None:
        names = [f"n{number}" for number in range(10)]
        for name in names:
            await host.get(kind, name).deposit.remote(100, "")
        acknowledged: list[str] = []

        refused: list[str] = []

        async def pay(number: int) -> None:
            sender, to = names[number % 10], names[number * 7 % 10]
            try:
                await host.get(kind, sender).transfer.remote(to, 1 + number % 9, f"t{number}")
                acknowledged.append(f"t{number}")
            except (ro.Deadlock, ro.InvalidCall):
                refused.append(f"t{number}")

        paying = asyncio.gather(*(pay(number) for number in range(1, 200)))
        for death in range(12):
            for _ in range(40):
                await asyncio.sleep(0)
            await (host.crash() if death % 2 else host.kill())
        await paying
        assert sum(await balances(host, kind, *names)) == 1_000

        out: dict[str, tuple[int, str, str]] = {}
        came: dict[str, tuple[int, str, str]] = {}
        for name in names:
            for amount, other, note in await entries(host, kind, name):
                if note.startswith("t"):
                    side, entry = (out, (-amount, name, other))
                    if amount > 0:
                        side, entry = (came, (amount, other, name))
                    assert note not in side, "applied twice"
                    side[note] = entry
        assert out == came
        assert out.keys() == set(acknowledged)
        assert len(acknowledged) + len(refused) == 199
        assert len(acknowledged) > 50

    run(test)
