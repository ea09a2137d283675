"""Guarantee 5, chains: a call that calls others is run again by its host until it ends, whoever
dies, and each of its calls is applied once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from guarantee_objects import GATES, run, ticks, until
from promise_objects import dying_everywhere, kept, listed, moved_until, promises, settle

import rayobjects as ro
from rayobjects.errors import InvalidCall, MethodError, Overloaded
from rayobjects.ids import ObjectId
from rayobjects.limits import FINISHED_WINDOW_S, HELD_WINDOW_S
from rayobjects.messages import PICKLE, Call
from rayobjects.objects import intents
from rayobjects.objects.intents import child_base, root_of
from rayobjects.storage import commits, room, values
from rayobjects.storage.records import INTENT, SCHEDULE, STEP
from rayobjects.testing import LocalHost
from rayobjects.testing.channel import LocalChannel

RUNS: list[Any] = []
"""What methods say of each of their runs; whatever dies."""

PLAN: dict[str, Any] = {}
"""What a method does besides: a test changes it between two runs."""


class Account(ro.DurableObject):
    """Money, and what came in and went out."""

    balance: int = ro.durable(0)
    log: list[str] = ro.durable(factory=list)

    def deposit(self, amount: int, what: str = "") -> int:
        self.balance += amount
        self.log.append(f"+{amount} {what}".strip())
        return self.balance

    def look(self) -> tuple[int, list[str]]:
        return self.balance, self.log

    def refuse(self) -> None:
        raise ValueError("no")

    async def transfer(self, to: str, amount: int, gate: str = "") -> int:
        """Takes money, gives it to another account, and waits at a gate."""
        RUNS.append((self.now(), self.random.random()))
        self.balance -= amount
        self.log.append(f"-{amount}")
        there: int = await account(to).deposit.remote(amount)
        await reached(gate)
        return there

    async def pass_on(self, path: list[str], amount: int) -> None:
        """A chain: each keeps one, and passes the rest on."""
        if path:
            self.balance += 1
            await account(path[0]).pass_on.remote(path[1:], amount - 1)
        else:
            self.balance += amount

    async def planned(self, gate: str = "") -> str:
        """Calls what PLAN says, then waits, then calls what it says then."""
        self.balance += 1
        first = PLAN.get("first")
        if first is not None:
            await account(first[0]).deposit.remote(*first[1:])
        if PLAN.get("raise"):
            raise LookupError("it was planned so")
        await reached(gate)
        for name, *arguments in PLAN.get("then", ()):
            await account(name).deposit.remote(*arguments)
        return "done"

    async def try_two(self, gate: str) -> str:
        """One that raises and is caught, one that does not."""
        try:
            await account("b").refuse.remote()
        except MethodError:
            self.balance += 1
        await account("b").deposit.remote(5)
        await reached(gate)
        return "tried"

    async def many(self, count: int, how: str = "") -> int:
        """Calls another one so often, one after the other."""
        RUNS.append(how)
        for _ in range(count):
            await account("b").deposit.remote(1)
        await reached(PLAN.get("gate", ""))
        if how == "raise":
            raise ValueError("at its end")
        if how != "read":
            self.balance += 1
        return count

    def on_connect(self, ws: ro.WebSocket) -> None:
        if PLAN.get("scheduled"):
            self.schedule(self.many, 60, "scheduled", after=10, key="s")

    async def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        await self.many(60, "closed")

    def count_sockets(self) -> int:
        return len(self.sockets)

    async def together(self, names: list[str], gate: str) -> list[int]:
        found = await asyncio.gather(*(account(each).deposit.remote(1) for each in names))
        await reached(gate)
        return list(found)


def account(name: str) -> Any:
    return ro.namespace("Account").get(name)


async def reached(gate: str) -> None:
    if gate:
        GATES.reached(gate)
        await GATES[gate].wait()


@pytest.fixture(autouse=True)
def fresh() -> None:
    RUNS.clear()
    PLAN.clear()


async def stand(host: LocalHost, name: str) -> tuple[int, list[str]]:
    found: tuple[int, list[str]] = await host.get(Account, name).look.remote()
    return found


# -- before the first call leaves -------------------------------------------------------------


def test_guarantee_5_the_intent_is_on_disk_before_the_first_call_leaves() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a, b = host.get(Account, "a"), host.get(Account, "b")
            await a.deposit.remote(100)
            with host.syncs_held():
                transfer = a.transfer.remote("b", 30)
                await ticks(200)
                assert len(RUNS) == 1
                assert not host.is_live(b), "nothing has left"
                assert promises(host) == []
            assert await transfer == 30
            assert promises(host) == [], "its end takes the intent back"

            slow = a.transfer.remote("b", 1, "gate")
            await GATES.until_reached("gate")
            assert [promise.kind for _, promise in promises(host)] == [INTENT, STEP]
            assert {id.name for id, _ in promises(host)} == {"a"}
            GATES["gate"].set()
            await slow

    run(main)


def test_guarantee_5_a_call_that_calls_nobody_has_no_intent() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            await host.get(Account, "a").deposit.remote(1)
            assert host.shard is not None
            before = host.shard.stats()["records"]
            await host.get(Account, "a").planned.remote()
            assert host.shard.stats()["records"] == before + 1

    run(main)


# -- the caller is gone -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_5_a_chain_ends_though_its_caller_is_gone(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            await host.get(Account, "a").deposit.remote(100)
            caller = LocalChannel(host, "a caller")
            args = values.dump((("b", 30, "gate"), {}))
            caller.send(Call(0, "Account", "a", "transfer", PICKLE, args), lambda outcome: None)
            await GATES.until_reached("gate")
            caller.close()
            for lives in range(2, 5):  # and dies again and again before it comes to its end
                await getattr(host, end)()
                await until(lambda lives=lives: len(RUNS) == lives)
                assert (await stand(host, "b"))[0] == 30
            GATES["gate"].set()
            await moved_until(host, lambda: kept(host))
            assert (await stand(host, "a"))[0] == 70
            assert (await stand(host, "b")) == (30, ["+30"])

    run(main)


def test_guarantee_5_now_and_random_are_the_same_in_a_rerun() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            transfer = host.get(Account, "a").transfer.remote("b", 1, "gate")
            await GATES.until_reached("gate")
            host.clock.move(100)
            await host.kill()
            await until(lambda: len(RUNS) == 2)
            assert RUNS[0] == RUNS[1]
            GATES["gate"].set()
            await transfer
            await host.get(Account, "a").transfer.remote("b", 1)
            assert (RUNS[2][0] - RUNS[0][0]).total_seconds() == 100
            assert RUNS[2][1] != RUNS[0][1]

    run(main)


def test_guarantee_5_a_rerun_goes_before_whatever_is_asked_after_the_crash() -> None:
    """It must run from the state that it first saw."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            await a.deposit.remote(100)
            transfer = a.transfer.remote("b", 30, "gate")
            behind = a.deposit.remote(1, "behind")
            await GATES.until_reached("gate")
            await host.kill()
            GATES["gate"].set()
            assert await transfer == 30
            await behind
            assert (await stand(host, "a"))[1] == ["+100", "-30", "+1 behind"]

    run(main)


