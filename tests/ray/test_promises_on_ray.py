"""Schedules, told messages and begun calls on Ray: kept though nobody calls, listed, settled."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli_input import run

import rayobjects as ro
from rayobjects.runtime import admin, class_changes

WITHIN_S = 60.0


class Diary(ro.DurableObject):
    notes: list[str] = ro.durable(factory=list)

    def write(self, text: str) -> None:
        self.notes.append(text)

    @ro.concurrent
    async def read(self) -> list[str]:
        return self.notes

    def plan(self, text: str, after_s: float, key: str) -> None:
        self.schedule(self.write, text, after=after_s, key=key)

    @ro.retries(0)
    def refuse(self) -> None:
        raise ValueError("not today")

    def plan_refusal(self) -> None:
        self.schedule(self.refuse, after=0, key="refusal")

    def unplan(self, key: str) -> bool:
        return self.unschedule(key)

    def tell(self, other: ro.Stub, texts: list[str], gate: str = "") -> None:
        for text in texts:
            other.write_when.tell(text, gate)

    async def write_when(self, text: str, gate: str) -> None:
        """Waits until a file exists, then writes."""
        while gate and not Path(gate).exists():  # noqa: ASYNC110, ASYNC240  another process makes it
            await asyncio.sleep(0.01)
        self.notes.append(text)

    async def write_slowly(self, other: ro.Stub, gate: str) -> None:
        """Writes there, then waits until a file exists, then writes here."""
        await other.write.remote("there")
        await self.write_when("here", gate)


class Scribe(Diary):
    """One whose class is deleted."""


class Journal(Diary):
    """One whose class gets another name."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def notes(stub: ro.Stub) -> list[str]:
    found: list[str] = stub.read.remote().result(WITHIN_S)
    return found


def kill_hosts() -> None:
    for host in admin.status().hosts:
        if "pid" in host.figures:
            os.kill(host.figures["pid"], signal.SIGKILL)


def test_a_schedule_fires(hosting: str) -> None:
    diary = ro.deploy(Diary).get("soon")
    diary.plan.remote("now", 0.2, "k").result(WITHIN_S)
    until(lambda: notes(diary) == ["now"])


def test_a_told_message_arrives_once_and_in_order_though_hosts_die(hosting: str) -> None:
    diaries = ro.deploy(Diary)
    sender, receiver = diaries.get("sender"), diaries.get("receiver")
    notes(receiver)
    texts = [str(number) for number in range(50)]
    sender.tell.remote(receiver, texts).result(WITHIN_S)
    kill_hosts()
    until(lambda: len(notes(receiver)) >= len(texts))
    assert notes(receiver) == texts


def test_a_begun_call_is_ended_by_its_host_though_nobody_asks(hosting: str, tmp_path: Path) -> None:
    diaries = ro.deploy(Diary)
    first, second = diaries.get("first"), diaries.get("second")
    gate = tmp_path / "gate"
    response = first.write_slowly.remote(second, str(gate))
    until(lambda: notes(second) == ["there"])
    kill_hosts()
    del response
    gate.touch()
    until(lambda: notes(first) == ["here"])
    assert notes(second) == ["there"], "it was called again, and applied once"


def test_what_objects_of_a_deleted_class_had_told_is_delivered(
    hosting: str, tmp_path: Path
) -> None:
    receiver, scribe = ro.deploy(Diary).get("reader"), ro.deploy(Scribe).get("s")
    gate, texts = tmp_path / "gate", ["a", "b", "c"]
    scribe.tell.remote(receiver, texts, str(gate)).result(WITHIN_S)
    assert class_changes.delete_class("Scribe") == 1
    assert notes(receiver) == []
    gate.touch()
    until(lambda: notes(receiver) == texts)


def test_what_is_told_by_a_new_name_comes_after_what_was_told_by_the_old_one(
    hosting: str, tmp_path: Path
) -> None:
    sender, journal = ro.deploy(Diary).get("teller"), ro.deploy(Journal).get("j")
    gate = tmp_path / "gate"
    sender.tell.remote(journal, ["a", "b"], str(gate)).result(WITHIN_S)
    class_changes.rename_class("Journal", "Chronicle")
    renamed = ro.namespace("Chronicle").get("j")
    sender.tell.remote(renamed, ["c"]).result(WITHIN_S)
    kill_hosts()
    gate.touch()
    until(lambda: len(notes(renamed)) == 3)
    assert notes(renamed) == ["a", "b", "c"]
    class_changes.delete_class("Chronicle")


def test_a_call_that_is_taken_back_while_its_host_is_dead_is_not_made(hosting: str) -> None:
    diary = ro.deploy(Diary).get("changes its mind")
    diary.write.remote("a").result(WITHIN_S)
    kill_hosts()
    unwanted, wanted = diary.write.remote("b"), diary.write.remote("c")
    unwanted.cancel()
    with pytest.raises(ro.Cancelled):
        unwanted.result(WITHIN_S)
    wanted.result(WITHIN_S)
    assert notes(diary) == ["a", "c"]


def test_lists_and_settling(
    hosting: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    diary = ro.deploy(Diary).get("listed")
    diary.plan.remote("later", 3_600.0, "hour").result(WITHIN_S)
    diary.plan_refusal.remote().result(WITHIN_S)

    def listed(*arguments: str) -> list[dict[str, object]]:
        code, out, error = run(capsys, "schedules", "Diary", "--json", *arguments)
        assert (code, error) == (0, "")
        found: list[dict[str, object]] = json.loads(out)
        return [each for each in found if each["name"] == "listed"]

    until(lambda: [each["key"] for each in listed("--failed")] == ["refusal"])
    assert sorted(str(each["key"]) for each in listed()) == ["hour", "refusal"]
    code, out, _ = run(capsys, "schedules")
    assert code == 0
    assert "Diary/listed" in out
    assert "not today" in out
    assert "in 1 h" in out or "in 60 min" in out
    code, _, error = run(capsys, "retry", "Diary", "listed", "schedule", "refusal")
    assert code == 0, error
    until(lambda: [each["key"] for each in listed("--failed")] == ["refusal"])
    for key in ("refusal", "hour"):
        code, _, error = run(capsys, "discard", "Diary", "listed", "schedule", key)
        assert code == 0, error
    assert listed() == []
    code, _, error = run(capsys, "discard", "Diary", "listed", "schedule", "hour")
    assert code == 1
    assert "has no schedule 'hour'" in error
    code, out, error = run(capsys, "intents", "--json")
    assert (code, json.loads(out)) == (0, [])
