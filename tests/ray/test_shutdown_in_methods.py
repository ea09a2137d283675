"""`ro.shutdown()` in a method: it is refused, and the host's own calls go on."""

from __future__ import annotations

import threading

import pytest

import rayobjects as ro

WITHIN_S = 30.0


class Meddler(ro.DurableObject):
    notes: int = ro.durable(0)

    def leave(self) -> None:
        ro.shutdown()

    def leave_by_a_thread(self) -> str:
        raised: list[Exception] = []

        def leave() -> None:
            try:
                ro.shutdown()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        return str(raised[0]) if raised else ""

    def note(self) -> int:
        self.notes += 1
        return self.notes

    async def pass_on(self, name: str) -> int:
        return int(await ro.namespace("Meddler").get(name).note.remote())


def test_calls_of_other_objects_of_the_host_are_answered(hosting: str) -> None:
    meddlers = ro.deploy(Meddler)
    assert meddlers.get("a").pass_on.remote("b").result(timeout_s=WITHIN_S) == 1
    with pytest.raises(ro.MethodError, match="belongs to programs"):
        meddlers.get("a").leave.remote().result(timeout_s=WITHIN_S)
    said = meddlers.get("a").leave_by_a_thread.remote().result(timeout_s=WITHIN_S)
    assert "belongs to programs" in said
    for number, name in enumerate("acd"):
        answer = meddlers.get(name).pass_on.remote("b").result(timeout_s=WITHIN_S)
        assert answer == 2 + number


def test_a_program_leaves_and_comes_back(hosting: str) -> None:
    meddlers = ro.deploy(Meddler)
    assert meddlers.get("e").note.remote().result(timeout_s=WITHIN_S) == 1
    under_way = [meddlers.get("f").note.remote() for _ in range(100)]
    ro.shutdown()
    for call in under_way:  # each has its reply, or is told
        try:
            assert call.result(timeout_s=WITHIN_S) > 0
        except ro.Unavailable:
            pass
    assert meddlers.get("e").note.remote().result(timeout_s=WITHIN_S) == 2
