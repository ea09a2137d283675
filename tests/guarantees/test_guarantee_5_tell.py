"""Guarantee 5, told messages: each belongs to the call that tells it, and is delivered exactly
once, in order for each pair of objects."""

from __future__ import annotations

import contextlib
import errno
import itertools
from typing import Any

import pytest
from guarantee_objects import GATES, run, ticks, until
from promise_objects import dying_everywhere, kept, listed, moved_until, promises, settle

import rayobjects as ro
from rayobjects.errors import InvalidCall, MethodError, Overloaded, StorageFailed
from rayobjects.limits import FINISHED_WINDOW_S, HELD_WINDOW_S, PROMISES_BYTES_MAX
from rayobjects.objects import activation as activation_module
from rayobjects.objects import courier as courier_module
from rayobjects.storage import room
from rayobjects.storage.records import TELL
from rayobjects.testing import LocalHost

HEARD: list[str] = []
"""Every time that `hear` runs, whatever dies."""

PLAN: dict[str, Any] = {}
"""Which texts are not heard yet, and what else methods do: a test changes it meanwhile."""


class Person(ro.DurableObject):
    heard: list[str] = ro.durable(factory=list)
    said: int = ro.durable(0)

    def say(self, to: str, *texts: str, fail: bool = False) -> int:
        for text in texts:
            self.said += 1
            person(to).hear.tell(text)
        if fail:
            raise ValueError("nothing was said")
        return self.said

    def hear(self, text: str) -> None:
        HEARD.append(text)
        if text in PLAN.get("deaf", ()):
            raise LookupError(f"what is {text}?")
        self.heard.append(text)

    async def pass_on(self, to: str, text: str) -> None:
        """For `ask`: answers by calling somebody else, and fails with that one's error."""
        HEARD.append(text)
        await person(PLAN.get("friend", "friend")).hear.remote(text)
        if PLAN.get("gate"):
            GATES.reached("gate")
            await GATES["gate"].wait()
        if PLAN.get("crowded"):
            raise Overloaded("my friends are crowded")
        self.heard.append(text)

    def ask(self, to: str, text: str) -> None:
        person(to).pass_on.tell("friend", text)

    def tell_stranger(self, method: str, *arguments: Any) -> None:
        getattr(ro.namespace("Stranger").get("s"), method).tell(*arguments)

    def say_large(self, to: str, size: int, times: int) -> None:
        for _ in range(times):
            person(to).overhear.tell("x" * size)

    def overhear(self, text: str) -> None:
        HEARD.append(text)

    async def wait(self, gate: str) -> None:
        GATES.reached(gate)
        await GATES[gate].wait()

    def all_heard(self) -> list[str]:
        return self.heard


class Stranger(ro.DurableObject):
    met: int = ro.durable(0)

    def meet(self) -> None:
        self.met += 1

    def read(self) -> int:
        return self.met


def person(name: str) -> Any:
    return ro.namespace("Person").get(name)


@pytest.fixture(autouse=True)
def fresh() -> None:
    HEARD.clear()
    PLAN.clear()


async def heard(host: LocalHost, name: str) -> list[str]:
    found: list[str] = await host.get(Person, name).all_heard.remote()
    return found


# -- the call's transaction ---------------------------------------------------------------------


def test_guarantee_5_what_a_call_tells_is_sent_when_it_is_on_disk() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a, b = host.get(Person, "a"), host.get(Person, "b")
            with host.syncs_held():
                saying = a.say.remote("b", "1", "2")
                await ticks(200)
                assert not host.is_live(b)
            assert await saying == 2
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1", "2"]

    run(main)


def test_guarantee_5_a_call_that_raises_has_told_nothing() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a = host.get(Person, "a")
            with pytest.raises(MethodError):
                await a.say.remote("b", "never", fail=True)
            await a.say.remote("b", "1")
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1"]

    run(main)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_guarantee_5_what_was_told_is_delivered_after_a_crash(end: str) -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a, b = host.get(Person, "a"), host.get(Person, "b")
            waiting = b.wait.remote("gate")
            await GATES.until_reached("gate")
            await a.say.remote("b", "1", "2", "3")
            await ticks()
            assert HEARD == []
            await host.fold()
            await getattr(host, end)()
            assert len(promises(host, TELL)) == 3
            GATES["gate"].set()
            await waiting
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1", "2", "3"]

    run(main)


def test_guarantee_5_an_object_may_tell_itself() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            await host.get(Person, "a").say.remote("a", "1", "2")
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "a") == ["1", "2"]

    run(main)


