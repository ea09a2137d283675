"""Durable attributes: what is noticed, what is written, what comes back."""

from __future__ import annotations

import itertools
import pickle
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from objects_double import Live, MemoryLedger

import rayobjects.storage.records as records
from rayobjects.errors import InvalidCall
from rayobjects.objects.fields import Field, durable
from rayobjects.objects.model import DurableObject
from rayobjects.objects.state import NO_CHANGES

_made = itertools.count()


@dataclass
class Point:
    x: int = 0


class Game(DurableObject):
    count: int = durable(0)
    items: list[Any] = durable(factory=list)
    token: str = durable(factory=lambda: f"token-{next(_made)}")
    start: Point | None = durable(None)
    pair: tuple[Any, ...] = durable((1, 2))

    def __init__(self) -> None:
        self.plain = 0


def increment(game: Game) -> int:
    game.count += 1
    return game.count


def live() -> Live:
    return Live(Game, MemoryLedger())


def test_assigned_values_are_written_and_come_back() -> None:
    game = live()
    assert game.call(increment) == 1
    assert game.changes.writes == [("@count", records.JSON, b"1")]
    assert game.call(increment) == 2
    assert game.reloaded().instance.count == 2


def test_reading_writes_nothing() -> None:
    game = live()
    game.call(lambda g: (g.count, g.items, g.pair, g.start))
    assert game.changes is NO_CHANGES or not game.changes
    assert not game.state.exists


def test_an_equal_value_is_no_change() -> None:
    game = live()
    game.call(increment)
    game.call(lambda g: setattr(g, "count", 1))
    assert not game.changes


@pytest.mark.parametrize("change", [lambda v: v.append(1), lambda v: v.extend([{"a": []}])])
def test_changes_inside_a_list_are_noticed(change: Any) -> None:
    game = live()
    game.call(lambda g: change(g.items))
    first = list(game.instance.items)
    assert first
    assert game.reloaded().instance.items == first
    game.call(lambda g: change(g.items))
    assert len(game.reloaded().instance.items) == 2


def test_nested_changes_are_noticed_after_reloading() -> None:
    game = live()
    game.call(lambda g: g.items.append({"tags": []}))
    again = game.reloaded()
    again.call(lambda g: g.items[0]["tags"].append("x"))
    assert again.reloaded().instance.items == [{"tags": ["x"]}]


def test_pickled_values_are_noticed_and_only_reading_them_is_no_change() -> None:
    game = live()
    game.call(lambda g: setattr(g, "start", Point(1)))
    again = game.reloaded()
    again.call(lambda g: g.start.x)
    assert not again.changes
    again.call(lambda g: setattr(g.start, "x", 5))
    assert again.changes.writes[0][0] == "@start"
    assert again.reloaded().instance.start == Point(5)


def test_a_call_that_raises_changes_nothing() -> None:
    game = live()
    game.call(lambda g: g.items.append("kept"))
    game.call(increment)

    def fail(g: Game) -> None:
        g.count = 100
        g.items.append("lost")
        g.start = Point(3)
        g.plain = 1
        del g.pair
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        game.call(fail)
    assert (game.instance.count, game.instance.items, game.instance.start) == (1, ["kept"], None)
    assert game.instance.plain == 1
    assert not game.ledger.unsynced


def test_deleting_gives_the_default_back() -> None:
    game = live()
    game.call(lambda g: (increment(g), g.items.append(1)))

    def reset(g: Game) -> tuple[int, list[Any]]:
        del g.count
        del g.items
        return g.count, g.items

    assert game.call(reset) == (0, [])
    assert {(key, kind) for key, kind, _ in game.changes.writes} == {
        ("@count", records.DELETED),
        ("@items", records.DELETED),
    }
    assert (game.reloaded().instance.count, game.reloaded().instance.items) == (0, [])


def test_a_default_that_is_changed_after_deleting_is_written() -> None:
    game = live()
    game.call(lambda g: g.items.append(1))

    def replace(g: Game) -> None:
        del g.items
        g.items.append(2)

    game.call(replace)
    assert game.reloaded().instance.items == [2]


def test_what_a_factory_makes_up_is_kept_from_the_first_read() -> None:
    game = live()
    token = game.call(lambda g: g.token)
    assert game.reloaded().instance.token == token
    assert game.call(lambda g: g.token) == token
    assert not game.changes