def test_guarantee_5_a_rerun_goes_first_though_its_class_could_not_be_loaded() -> None:
    """The host has begun without the class; when it has that, the object's next call wakes it."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            await a.deposit.remote(100)
            caller = LocalChannel(host, "a caller")
            args = values.dump((("b", 30, "gate"), {}))
            caller.send(Call(0, "Account", "a", "transfer", PICKLE, args), lambda outcome: None)
            await GATES.until_reached("gate")
            caller.close()
            known, host.classes._classes = host.classes._classes, {}
            await host.kill()
            with pytest.raises(InvalidCall, match="deployed"):
                await a.look.remote()
            host.classes._classes = known
            GATES["gate"].set()
            assert await a.deposit.remote(1, "behind") == 71
            assert (await stand(host, "a"))[1] == ["+100", "-30", "+1 behind"]
            assert (await stand(host, "b"))[0] == 30

    run(main)


def test_guarantee_5_a_caught_error_of_a_child_is_met_again_in_the_rerun() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            tried = host.get(Account, "a").try_two.remote("gate")
            await GATES.until_reached("gate")
            await host.crash()
            GATES["gate"].set()
            assert await tried == "tried"
            assert (await stand(host, "a"))[0] == 1
            assert (await stand(host, "b")) == (5, ["+5"])

    run(main)


def test_guarantee_5_children_that_are_called_together() -> None:
    async def main() -> None:
        names = [f"n{number}" for number in range(20)]
        async with LocalHost([Account]) as host:
            together = host.get(Account, "a").together.remote(names, "gate")
            await GATES.until_reached("gate")
            for end in ("kill", "crash", "kill"):
                await getattr(host, end)()
            GATES["gate"].set()
            assert await together == [1] * 20
            for name in names:
                assert await stand(host, name) == (1, ["+1"])

    run(main)


# -- dying everywhere -------------------------------------------------------------------------


@pytest.mark.parametrize("again", [None, 9])
def test_guarantee_5_a_chain_of_three_with_a_death_at_every_operation(again: int | None) -> None:
    async def prepare(host: LocalHost) -> None:
        for name in "abcd":
            await host.get(Account, name).deposit.remote(10)

    async def begin(host: LocalHost) -> None:
        await host.get(Account, "a").pass_on.remote(["b", "c", "d"], 40)

    async def check(host: LocalHost) -> None:
        assert [(await stand(host, name))[0] for name in "abcd"] == [11, 11, 11, 47]

    assert dying_everywhere([Account], begin, check, prepare=prepare, again=again) > 10


def test_guarantee_5_transfers_that_cross_with_a_death_at_every_operation() -> None:
    """Several chains at once, on the same accounts; in one direction, or they would wait for each
    other."""

    async def prepare(host: LocalHost) -> None:
        for name in "abc":
            await host.get(Account, name).deposit.remote(100)

    async def begin(host: LocalHost) -> None:
        await asyncio.gather(
            host.get(Account, "a").transfer.remote("b", 10),
            host.get(Account, "a").transfer.remote("c", 5),
            host.get(Account, "b").transfer.remote("c", 20),
            host.get(Account, "b").transfer.remote("c", 1),
        )

    async def check(host: LocalHost) -> None:
        assert [(await stand(host, name))[0] for name in "abc"] == [85, 89, 126]

    assert dying_everywhere([Account], begin, check, prepare=prepare) > 10


# -- replies are kept as long as they are needed ------------------------------------------------


def test_guarantee_5_childrens_replies_are_kept_until_their_parent_has_ended() -> None:
    """Through checkpoint, eviction and restart, for longer than the window of finished calls."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a, b = host.get(Account, "a"), host.get(Account, "b")
            await a.deposit.remote(100)
            transfer = a.transfer.remote("b", 30, "gate")
            await GATES.until_reached("gate")
            await host.fold()
            await host.evict(b)
            await host.move(2 * FINISHED_WINDOW_S)
            await host.fold()
            await host.kill()
            await until(lambda: len(RUNS) == 2)
            await host.move(2 * FINISHED_WINDOW_S)
            await host.crash()
            GATES["gate"].set()
            assert await transfer == 30
            assert await stand(host, "b") == (30, ["+30"])
            await ticks()
            assert host.shard is not None
            child = [each for each in host.shard.finished_of(b.id) if each.held]
            assert child == [], "its parent has ended, so it is not needed any more"

    run(main)