def test_tell_outside_of_a_method_says_what_to_do() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            with pytest.raises(InvalidCall, match=r"use \.remote"):
                host.get(Person, "a").hear.tell("1")

    run(main)


# -- once, and in order -------------------------------------------------------------------------


@pytest.mark.parametrize("again", [None, 7])
def test_guarantee_5_told_once_and_in_order_with_a_death_at_every_operation(
    again: int | None,
) -> None:
    async def begin(host: LocalHost) -> None:
        a, b = host.get(Person, "a"), host.get(Person, "b")
        assert await a.say.remote("b", "1", "2", "3") == 3
        await b.say.remote("a", "x")
        assert await a.say.remote("b", "4") == 4

    async def check(host: LocalHost) -> None:
        assert await heard(host, "b") == ["1", "2", "3", "4"]
        assert await heard(host, "a") == ["x"]

    assert dying_everywhere([Person], begin, check, again=again) > 10


def test_guarantee_5_attempts_are_counted_through_a_death_at_every_operation() -> None:
    """The receiver raises at first: whatever dies, it is called under the next id only when it is
    on disk that it had raised, so that it hears the message once."""

    async def begin(host: LocalHost) -> None:
        HEARD.clear()
        PLAN["deaf"] = ("1",)
        await host.get(Person, "a").say.remote("b", "1", "2")

        async def healed() -> None:
            while HEARD.count("1") < 3:
                await ticks(1)
            PLAN.clear()

        await healed()

    async def check(host: LocalHost) -> None:
        assert await heard(host, "b") == ["1", "2"]

    assert dying_everywhere([Person], begin, check) > 10