def test_values_do_not_share_their_insides() -> None:
    game = live()

    def share(g: Game) -> None:
        g.items = shared = [1]
        g.pair = (shared, 2)

    game.call(share)
    game.call(lambda g: g.items.append(2))
    assert game.instance.pair == ([1], 2)
    assert game.reloaded().instance.pair == ([1], 2)


def test_objects_do_not_share_defaults() -> None:
    ledger = MemoryLedger()
    one, two = Live(Game, ledger, "one"), Live(Game, ledger, "two")
    one.call(lambda g: g.items.append(1))
    assert two.instance.items == []


def test_a_value_that_cannot_be_stored_names_its_attribute() -> None:
    game = live()
    with pytest.raises(InvalidCall, match=r"'start' of Game/one cannot be stored: a .*lock"):
        game.call(lambda g: setattr(g, "start", __import__("threading").Lock()))
    assert game.instance.start is None
    with pytest.raises(InvalidCall, match="at most 8,388,608 bytes"):
        game.call(lambda g: setattr(g, "items", ["x" * 9_000_000]))
    with pytest.raises(InvalidCall, match="one call may write"):
        game.call(lambda g: [g.storage.update({str(i): "x" * 8_000_000}) for i in range(7)])
    assert game.instance.items == []


def test_nothing_is_written_between_calls() -> None:
    game = live()
    with pytest.raises(RuntimeError, match="only be written while"):
        game.instance.count = 1
    with pytest.raises(RuntimeError, match="only be written while"):
        del game.instance.count
    game.instance.items.append("stray")
    assert game.call(lambda g: g.items) == []


def test_assigning_in_init_is_refused() -> None:
    class Eager(DurableObject):
        count: int = durable(0)

        def __init__(self) -> None:
            self.count = 5

    with pytest.raises(RuntimeError, match="not in __init__"):
        Live(Eager, MemoryLedger())


def test_fields_are_inherited_and_overridden() -> None:
    class Base(DurableObject):
        a: int = durable(1)
        b: int = durable(2)

    class Derived(Base):
        @property
        def b(self) -> int:  # type: ignore[override]  # no longer durable
            return 7

        c: int = durable(3)

    from rayobjects.objects.fields import fields_of

    assert set(fields_of(Derived)) == {"a", "c"}
    assert isinstance(Derived.c, Field)
    assert Live(Derived, MemoryLedger()).instance.a == 1


def test_a_value_in_the_place_of_an_inherited_field_is_refused() -> None:
    says = r"Wrong\.count takes the place .*write `count = ro\.durable\({}\)`"
    with pytest.raises(TypeError, match=says.format(5)):
        type("Wrong", (Game,), {"count": 5})
    with pytest.raises(TypeError, match=says.format("…")):
        type("Wrong", (Game,), {"count": [5]})
    with pytest.raises(TypeError, match=says.format("'x'")):
        type("Wrong", (type("Mixin", (), {"count": "x"}), Game), {})

    class Durably(Game):
        count: int = durable(5)

    assert Live(Durably, MemoryLedger()).instance.count == 5


@pytest.mark.parametrize("default", [[], {}, set(), bytearray(), ([],)])
def test_mutable_defaults_are_refused(default: Any) -> None:
    with pytest.raises(TypeError, match="factory="):
        durable(default)


@pytest.mark.parametrize(
    ("default", "hint"),
    [
        *((list, "list"), (list[int], "list"), (Point, "Point"), (live, "live")),
        *((time.time, "time"), (lambda: [], "…")),
    ],
)
def test_a_factory_without_its_name_is_refused(default: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"itself, .*write durable\(factory={hint}\)"):
        durable(default)


def test_durable_needs_exactly_one_of_default_and_factory() -> None:
    with pytest.raises(TypeError, match="needs a default"):
        durable()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not both"):
        durable(0, factory=int)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is a function"):
        durable(factory=3)  # type: ignore[call-overload]


def test_objects_are_made_by_the_runtime_only() -> None:
    with pytest.raises(TypeError, match=r"ro\.deploy\(Game\)\.get"):
        Game()
    with pytest.raises(TypeError, match="pass its name, or a stub"):
        pickle.dumps(live().instance)


