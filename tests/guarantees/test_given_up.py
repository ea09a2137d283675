"""What was given up: how it is listed, goes on, is retried and discarded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from guarantee_objects import GATES, run
from promise_objects import listed, promises, settle

import rayobjects as ro
from rayobjects.limits import HELD_WINDOW_S
from rayobjects.storage.records import INTENT, TELL
from rayobjects.testing import LocalHost

FAULTS: set[str] = set()
RUNS: list[str] = []


@pytest.fixture(autouse=True)
def _afresh() -> None:
    FAULTS.clear()
    RUNS.clear()


def begun(response: Awaitable[Any]) -> asyncio.Future[Any]:
    async def result() -> Any:
        return await response

    return asyncio.ensure_future(result())


class Account(ro.DurableObject):
    balance: int = ro.durable(0)

    def deposit(self) -> None:
        if "deposit" in FAULTS:
            raise ValueError("closed today")
        self.balance += 10

    def value(self) -> int:
        return self.balance


class Planner(ro.DurableObject):
    others: int = ro.durable(0)
    rung: list[str] = ro.durable(factory=list)

    def say(self) -> None:
        ro.namespace("Account").get("a").deposit.tell()

    async def pay(self) -> None:
        RUNS.append("pay")
        to = "a" if len(RUNS) == 1 else "b"  # not like its first run
        await ro.namespace("Account").get(to).deposit.remote()
        GATES.reached("paid")
        await GATES["go"].wait()

    def plan(self, every: str) -> None:
        if every:
            self.schedule(self.pay_on_time, every=every, key="pay")
        else:
            self.schedule(self.pay_on_time, after=1, key="pay")
        self.schedule(self.other, after=2, key="other")

    async def pay_on_time(self) -> None:
        RUNS.append("pay")
        await ro.namespace("Account").get("a").deposit.remote()
        GATES.reached("paid")
        if len(RUNS) == 1:
            await GATES["go"].wait()

    def other(self) -> None:
        self.others += 1

    def plan_refusal(self) -> None:
        self.schedule(self.refuse, after=1, key="refuse")

    @ro.retries(1, first_s=1.0)
    def refuse(self) -> None:
        RUNS.append("refuse")
        raise ro.InvalidCall("", status=409)

    def remind(self, text: str) -> None:
        self.schedule(self.ring, text, after=3_600)

    def ring(self, text: str) -> None:
        self.rung.append(text)

    def all_rung(self) -> list[str]:
        return self.rung

    def planned(self) -> list[tuple[str, str]]:
        return [(each.key, each.failed) for each in self.scheduled()]


def test_guarantee_7_an_error_without_a_message_is_a_failure() -> None:
    async def main() -> None:
        async with LocalHost([Planner]) as host:
            planner = host.get(Planner, "p")
            await planner.plan_refusal.remote()
            await host.move(100)
            assert RUNS == ["refuse", "refuse"]
            assert await planner.planned.remote() == [("refuse", "InvalidCall")]
            assert [each["failed"] for each in listed(host)] == ["InvalidCall"]

    run(main)


@pytest.mark.parametrize("every", ["", "* * * * *"])
def test_guarantee_7_what_is_cut_off_and_too_old_ends_one_time_of_its_schedule(every: str) -> None:
    async def main() -> None:
        async with LocalHost([Planner, Account]) as host:
            planner = host.get(Planner, "p")
            await planner.plan.remote(every)
            moving = asyncio.ensure_future(host.move(61))
            await GATES.until_reached("paid")
            await moving
            host.clock.move(HELD_WINDOW_S + 60)  # type: ignore[attr-defined]
            with host.syncs_held():  # what is noted is on disk when the object lives already
                await host.kill()
                await asyncio.sleep(0.05)
            await host.move(1)
            (call,) = listed(host)
            assert call["kind"] == "intent", "the call itself is listed, so that it is not repeated"
            planned = await planner.planned.remote()
            assert [failed for _, failed in planned] == ["" for _ in planned], "and no schedule is"
            await host.evict(planner)
            assert await planner.planned.remote() == planned, "the object knew of it"
            before = len(RUNS)
            await host.move(120)
            assert (len(RUNS) > before) == bool(every), "one that recurs goes on"

    run(main)


@pytest.mark.parametrize("first", ["retry", "discard"])
@pytest.mark.parametrize("second", ["retry", "discard"])
@pytest.mark.parametrize("kind", ["tell", "intent"])
def test_guarantee_5_what_was_given_up_is_settled_once(kind: str, first: str, second: str) -> None:
    async def main() -> None:
        async with LocalHost([Planner, Account]) as host:
            planner = host.get(Planner, "p")
            if kind == "tell":
                FAULTS.add("deposit")
                await planner.say.remote()
                for _ in range(20):
                    await host.move(60)
                FAULTS.clear()
            else:
                paying = begun(planner.pay.remote())
                await GATES.until_reached("paid")
                await host.crash()
                with pytest.raises(ro.InvalidCall, match="run again, but"):
                    await paying
            ((_, promise),) = promises(host, TELL, INTENT)
            assert promise.failed
            both = [begun(settle(planner, how, kind, promise.key)) for how in (first, second)]
            done, refused = await asyncio.gather(*both, return_exceptions=True)
            assert done == {"retry": "retried", "discard": "discarded"}[first]
            assert isinstance(refused, ro.InvalidCall)
            GATES["go"].set()
            await host.move(60)
            balances = [await host.get(Account, name).value.remote() for name in "ab"]
            delivered = first == "retry" and kind == "tell"
            assert balances == [10 if kind == "intent" or delivered else 0, 0]

    run(main)


def test_guarantee_7_an_idempotency_key_that_is_used_anew_leaves_older_schedules() -> None:
    async def main() -> None:
        async with LocalHost([Planner]) as host:
            planner = host.get(Planner, "p")
            for text in ("tea", "milk"):
                await host.post(planner, "remind", {"text": text}, idempotency_key="1")
                await host.move(700)  # more than the window in which it is the same call
            await host.move(3_600)
            assert await planner.all_rung.remote() == ["tea", "milk"]

    run(main)