def test_guarantee_5_the_receivers_reply_is_kept_until_the_delivery_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sender's host dies after the receiver's record and before its own note; when it is back,
    the usual window of finished calls is over."""

    async def main() -> None:
        async with LocalHost([Person]) as host:
            core = host.core
            assert core is not None
            monkeypatch.setattr(core.courier, "_note", lambda *_: None)
            await host.get(Person, "a").say.remote("b", "1")
            await until(lambda: HEARD)
            await host.fold()
            await host.move(2 * FINISHED_WINDOW_S)
            await host.fold()
            await host.kill()
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1"]
            assert HEARD == ["1"]

    run(main)


def test_guarantee_5_pairs_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a = host.get(Person, "a")
            waiting = host.get(Person, "slow").wait.remote("gate")
            await GATES.until_reached("gate")
            await a.say.remote("slow", "1")
            await a.say.remote("quick", "2")
            await host.get(Person, "b").say.remote("quick", "3")
            await until(lambda: len(HEARD) == 2)
            assert sorted(await heard(host, "quick")) == ["2", "3"]
            GATES["gate"].set()
            await waiting
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "slow") == ["1"]

    run(main)


def test_guarantee_5_a_deleted_senders_messages_are_delivered() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a, b = host.get(Person, "a"), host.get(Person, "b")
            waiting = b.wait.remote("gate")
            await GATES.until_reached("gate")
            await a.say.remote("b", "1", "2")
            assert await a.delete()
            await host.crash()
            GATES["gate"].set()
            await waiting
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1", "2"]
            assert await host.list(Person) == ["b"], "delivering makes no sender"

    run(main)


# -- a receiver that cannot be reached ------------------------------------------------------------


def test_guarantee_5_a_crowded_receiver_is_tried_again_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a, b = host.get(Person, "a"), host.get(Person, "b")
            waiting = b.wait.remote("gate")
            await GATES.until_reached("gate")
            await a.say.remote("b")
            monkeypatch.setattr(activation_module, "WAITING_CALLS_MAX", 0)
            tries: list[float] = []
            core = host.core
            assert core is not None
            submit = core.courier._outgoing.submit

            def counted(call: Any, replied: Any, context: Any) -> None:
                tries.append(host.clock.now())
                submit(call, replied, context)

            monkeypatch.setattr(core.courier._outgoing, "submit", counted)
            await a.say.remote("b", "1", "2")
            await moved_until(host, lambda: len(tries) == 14, step_s=0.05)
            pauses = [after - before for before, after in itertools.pairwise(tries)]
            assert pauses[0] < 0.2
            assert pauses[-1] > 20
            assert max(pauses) < 40
            assert listed(host) == []
            assert [promise.failed for _, promise in promises(host, TELL)] == ["", ""]
            monkeypatch.undo()
            GATES["gate"].set()
            await waiting
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1", "2"]

    run(main)


def test_guarantee_5_a_receiver_that_lets_an_error_through_after_calling_others() -> None:
    """Its journal has that this id ended so: the next attempt needs a new one, or it would hear
    the old answer for ever."""

    async def main() -> None:
        async with LocalHost([Person]) as host:
            PLAN["crowded"] = True
            await host.get(Person, "a").ask.remote("b", "1")
            await moved_until(host, lambda: HEARD.count("1") >= 4)
            PLAN.clear()
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1"]
            # What it had asked of others before it raised is not undone.
            assert len(await heard(host, "friend")) >= 3

    run(main)


def test_guarantee_5_a_receiver_that_is_stopped_lists_the_call_itself() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            PLAN["gate"] = True
            await host.get(Person, "a").ask.remote("b", "1")
            await host.get(Person, "a").say.remote("b", "2")
            await GATES.until_reached("gate")
            PLAN["friend"] = "another"
            GATES["gate"].set()
            await host.kill()
            await moved_until(host, lambda: not promises(host, TELL))
            (failed,) = listed(host)
            assert (failed["kind"], failed["method"]) == ("intent", "pass_on")
            assert await heard(host, "b") == ["2"], "those behind go on"
            PLAN["friend"] = "friend"
            await settle(host.get(Person, "b"), "retry", "intent", failed["key"])
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["2", "1"]
            assert await heard(host, "friend") == ["1"]

    run(main)


# -- a method that keeps raising ------------------------------------------------------------------


def test_guarantee_5_a_message_that_fails_for_good_is_listed_and_the_next_goes() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a = host.get(Person, "a")
            PLAN["deaf"] = ("1", "3")
            began = host.clock.now()
            await a.say.remote("b", "1", "2", "3", "4")
            await ticks(200)
            assert HEARD == ["1"], "the next waits: there is an order"
            await host.evict(a)
            await moved_until(host, lambda: "2" in HEARD)
            assert HEARD.count("1") == 7, "6 repetitions"
            took_s = host.clock.now() - began
            assert 0.7 * 126 < took_s < 1.3 * 126 + 10, "2, 4, 8, 16, 32 and 64 s"
            await host.crash()
            await moved_until(host, lambda: "4" in HEARD)
            assert await heard(host, "b") == ["2", "4"]
            await moved_until(host, lambda: len(listed(host)) == 2)
            first, second = sorted(listed(host), key=lambda each: str(each["key"]))
            assert (first["kind"], first["method"], first["to"]) == ("tell", "hear", "Person/b")
            assert "what is 1?" in first["failed"]
            assert first["attempts"] == 6

            # They stay, through everything.
            await host.fold()
            await host.kill()
            await host.move(2 * FINISHED_WINDOW_S)
            assert len(listed(host)) == 2
            PLAN.clear()
            assert await settle(a, "retry", "tell", first["key"]) == "retried"
            assert await settle(a, "discard", "tell", second["key"]) == "discarded"
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["2", "4", "1"]
            with pytest.raises(InvalidCall, match="no tell"):
                await settle(a, "retry", "tell", first["key"])

    run(main)


def test_guarantee_5_a_retried_message_has_all_its_repetitions_again() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a = host.get(Person, "a")
            PLAN["deaf"] = ("1",)
            await a.say.remote("b", "1")
            for runs in (7, 14):
                await moved_until(host, lambda: listed(host))
                assert len(HEARD) == runs
                await settle(a, "retry", "tell", listed(host)[0]["key"])
            PLAN.clear()
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1"]

    run(main)


def test_guarantee_5_a_receiver_whose_class_is_not_deployed() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a = host.get(Person, "a")
            await a.tell_stranger.remote("meet")
            await moved_until(host, lambda: listed(host))
            (failed,) = listed(host)
            assert "Stranger" in failed["failed"]
            await host.deploy(Stranger)
            await settle(a, "retry", "tell", failed["key"])
            await moved_until(host, lambda: kept(host))
            assert await host.get(Stranger, "s").read.remote() == 1
            await a.tell_stranger.remote("greet")
            await moved_until(host, lambda: listed(host))
            assert "no method 'greet'" in listed(host)[0]["failed"]

    run(main)


def test_guarantee_5_a_message_that_is_too_old_is_not_guessed_at() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            a, b = host.get(Person, "a"), host.get(Person, "b")
            waiting = b.wait.remote("gate")
            await GATES.until_reached("gate")
            await a.say.remote("b", *map(str, range(2_000)))
            host.clock.move(HELD_WINDOW_S + 1)
            await host.kill()
            GATES["gate"].set()
            await moved_until(host, lambda: len(listed(host)) == 2_000)
            await waiting
            assert HEARD == []
            assert "so old" in listed(host)[0]["failed"]
            for each in listed(host)[:2]:
                await settle(a, "retry", "tell", each["key"])
            await moved_until(host, lambda: len(HEARD) == 2)

    run(main)


# -- bounds ---------------------------------------------------------------------------------------


def test_guarantee_8_messages_that_are_not_delivered_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier_module, "TOLD_MAX", 10)

    async def main() -> None:
        async with LocalHost([Person]) as host:
            a, b = host.get(Person, "a"), host.get(Person, "b")
            waiting = b.wait.remote("gate")
            await GATES.until_reached("gate")
            await a.say.remote("b", *map(str, range(9)))
            with pytest.raises(Overloaded, match="not delivered yet"):
                await a.say.remote("b", "9", "10")
            assert await a.say.remote("b", "9") == 10, "the other was rolled back"
            with pytest.raises(InvalidCall, match="one call may tell"):
                await host.get(Person, "c").say.remote("b", *map(str, range(11)))
            await host.get(Person, "c").say.remote("b", "of another")
            GATES["gate"].set()
            await waiting
            await moved_until(host, lambda: kept(host))
            assert len(await heard(host, "b")) == 11
            assert await a.say.remote("b", *map(str, range(10))) == 20

    run(main)


def test_guarantee_8_what_one_call_tells_fits_into_its_record() -> None:
    async def main() -> None:
        async with LocalHost([Person]) as host:
            with pytest.raises(InvalidCall, match="one call may write"):
                await host.get(Person, "a").say_large.remote("b", 10 * 2**20, 5)
            await host.get(Person, "a").say_large.remote("b", 10 * 2**20, 4)
            await moved_until(host, lambda: kept(host))
            assert [len(each) for each in HEARD] == [10 * 2**20] * 4

    run(main)


def test_guarantee_8_a_shard_full_of_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROMISES_MAX", 5)

    async def main() -> None:
        async with LocalHost([Person]) as host:
            waiting = host.get(Person, "b").wait.remote("gate")
            await GATES.until_reached("gate")
            await host.get(Person, "a").say.remote("b", *"12345")
            with pytest.raises(Overloaded, match="schedules and messages"):
                await host.get(Person, "c").say.remote("b", "6")
            assert host.shard is not None
            assert host.shard._indexes.promises.size < PROMISES_BYTES_MAX
            monkeypatch.setattr(room, "PROMISES_MAX", 100)
            monkeypatch.setattr(room, "PROMISES_BYTES_MAX", host.shard._indexes.promises.size)
            with pytest.raises(Overloaded, match=r"have .* bytes"):
                await host.get(Person, "c").say.remote("b", "6")
            GATES["gate"].set()
            await waiting
            await moved_until(host, lambda: kept(host))
            assert host.shard._indexes.promises.size == 0
            await host.get(Person, "c").say.remote("b", "6")

    run(main)


def test_guarantee_5_notes_wait_for_room_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note that came later than the next one would bring a delivered message back."""

    async def main() -> None:
        async with LocalHost([Person]) as host:
            PLAN["deaf"] = ("1",)
            await host.get(Person, "a").say.remote("b", "1", "2")
            with monkeypatch.context() as patch:
                patch.setattr(room, "MEMTABLE_BYTES_MAX", 0)
                for _ in range(20):
                    await host.move(1)
                    await ticks()
            PLAN.clear()
            await moved_until(host, lambda: kept(host))
            assert await heard(host, "b") == ["1", "2"]
            await host.crash()
            assert promises(host) == []
            assert await heard(host, "b") == ["1", "2"]

    run(main)


def test_guarantee_5_a_disk_that_fails_while_messages_are_delivered() -> None:
    """A call that failed may have been committed all the same, and then so are its messages."""

    async def main() -> None:
        async with LocalHost([Person]) as host:
            a = host.get(Person, "a")
            for skip in range(8):
                host.files.fail("sync", errno.EIO, name="journal", skip=skip)
                with contextlib.suppress(StorageFailed):
                    await a.say.remote("b", *(f"{skip}.{number}" for number in range(4)))
                await moved_until(host, lambda: core_lives(host) and kept(host))
            texts = await heard(host, "b")
            assert texts == sorted(set(texts))
            assert len(texts) == await a.say.remote("b")

    run(main)


def core_lives(host: LocalHost) -> bool:
    return host.core is not None and host.core.failed is None