def test_guarantee_5_what_is_too_old_is_not_guessed_at() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            caller = LocalChannel(host, "a caller")
            args = values.dump((("b", 30, "gate"), {}))
            caller.send(Call(0, "Account", "a", "transfer", PICKLE, args), lambda outcome: None)
            await GATES.until_reached("gate")
            caller.close()
            host.clock.move(HELD_WINDOW_S + 1)
            await host.kill()
            await until(lambda: listed(host))
            await ticks()
            assert len(RUNS) == 1, "b may have forgotten it, so it is not run again"
            (failed,) = listed(host)
            assert "so old" in failed["failed"]
            assert failed["method"] == "transfer"
            key = failed["key"]
            with pytest.raises(InvalidCall, match="discard"):
                await settle(a, "retry", "intent", key)
            assert await settle(a, "discard", "intent", key) == "discarded"
            assert promises(host) == []
            assert (await stand(host, "a"))[0] == 0

    run(main)


# -- reruns that are not like the first run -----------------------------------------------------

DIFFERENCES = {
    "another target": {"first": ("c", 10)},
    "other arguments": {"first": ("b", 11)},
    "another method's arguments": {"first": ("b", 10, "thanks")},
    "fewer calls": {},
}


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_5_a_rerun_that_calls_differently_is_stopped(difference: str, end: str) -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            PLAN["first"] = ("b", 10)
            planned = a.planned.remote("gate")
            await GATES.until_reached("gate")
            PLAN.clear()
            PLAN.update(DIFFERENCES[difference])
            GATES["gate"].set()
            await getattr(host, end)()
            with pytest.raises(InvalidCall, match="stopped") as caught:
                await planned
            assert caught.value.status == 500
            assert await stand(host, "a") == (0, []), "it was rolled back"
            assert await stand(host, "b") == (10, ["+10"]), "what the first run did stays"
            assert (await stand(host, "c"))[0] == 0
            (failed,) = listed(host)
            assert failed["kind"] == "intent"
            assert failed["method"] == "planned"
            assert "first run called Account/b.deposit" in failed["failed"]

            # It stays so, through everything, and what it had called keeps its reply.
            await host.fold()
            await host.move(2 * FINISHED_WINDOW_S)
            await host.kill()
            await host.crash()
            assert listed(host) == [failed]
            assert await stand(host, "a") == (0, [])
            with pytest.raises(InvalidCall, match="no intent"):
                await settle(a, "retry", "intent", "another")

            # Retried as it is, it is stopped again; as it was, it comes to its end.
            assert await settle(a, "retry", "intent", failed["key"]) == "retried"
            await moved_until(host, lambda: listed(host))
            assert await stand(host, "b") == (10, ["+10"])
            PLAN.clear()
            PLAN["first"] = ("b", 10)
            assert await settle(a, "retry", "intent", failed["key"]) == "retried"
            await moved_until(host, lambda: kept(host))
            assert (await stand(host, "a"))[0] == 1
            assert await stand(host, "b") == (10, ["+10"])

    run(main)


