"""What a gateway makes of an object's messages for one socket."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rayobjects.messages import AUTO, BINARY, CLOSE, TAGS, TEXT, Send, decode_tags, encode
from rayobjects.objects.auto_response import encoded_pairs
from rayobjects.objects.delivery import Delivery

PING = {(TEXT, b"ping"): (TEXT, b"pong")}


def auto(pairs: Any) -> Send:
    return Send("g", AUTO, encoded_pairs(pairs).encode())


def tags(*names: str) -> Send:
    return Send("g", TAGS, encode(list(names)))


SENDS = st.one_of(
    st.builds(
        lambda data, tag: Send("g", TEXT, data, tag=tag),
        st.binary(max_size=2),
        st.sampled_from(["", "red", "blue"]),
    ),
    st.lists(st.sampled_from(["red", "blue"]), max_size=2).map(lambda names: tags(*names)),
    st.sampled_from([{}, PING]).map(auto),
    st.just(Send("g", CLOSE, b"", 1000)),
)


RUNS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6)


@given(st.lists(SENDS, max_size=20), RUNS)
def test_guarantee_6_once_and_in_order_however_often_it_comes(
    sends: Any, runs: list[tuple[int, int]]
) -> None:
    """Pushes come again from wherever the host's acknowledged ones end."""
    at = [(1 + number // 3, number % 3) for number in range(len(sends))]
    expected: list[int] = []
    now: set[str] = set()
    for number, send in enumerate(sends):
        if send.kind == TAGS:
            now = set(decode_tags(send.data))
        elif send.kind != AUTO and (not send.tag or send.tag in now):
            expected.append(number)
    delivery = Delivery()
    taken: list[int] = []
    had = 0
    for begin, end in [*runs, (0, len(sends))]:
        for number in range(min(begin, had), min(end, len(sends))):
            if delivery.take(at[number], sends[number]):
                taken.append(number)
            had = max(had, number + 1)
    assert taken == expected
    assert delivery.tags == now


def test_what_came_before_the_socket_is_not_its_own() -> None:
    delivery = Delivery()
    assert delivery.take((5, 0), auto(PING)) is False
    assert delivery.answer(TEXT, b"ping") == (TEXT, b"pong")
    delivery.begin(7)
    assert delivery.answer(TEXT, b"ping") is None
    assert not delivery.take((6, 0), Send("g", TEXT, b"old"))
    assert delivery.take((7, 0), Send("g", TEXT, b"new"))


def test_what_came_with_the_socket_is() -> None:
    delivery = Delivery()
    delivery.take((5, 0), auto({}))
    delivery.take((7, 0), auto(PING))
    delivery.take((7, 1), tags("red"))
    delivery.begin(7)
    assert delivery.answer(TEXT, b"ping") == (TEXT, b"pong")
    assert delivery.answer(BINARY, b"ping") is None
    assert delivery.answer(TEXT, b"pong") is None
    assert delivery.tags == {"red"}
    assert not delivery.take((7, 1), tags())  # a repetition
    assert delivery.tags == {"red"}
