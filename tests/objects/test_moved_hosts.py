"""Callers that look for a host which is none any more."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from rayobjects.errors import Unavailable
from rayobjects.messages import PICKLE, REDIRECT, Call, Reply
from rayobjects.runtime import placement
from rayobjects.runtime.configuration import Configuration
from rayobjects.runtime.follow import Follow

CONFIGURATION = Configuration("test", "", 2, "shared", 60.0, 30.0, "")


def test_ray_is_not_begun_anew_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By asking it for an actor, after ray.shutdown()."""
    asked: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: asked.append(name))
    with pytest.raises(Unavailable, match="disconnected this process"):
        placement.locate_blocking(placement.shard_host(0), None)
    assert not asked


def test_the_old_host_need_not_keep_its_redirection() -> None:
    """Nobody else would say so to it: the call goes to another."""

    class Double:
        def __init__(self) -> None:
            self.id = "process"
            self.acknowledged: list[int] = []
            self.moving: list[str] = []

        def acknowledge(self, number: int) -> None:
            self.acknowledged.append(number)

        def redirected(self, call: Call, *_: object) -> None:
            self.moving.append(call.id)

    both: Any = Double()
    for context in (object(), None):
        call = Call(7, "Model", "a", "call", PICKLE, b"")
        follow = Follow(both, both, call, lambda outcome: None, context, 0)  # type: ignore[arg-type]
        follow.number = 7
        follow(Reply(7, REDIRECT, b""))
    assert both.acknowledged == [7]
    assert both.moving == ["process:7", "process:7"]