def test_guarantee_5_a_rerun_that_raises_before_it_calls_is_stopped_too() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            PLAN["first"] = ("b", 10)
            planned = a.planned.remote("gate")
            await GATES.until_reached("gate")
            PLAN.clear()
            PLAN["raise"] = True
            await host.kill()
            with pytest.raises(InvalidCall, match="stopped"):
                await planned
            (failed,) = listed(host)
            assert await settle(a, "discard", "intent", failed["key"]) == "discarded"
            assert promises(host) == []
            await host.crash()
            assert promises(host) == []
            assert await stand(host, "a") == (0, [])
            assert await stand(host, "b") == (10, ["+10"])

    run(main)


def test_guarantee_5_a_rerun_that_raises_after_its_calls_has_ended() -> None:
    """What a method had asked of others before it raised is not undone."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            PLAN["first"] = ("b", 10)
            planned = host.get(Account, "a").planned.remote("gate")
            await GATES.until_reached("gate")
            PLAN["raise"] = True
            await host.kill()
            with pytest.raises(MethodError, match="planned so"):
                await planned
            assert promises(host) == []
            assert await stand(host, "a") == (0, [])
            assert await stand(host, "b") == (10, ["+10"])

    run(main)


def test_guarantee_5_a_rerun_may_go_further_than_the_first_run() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            PLAN.update(first=("b", 10), then=[("b", 1), ("c", 2)])
            planned = host.get(Account, "a").planned.remote("gate")
            await GATES.until_reached("gate")
            await host.kill()
            GATES["gate"].set()
            assert await planned == "done"
            assert (await stand(host, "b"))[0] == 11
            assert (await stand(host, "c"))[0] == 2

    run(main)


def test_guarantee_5_a_retry_survives_a_crash() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            PLAN["first"] = ("b", 10)
            planned = a.planned.remote("gate")
            await GATES.until_reached("gate")
            PLAN["first"] = ("c", 10)
            await host.kill()
            with pytest.raises(InvalidCall):
                await planned
            PLAN["first"] = ("b", 10)
            await settle(a, "retry", "intent", listed(host)[0]["key"])
            await host.crash()
            GATES["gate"].set()
            await moved_until(host, lambda: kept(host))
            assert (await stand(host, "a"))[0] == 1
            assert await stand(host, "b") == (10, ["+10"])

    run(main)


# -- the same id for something else -------------------------------------------------------------


def test_guarantee_5_the_same_key_with_other_arguments_is_refused() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")

            async def deposit(method: str = "deposit", **arguments: Any) -> Any:
                return await host.post(a, method, arguments, idempotency_key="k")

            assert await deposit(amount=5, what="x") == 5
            assert await deposit(what="x", amount=5) == 5, "in another order it is the same"
            for arguments in ({"amount": 6, "what": "x"}, {"amount": 5}, {"amount": "5"}):
                with pytest.raises(InvalidCall, match="used for another call") as caught:
                    await deposit(**arguments)
                assert caught.value.status == 422
            with pytest.raises(InvalidCall, match="used for another call"):
                await deposit("look")
            await host.fold()
            await host.crash()
            with pytest.raises(InvalidCall, match="used for another call"):
                await deposit(amount=7)
            assert await deposit(amount=5, what="x") == 5
            assert await stand(host, "a") == (5, ["+5 x"])

    run(main)


def test_guarantee_5_the_same_key_with_other_arguments_while_it_runs() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            arguments = {"to": "b", "amount": 5, "gate": "gate"}
            slow = asyncio.ensure_future(host.post(a, "transfer", arguments, idempotency_key="k"))
            await GATES.until_reached("gate")
            with pytest.raises(InvalidCall, match="used for another call"):
                await host.post(a, "transfer", arguments | {"amount": 6}, idempotency_key="k")
            same = asyncio.ensure_future(host.post(a, "transfer", arguments, idempotency_key="k"))
            await ticks()
            await host.kill()
            GATES["gate"].set()
            assert await asyncio.gather(slow, same) == [5, 5]
            assert await stand(host, "b") == (5, ["+5"])

    run(main)


def test_guarantee_5_a_retry_does_not_forget_the_reply_of_another_object() -> None:
    """Idempotency-Keys belong to their objects: two may have the same."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a, other = host.get(Account, "a"), host.get(Account, "other")
            PLAN["first"] = ("b", 10)
            planned = asyncio.ensure_future(
                host.post(a, "planned", {"gate": "gate"}, idempotency_key="k")
            )
            await GATES.until_reached("gate")
            PLAN["first"] = ("c", 10)
            await host.kill()
            with pytest.raises(InvalidCall, match="stopped"):
                await planned
            assert await host.post(other, "deposit", {"amount": 1}, idempotency_key="k") == 1
            PLAN["first"] = ("b", 10)
            GATES["gate"].set()
            await settle(a, "retry", "intent", listed(host)[0]["key"])
            await moved_until(host, lambda: kept(host))
            assert (await stand(host, "a"))[0] == 1
            assert await host.post(other, "deposit", {"amount": 1}, idempotency_key="k") == 1

    run(main)


