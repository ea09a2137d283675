"""examples/reminders.py on a host without Ray, with a clock that is moved."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from test_examples_local import example

import rayobjects as ro
from rayobjects.testing import LocalHost, LocalStub, ManualClock

reminders = example("reminders")

BEGINNING = datetime(2026, 3, 27, 12, tzinfo=UTC)  # a Friday; on Sunday the clocks go forward


def first_version() -> type[ro.DurableObject]:
    """What the class was, in part: the texts of all reminders in one attribute."""

    class Reminders(ro.DurableObject):
        made: int = ro.durable(0)
        rang: int = ro.durable(0)
        texts: dict[str, str] = ro.durable(factory=dict)

        def remind(self, text: str, after_s: float | None = None, every: str | None = None) -> str:
            self.made += 1
            key = f"{self.made:06}"
            self.schedule(self._ring, key, key=key, after=after_s, every=every, missed="last")
            self.texts[key] = text
            return key

        def on_connect(self, ws: ro.WebSocket) -> None:
            """Pages see what changes."""

        def _ring(self, key: str) -> None:
            raise AssertionError("not before the new version is there")

    return Reminders


def run(test: Callable[[LocalHost, LocalStub], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = ManualClock(BEGINNING.timestamp())
        async with LocalHost([reminders.Reminders], clock=clock) as host:
            await test(host, host.get("Reminders", "ann"))

    asyncio.run(main())


async def move(host: LocalHost, **time: float) -> None:
    """Moves the clock; what is due then rings before any call that comes later."""
    await host.move(timedelta(**time).total_seconds())


async def rung(ann: LocalStub) -> list[tuple[str, datetime]]:
    """What has rung and when, oldest first."""
    return [(each.text, each.at) for each in reversed(await ann.rung.remote())]


def test_once_after_a_while_and_at_a_time() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        tea = await host.post(ann, "remind", {"text": " Tea ", "after_s": 180})
        assert (tea["text"], tea["every"]) == ("Tea", "")
        assert datetime.fromisoformat(tea["due"]) == BEGINNING + timedelta(minutes=3)
        await host.post(ann, "remind", {"text": "Doctor", "at": "2026-03-27T14:30:00+01:00"})
        assert [each.text for each in await ann.upcoming.remote()] == ["Tea", "Doctor"]
        await move(host, seconds=179)
        assert await rung(ann) == []
        await move(host, seconds=1)
        assert await rung(ann) == [("Tea", BEGINNING + timedelta(minutes=3))]
        await host.crash()
        await move(host, hours=2)
        assert [text for text, _ in await rung(ann)] == ["Tea", "Doctor"]
        assert await ann.upcoming.remote() == []
        state = await host.state(ann)
        assert sorted(state["storage"]) == ["rung/000000000001", "rung/000000000002"]

    run(test)


def test_again_and_again_in_a_time_zone() -> None:
    """Nine o'clock stays nine o'clock when daylight saving begins."""

    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.remind.remote("Run", every="0 9 * * *", zone="Europe/Berlin")
        for day, hour in ((28, 8), (29, 7), (30, 7)):
            due = datetime(2026, 3, day, hour, tzinfo=UTC)
            (following,) = await ann.upcoming.remote()
            assert following.due == due
            await move(host, seconds=due.timestamp() - host.clock.now())
            assert (await rung(ann))[-1] == ("Run", due)
        assert len(await rung(ann)) == 3

    run(test)


def test_late_rather_than_never_and_once() -> None:
    """Everything is down for a week: each reminder rings once when it is up again."""

    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.remind.remote("Pill", every="0 */6 * * *")
        await ann.remind.remote("Call", after_s=3600)
        assert isinstance(host.clock, ManualClock)
        host.clock.move(timedelta(days=7).total_seconds())  # and nothing runs meanwhile
        await host.kill()
        await move(host, seconds=1)
        assert sorted(text for text, _ in await rung(ann)) == ["Call", "Pill"]
        (pill,) = await ann.upcoming.remote()
        assert pill.due == datetime(2026, 4, 3, 18, tzinfo=UTC)

    run(test)


def test_cancel_and_snooze() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        first = await ann.remind.remote("First", after_s=10)
        await ann.remind.remote("Second", after_s=20)
        assert await ann.cancel.remote(first.key)
        assert not await ann.cancel.remote(first.key)
        await move(host, seconds=30)
        assert [text for text, _ in await rung(ann)] == ["Second"]
        await ann.snooze.remote(1, 60)
        await move(host, seconds=60)
        assert [text for text, _ in await rung(ann)] == ["Second", "Second"]
        with pytest.raises(ro.MethodError, match="has the number 9"):
            await ann.snooze.remote(9)

    run(test)


@pytest.mark.parametrize("end", ["live", "asleep", "power failure"])
def test_reminders_of_the_first_version_ring_in_the_second(end: str) -> None:
    async def test() -> None:
        clock = ManualClock(BEGINNING.timestamp())
        async with LocalHost([first_version()], clock=clock) as host:
            ann = host.get("Reminders", "ann")
            await ann.remind.remote("Tea", after_s=60)
            cake = await ann.remind.remote("Cake", after_s=90)
            await ann.remind.remote("Pill", every="0 */6 * * *")
            socket = await host.connect(ann) if end == "live" else None
            if end == "asleep":
                await host.evict(ann)
            await host.deploy(reminders.Reminders)
            if end == "power failure":
                await host.crash()
            assert [each.text for each in await ann.upcoming.remote()] == ["Tea", "Cake", "Pill"]
            state = await host.state(ann)
            assert state["attributes"]["texts"] == {}
            assert state["storage"] == {
                "text/000001": "Tea",
                "text/000002": "Cake",
                "text/000003": "Pill",
            }
            await ann.cancel.remote(cake)
            await ann.remind.remote("Nap", after_s=120)
            await move(host, minutes=5)
            assert [text for text, _ in await rung(ann)] == ["Tea", "Nap"]
            await host.crash()
            await move(host, hours=6)
            assert [text for text, _ in await rung(ann)] == ["Tea", "Nap", "Pill"]
            if socket is not None:
                assert json.loads(socket.received[-1])["rung"][0]["text"] == "Pill"

    asyncio.run(asyncio.wait_for(test(), 60))


def test_one_that_rings_at_once_in_the_second_version() -> None:
    """What wakes the object is its old schedule: it is converted before."""

    async def test() -> None:
        clock = ManualClock(BEGINNING.timestamp())
        async with LocalHost([first_version()], clock=clock) as host:
            ann = host.get("Reminders", "ann")
            await ann.remind.remote("Tea", after_s=60)
            await host.evict(ann)
            await host.deploy(reminders.Reminders)
            await move(host, minutes=1)
            assert await rung(ann) == [("Tea", BEGINNING + timedelta(minutes=1))]

    asyncio.run(asyncio.wait_for(test(), 60))


def test_pages_see_it_ring() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        socket = await host.connect(ann)
        await ann.remind.remote("Tea", after_s=5)
        await host.evict(ann)  # it sleeps; the socket stays
        await move(host, seconds=5)
        shown = [json.loads(await socket.receive()) for _ in range(3)]
        assert [
            (len(each["upcoming"]), [rung["text"] for rung in each["rung"]]) for each in shown
        ] == [(0, []), (1, []), (0, ["Tea"])]

    run(test)


def test_only_the_last_ones_that_have_rung_are_kept() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        for number in range(reminders.RUNG_KEPT + 3):
            await ann.remind.remote(f"number {number}", after_s=0)
            await move(host, seconds=1)
        kept = await ann.rung.remote()
        assert len(kept) == reminders.RUNG_KEPT
        assert kept[0].text == f"number {reminders.RUNG_KEPT + 2}"

    run(test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": " ", "after_s": 1}, "a reminder has"),
        ({"text": "x" * 201, "after_s": 1}, "a reminder has"),
        ({"text": "x"}, "one of at=, after= and every="),
        ({"text": "x", "after_s": 1, "every": "* * * * *"}, "one of at=, after= and every="),
        ({"text": "x", "at": "2026-03-27T14:30:00"}, "no time zone"),
        ({"text": "x", "every": "9 o'clock"}, "no cron expression"),
        ({"text": "x", "every": "0 9 * * *", "zone": "Berlin"}, "no time zone 'Berlin'"),
        ({"text": "x", "at": "tomorrow"}, "at"),
    ],
)
def test_mistakes(arguments: dict[str, Any], message: str) -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        with pytest.raises(ro.RayObjectsError, match=message):
            await host.post(ann, "remind", arguments)
        assert await ann.upcoming.remote() == []
        assert await host.list("Reminders") == []

    run(test)