def test_class_options() -> None:
    class Model(DurableObject, hosting="dedicated", ray_options={"num_gpus": 1}):
        pass

    class Child(Model):
        pass

    assert Child._durable_options.hosting == "dedicated"
    assert Child._durable_options.ray_options == {"num_gpus": 1}
    with pytest.raises(TypeError, match="unknown class options: hostin"):
        type("Wrong", (DurableObject,), {}, hostin="x")
    with pytest.raises(TypeError, match="'shared' or 'dedicated'"):
        type("Wrong", (DurableObject,), {}, hosting="own")
    with pytest.raises(TypeError, match="is a dict of Ray actor options"):
        type("Wrong", (DurableObject,), {}, ray_options=3)
    with pytest.raises(TypeError, match="without arguments"):
        type("Wrong", (DurableObject,), {"__init__": lambda self, x: None})
    for name in ("storage", "turn", "now", "schedule", "on_start"):
        with pytest.raises(TypeError, match=f"Wrong.{name} is the runtime's.* another name"):
            type("Wrong", (DurableObject,), {name: durable(0)})

    class Fine(DurableObject):
        constant: ClassVar[list[int]] = []
        NAMES = ["a"]  # noqa: RUF012
        cache: dict[str, int] | None = None

    with pytest.raises(TypeError, match=r"Wrong.xs would be one list .*durable\(factory=list\)"):

        class Wrong(DurableObject):
            xs: list[int] = []  # noqa: RUF012  (which is the mistake)

    class Mixin:
        def delete(self, key: str) -> None:
            pass

    with pytest.raises(TypeError, match=r"`stub.delete`\): choose another name"):
        type("Wrong", (Mixin, DurableObject), {})


@pytest.mark.parametrize(
    ("name", "hook", "written"),
    [
        ("on_start", lambda self, x: None, r"on_start\(self\)"),
        ("on_stop", lambda: None, r"on_stop\(self\)"),
        ("on_upgrade", lambda self: None, r"on_upgrade\(self, from_version\)"),
        ("on_connect", lambda self, *, ws: None, r"on_connect\(self, ws\)"),
        ("on_message", lambda self, data: None, r"on_message\(self, ws, data\)"),
        ("on_close", lambda self, ws: None, r"on_close\(self, ws, code, reason\)"),
        ("on_request", 5, r"on_request\(self, request\)"),
    ],
)
def test_hooks_take_what_the_runtime_gives_them(name: str, hook: Any, written: str) -> None:
    with pytest.raises(TypeError, match=rf"Wrong\.{name} is called .*write `def {written}`"):
        type("Wrong", (DurableObject,), {name: hook})
    with pytest.raises(TypeError, match=r"Wrong\."):
        type("Wrong", (type("Mixin", (), {name: hook}), DurableObject), {})
    for fine in (lambda *_: None, lambda *args, more=1, **_: None, None):
        type("Fine", (DurableObject,), {name: fine})


def test_deleting_the_object_leaves_nothing() -> None:
    game = live()
    game.call(lambda g: (increment(g), g.items.append(1), g.storage.update(a=1)))
    assert game.state.exists
    game.call(lambda g: game.state.delete())
    assert game.changes.delete
    assert not game.state.exists
    assert (game.instance.count, game.instance.items, dict(game.instance.storage)) == (0, [], {})
    assert game.reloaded().instance.count == 0
    assert game.call(increment) == 1


def test_a_delete_that_is_rolled_back_has_not_happened() -> None:
    game = live()
    game.call(increment)
    game.state.begin()
    game.state.delete()
    game.state.rollback()
    assert game.instance.count == 1


def test_to_json_shows_all_there_is() -> None:
    game = live()
    game.call(lambda g: (increment(g), setattr(g, "start", Point(2))))
    game.call(lambda g: g.storage.update({"b": {1, 2}, "a": [1], "c": object}))
    shown = game.state.to_json()
    assert shown["attributes"] == {
        "count": 1,
        "items": [],
        "token": shown["attributes"]["token"],
        "start": {"x": 2},
        "pair": [1, 2],
    }
    assert shown["storage"] == {"a": [1], "b": [1, 2], "c": {"$python": "<class 'object'>"}}
    assert game.state.to_json(limit=2)["truncated"] is True