def test_guarantee_5_what_was_given_up_is_not_run_because_somebody_asks_again() -> None:
    """Nobody but whoever retries it decides that; also when its reply is not kept any more."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")

            def ask() -> Any:
                return host.post(a, "planned", {"gate": "gate"}, idempotency_key="k")

            PLAN["first"] = ("b", 10)
            planned = asyncio.ensure_future(ask())
            await GATES.until_reached("gate")
            PLAN["first"] = ("c", 10)
            GATES["gate"].set()
            await host.kill()
            with pytest.raises(InvalidCall, match="stopped"):
                await planned
            (failed,) = listed(host)
            await host.move(2 * FINISHED_WINDOW_S)
            PLAN["first"] = ("b", 10)
            with pytest.raises(InvalidCall, match="rayobjects intents") as caught:
                await ask()
            assert caught.value.details["stopped"] == "key:k"
            assert listed(host) == [failed]
            assert await stand(host, "a") == (0, [])
            await settle(a, "retry", "intent", failed["key"])
            await moved_until(host, lambda: kept(host))
            assert await ask() == "done"
            assert (await stand(host, "a"))[0] == 1
            assert await stand(host, "b") == (10, ["+10"])

    run(main)


def test_guarantee_5_what_is_too_old_is_not_run_because_somebody_asks_again() -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            PLAN["first"] = ("b", 10)

            def ask() -> Any:
                return host.post(a, "planned", {"gate": "gate"}, idempotency_key="k")

            planned = asyncio.ensure_future(ask())
            await GATES.until_reached("gate")
            core = host.core
            assert core is not None
            core.intents.run_again = lambda id, intent: None  # type: ignore[method-assign]
            core._by_id.clear()  # as if it had been cut off, and its host not looked at it since
            host.clock.move(HELD_WINDOW_S + 1)
            with pytest.raises(InvalidCall, match="so old"):
                await ask()
            planned.cancel()

    run(main)


# -- no room ------------------------------------------------------------------------------------


def test_guarantee_5_a_call_that_has_called_others_can_end_though_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else its caller would hear that it has to back off, though what it called has happened."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            transfer = a.transfer.remote("b", 30, "gate")
            await GATES.until_reached("gate")
            with monkeypatch.context() as patch:
                patch.setattr(room, "MEMTABLE_BYTES_MAX", 0)
                with pytest.raises(Overloaded):
                    await host.get(Account, "c").deposit.remote(1)
                GATES["gate"].set()
                assert await transfer == 30
                # A new one cannot even begin, and nothing leaves.
                with pytest.raises(Overloaded):
                    await a.transfer.remote("b", 1)
            assert kept(host)
            assert (await stand(host, "a"))[0] == -30
            assert await stand(host, "b") == (30, ["+30"])

    run(main)


class Large(ro.DurableObject):
    """Reads by key, and so its methods run on another thread."""

    def fill(self) -> None:
        for number in range(1_000):
            self.storage[f"{number}"] = number

    async def take(self, key: str) -> int:
        found: int = self.storage.pop(key)
        await account("b").deposit.remote(found)
        RUNS.append(found)
        while not PLAN.get("open"):  # noqa: ASYNC110  (set by another thread)
            await asyncio.sleep(0.001)
        return found

    def count(self) -> int:
        return len(self.storage)


def test_guarantee_5_a_chain_of_a_large_object() -> None:
    async def main() -> None:
        async with LocalHost([Account, Large]) as host:
            large = host.get(Large, "l")
            await large.fill.remote()
            await host.evict(large)
            taken = large.take.remote("7")
            await until(lambda: RUNS)
            await host.kill()
            await until(lambda: len(RUNS) == 2)
            PLAN["open"] = True
            assert await taken == 7
            assert await large.count.remote() == 999
            assert await stand(host, "b") == (7, ["+7"])

    run(main)


# -- many calls ---------------------------------------------------------------------------------


def test_guarantee_5_ids_of_calls_are_short_however_long_the_names_are() -> None:
    short, long = ObjectId("Account", "a"), ObjectId("Account", "x" * 1_000)
    assert child_base(short, "key:k") == "Account/a:key:k"
    assert child_base(short, "c1.2/1/30") == "c1.2/1/30"
    for key, child_of in [("key:a/1", "key:a"), ("key:a/1/1", "key:a/1"), ("key:a/1", "key:a/1/1")]:
        assert not child_base(short, key).startswith(child_base(short, child_of))
    assert root_of(short, "key:a/1") == child_base(short, "key:a/1")
    deep = "c1.2" + "/1" * 200
    assert (child_base(short, deep), root_of(short, deep)) == (deep, "c1.2")
    edge = ObjectId("Account", "é" * 90)
    assert child_base(edge, "key:k1234") == f"Account/{'é' * 90}:key:k1234"
    for id in (long, ObjectId("Account", "é" * 90 + "1234567")):
        base = child_base(id, "key:k1234")
        assert len(base) <= 80
        assert base == child_base(id, "key:k1234")
        assert root_of(id, "key:k1234") == base
        assert root_of(short, f"{base}/1/2") == base, "a chain has one root"
        assert child_base(short, f"{base}/1/2") == f"{base}/1/2"
    scheduled = f"schedule:{long}:nonce:1.0:0"
    base = child_base(long, scheduled)
    assert child_base(short, f"{scheduled}/7/8") == f"{base}/7/8"
    assert root_of(long, scheduled) == root_of(short, f"{base}/7/8") == base
    others = [(long, "key:k"), (long, "key:k2"), (ObjectId("Account", "x" * 999), "key:k")]
    assert len({child_base(*each) for each in others}) == 3


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_5_a_chain_from_a_long_name_is_applied_once(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "x" * 1_000)
            PLAN["gate"] = "gate"
            post = asyncio.ensure_future(
                host.post(a, "many", {"count": 5}, idempotency_key="k" * 200)
            )
            await GATES.until_reached("gate")
            steps = [each for _, each in promises(host) if each.kind == STEP]
            assert len(steps) == 5
            assert max(len(each.key) for each in steps) < 100
            await getattr(host, end)()
            await until(lambda: len(RUNS) == 2)
            GATES["gate"].set()
            assert await post == 5
            assert kept(host)
            assert (await stand(host, "b"))[0] == 5
            assert (await stand(host, "x" * 1_000))[0] == 1

    run(main)


@pytest.mark.parametrize("how", ["write", "read", "raise", "scheduled", "closed"])
def test_guarantee_5_a_call_whose_end_cannot_be_written_is_listed(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of running again for ever."""

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            await a.deposit.remote(100)
            PLAN["scheduled"] = how == "scheduled"
            socket = await host.connect(a) if how in ("scheduled", "closed") else None
            with monkeypatch.context() as patch:
                patch.setattr(commits, "RECORD_BYTES_MAX", 1_200)
                if how == "scheduled":
                    await moved_until(host, lambda: listed(host))
                elif how == "closed":
                    assert socket is not None
                    await socket.close()
                    await moved_until(host, lambda: listed(host))
                    assert await a.count_sockets.remote() == 0
                else:
                    with pytest.raises(InvalidCall, match="its end could not be written") as caught:
                        await host.post(
                            a, "many", {"count": 60, "how": how}, idempotency_key="k" * 100
                        )
                    assert caught.value.status == 500
                (failed,) = listed(host)
                assert failed["kind"] == "intent"
                assert "at most 1,200 bytes" in failed["failed"]
                for _ in range(2):
                    await host.move(2 * FINISHED_WINDOW_S)
                    await host.kill()
                    assert listed(host) == [failed]
                assert len(RUNS) == 1
                assert await stand(host, "a") == (100, ["+100"])
                assert (await stand(host, "b"))[0] == 60, "what others did stays"
                assert promises(host, SCHEDULE) == [], "the intent has it along"

                if how == "closed":  # its socket is gone: there is nothing to run it for
                    patch.undo()
                    assert await settle(a, "discard", "intent", failed["key"]) == "discarded"
                    assert promises(host) == []
                    return
                assert await settle(a, "retry", "intent", failed["key"]) == "retried"
                await moved_until(host, lambda: len(RUNS) == 2 and listed(host))
                assert listed(host)[0]["failed"] == failed["failed"]
            # As soon as there is room for it, it comes to its end.
            assert await settle(a, "retry", "intent", failed["key"]) == "retried"
            await moved_until(host, lambda: kept(host))
            assert len(RUNS) == 3
            assert (await stand(host, "b"))[0] == 60
            wrote = how not in ("read", "raise")
            assert (await stand(host, "a"))[0] == 100 + wrote

    run(main)


def test_guarantee_5_the_calls_of_one_call_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its end can be written."""
    monkeypatch.setattr(intents, "STEPS_BYTES_MAX", 1_000)

    async def main() -> None:
        async with LocalHost([Account]) as host:
            a = host.get(Account, "a")
            PLAN["gate"] = "gate"
            fits = asyncio.ensure_future(host.post(a, "many", {"count": 10}, idempotency_key="1"))
            await GATES.until_reached("gate")
            await host.kill()
            await until(lambda: len(RUNS) == 2)
            GATES["gate"].set()
            assert await fits == 10, "those that it has made already need no more room"
            with pytest.raises(MethodError, match="spread them over several calls"):
                await host.post(a, "many", {"count": 100}, idempotency_key="2")
            assert kept(host)
            assert (await stand(host, "a"))[0] == 1
            assert 30 <= (await stand(host, "b"))[0] < 60

    run(main)
