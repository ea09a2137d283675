"""Guarantee 5: a call that comes again with the same id takes effect once."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest
from guarantee_objects import GATES, Counter, run, ticks, until

import rayobjects as ro
from rayobjects.errors import Deadlock, InvalidCall, MethodError, Overloaded
from rayobjects.limits import FINISHED_WINDOW_S
from rayobjects.messages import JSON, PICKLE, Batch, Call, Reply
from rayobjects.objects import host_core, unsent
from rayobjects.storage import room, values
from rayobjects.testing import LocalHost, LocalResponse
from rayobjects.testing.channel import LocalChannel


class Bank(ro.DurableObject):
    balance: int = ro.durable(0)

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    async def transfer(self, to: str, amount: int, pause: str = "") -> int:
        self.balance -= amount
        other = ro.namespace("Bank").get(to)
        there: int = await other.deposit.remote(amount)
        if pause:
            GATES.reached(pause)
            await GATES[pause].wait()
        return there

    async def keyed(self, to: str) -> None:
        await ro.namespace("Bank").get(to).options(idempotency_key="k").deposit.remote(1)

    async def ask_back(self, to: str, name: str) -> int:
        result: int = await ro.namespace("Bank").get(to).ask_back.remote(name, to)
        return result

    def read(self) -> int:
        return self.balance


def test_guarantee_5_an_answer_that_was_lost_in_the_same_process() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            for total in range(1, 11):
                host.client.lose_answers = total % 3
                assert await stub.increment.remote() == total
            assert await stub.ran.remote() == 10

    run(main)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_5_an_answer_that_was_lost_in_a_crash(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            assert await stub.increment.remote() == 1
            for total in range(2, 6):
                host.client.lose_answers = 1
                response = stub.increment.remote()
                await until(lambda: host.client.lose_answers == 0)
                # It is committed, the answer is lost, and the host dies before it is asked again.
                await getattr(host, end)()
                assert await response == total
                assert await stub.ran.remote() == 0, "the stored reply came back"

    run(main)


def test_guarantee_5_a_call_that_runs_when_its_answer_is_lost() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            slow = stub.wait.remote("gate")
            await GATES.until_reached("gate")
            host.client.lose_answers = host.client.lose_polls = 1
            behind = stub.increment.remote()
            await ticks(100)
            GATES["gate"].set()
            assert (await slow, await behind) == (1, 2)

    run(main)


def test_guarantee_5_thousands_of_unanswered_calls_are_sent_again() -> None:
    """More than one batch holds: the later batches of the new session are repetitions too."""

    async def main() -> None:
        with mock.patch.object(unsent, "BATCH_CALLS_MAX", 16):
            async with LocalHost([Counter]) as host:
                stubs = [host.get(Counter, str(number)) for number in range(100)]
                with host.syncs_held():
                    responses = [stub.increment.remote() for stub in stubs]
                    await ticks(50)
                host.client.lose_answers = 3
                await ticks(3)
                await host.kill()
                assert await asyncio.gather(*responses) == [1] * 100
                assert await asyncio.gather(*(s.read.remote() for s in stubs)) == [1] * 100

    run(main)


def test_guarantee_5_the_same_key_from_two_channels_at_once() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            core = host.core
            assert core is not None
            stub = host.get(Counter, "a")
            GATES["gate"].clear()
            slow = asyncio.ensure_future(host.post(stub, "wait", {"name": "gate"}))
            await GATES.until_reached("gate")
            channels = [LocalChannel(host, f"gateway {number}") for number in range(3)]
            replies: list[Reply] = []
            for channel in channels:
                call = Call(0, "Counter", "a", "increment", JSON, b"{}", "key:same")
                channel.send(call, replies.append)  # type: ignore[arg-type]
            await ticks(50)
            assert replies == []
            GATES["gate"].set()
            assert await slow == 1
            assert await stub.read.remote() == 2
            assert [reply.body for reply in replies] == [b"2"] * 3
            assert len({reply.sequence for reply in replies}) == 1
            # And later, and after a crash.
            await host.crash()
            assert await host.post(stub, "increment", idempotency_key="same") == 2
            assert await host.post(stub, "increment", idempotency_key="other") == 3
            # A key belongs to its object.
            other = host.get(Counter, "b")
            assert await host.post(other, "increment", idempotency_key="same") == 1
            for channel in channels:
                channel.close()

    run(main)


def test_guarantee_5_a_key_is_kept_for_its_window() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            assert await host.post(stub, "increment", idempotency_key="k") == 1
            await host.move(FINISHED_WINDOW_S - 1)
            assert await host.post(stub, "increment", idempotency_key="k") == 1
            await host.move(2)
            assert await host.post(stub, "increment", idempotency_key="k") == 2

    run(main)


def test_guarantee_5_replies_that_have_arrived_are_forgotten() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            assert host.shard is not None
            stub = host.get(Counter, "a")
            for _ in range(20):
                await stub.increment.remote()
            # The last reply is acknowledged by the next batch.
            assert host.shard.finished_count <= 1
            await host.post(stub, "increment", idempotency_key="k")
            await stub.increment.remote()
            assert host.shard.finished_count <= 2, "a key is kept, though its reply has arrived"
            await host.move(FINISHED_WINDOW_S + 1)
            assert host.shard.finished_count == 0

    run(main)


def test_guarantee_5_a_key_from_python() -> None:
    async def main() -> None:
        async with LocalHost([Counter, Bank]) as host:
            bank = host.get(Bank, "a")
            order = bank.options(idempotency_key="order 17")
            assert await order.deposit.remote(5) == 5
            assert await order.deposit.remote(5) == 5
            assert await bank.options(idempotency_key="order 18").deposit.remote(5) == 10
            await host.kill()
            assert await order.options(timeout_s=60).deposit.remote(5) == 5
            assert await bank.deposit.remote(1) == 11
            with pytest.raises(InvalidCall, match="'order 17' was used for another call"):
                await order.deposit.remote(6)
            assert (
                await host.get(Bank, "b").options(idempotency_key="order 17").deposit.remote(1) == 1
            )
            for wrong in ("", "é", "x" * 300, 7):
                with pytest.raises(InvalidCall, match=r"1 to .* printable ASCII"):
                    bank.options(idempotency_key=wrong)  # type: ignore[arg-type]
            with pytest.raises(MethodError, match="inside a method: leave it out"):
                await bank.keyed.remote("b")

    run(main)


def test_guarantee_5_too_many_finished_calls() -> None:
    async def main() -> None:
        with mock.patch.object(room, "FINISHED_CALLS_MAX", 10):
            async with LocalHost([Counter]) as host:
                stub = host.get(Counter, "a")
                for number in range(10):
                    await host.post(stub, "increment", idempotency_key=f"k{number}")
                with pytest.raises(Overloaded, match="finished calls"):
                    await host.post(stub, "increment", idempotency_key="one more")
                assert await stub.read.remote() == 10, "it was rolled back"
                await host.move(FINISHED_WINDOW_S + 1)
                assert await host.post(stub, "increment", idempotency_key="one more") == 11

    run(main)


def test_guarantee_5_too_many_keys_under_way() -> None:
    async def main() -> None:
        with mock.patch.object(host_core, "FINISHED_CALLS_MAX", 2):
            async with LocalHost([Counter]) as host:
                stubs = [host.get(Counter, str(number)) for number in range(3)]
                running = [
                    asyncio.ensure_future(
                        host.post(stub, "wait", {"name": "gate"}, idempotency_key=stub.id.name)
                    )
                    for stub in stubs[:2]
                ]
                await ticks(50)
                with pytest.raises(Overloaded, match="under way"):
                    await host.post(stubs[2], "increment", idempotency_key="2")
                GATES["gate"].set()
                assert await asyncio.gather(*running) == [1, 1]
                assert await host.post(stubs[2], "increment", idempotency_key="2") == 1

    run(main)


def test_guarantee_5_an_error_is_not_an_effect() -> None:
    """A call that raised has had no effect, so its repetition runs it."""

    async def main() -> None:
        async with LocalHost([Counter]) as host:
            stub = host.get(Counter, "a")
            for _ in range(2):
                with pytest.raises(MethodError):
                    await host.post(stub, "fail", idempotency_key="k")
            assert await host.post(stub, "increment", idempotency_key="k") == 1

    run(main)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_5_a_chain_that_is_cut_off_applies_each_call_once(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Bank]) as host:
            a, b = host.get(Bank, "a"), host.get(Bank, "b")
            await a.deposit.remote(100)
            transfer = a.transfer.remote("b", 30, "gate")
            await GATES.until_reached("gate")
            assert await b.read.remote() == 30
            await getattr(host, end)()
            GATES["gate"].set()
            assert await transfer == 30, "the deposit's stored reply"
            assert (await a.read.remote(), await b.read.remote()) == (70, 30)

    run(main)


def test_guarantee_5_a_reply_that_came_from_others_is_stored() -> None:
    """A method that changed nothing of its own but called others must not call them again."""

    class Forwarder(ro.DurableObject):
        async def deposit(self, to: str, amount: int) -> int:
            result: int = await ro.namespace("Bank").get(to).deposit.remote(amount)
            return result

    async def main() -> None:
        async with LocalHost([Bank, Forwarder]) as host:
            forwarder, bank = host.get(Forwarder, "f"), host.get(Bank, "b")
            response: LocalResponse = forwarder.deposit.remote("b", 10)
            host.client.lose_answers = 1
            await until(lambda: host.client.lose_answers == 0)
            await host.crash()
            assert await response == 10
            assert await bank.read.remote() == 10

    run(main)


def test_guarantee_5_a_circle_is_a_deadlock() -> None:
    async def main() -> None:
        async with LocalHost([Bank]) as host:
            a = host.get(Bank, "a")
            with pytest.raises(Deadlock, match="circle"):
                await a.ask_back.remote("b", "a")
            with pytest.raises(Deadlock, match="circle"):
                await a.transfer.remote("a", 1)
            assert await a.read.remote() == 0

    run(main)


def test_guarantee_5_a_call_that_is_in_a_batch_twice() -> None:
    async def main() -> None:
        async with LocalHost([Counter]) as host:
            core = host.core
            assert core is not None
            args = values.dump(((), {}))
            calls = [Call(1, "Counter", "a", "increment", PICKLE, args) for _ in range(3)]
            answer = await core.deliver(Batch("other", 1, 0, calls))
            assert {reply.body for reply in answer.replies} == {values.dump(1)}
            assert await host.get(Counter, "a").read.remote() == 1

    run(main)
