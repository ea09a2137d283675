"""The object's side of WebSockets: what collects in a call, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from objects_double import Live, MemoryLedger

from rayobjects.errors import InvalidCall, Overloaded
from rayobjects.limits import (
    ATTACHMENT_BYTES_MAX,
    AUTO_RESPONSE_BYTES_MAX,
    AUTO_RESPONSES_MAX,
    SOCKET_MESSAGE_BYTES_MAX,
    SOCKETS_MAX,
)
from rayobjects.messages import AUTO, BINARY, CLOSE, TAGS, TEXT, Send, SocketEvent, encode
from rayobjects.objects.model import DurableObject
from rayobjects.storage.records import SocketChange


class Room(DurableObject):
    pass


def room(*sockets: tuple[str, str]) -> Live:
    live = Live(Room, MemoryLedger())
    for id, gateway in sockets:
        live.call(lambda r, id=id, gateway=gateway: r.sockets.opened(SocketEvent(id, gateway)))
    return live


def test_opening_sees_query_and_headers_once() -> None:
    live = room()

    def connect(r: Room) -> Any:
        headers = [("Cookie", "a"), ("cookie", "b")]
        event = SocketEvent("a", "g1", query="name=Ada&x=", headers=headers)
        ws = r.sockets.opened(event)
        assert ws.query == {"name": "Ada", "x": ""}
        assert ws.headers == {"cookie": "a, b"}
        ws.attachment = {"name": ws.query["name"]}
        ws.send("welcome")
        return ws

    ws = live.call(connect)
    assert [change.socket for change in live.changes.sockets] == ["a"]
    assert live.changes.sends == [Send("g1", TEXT, b"welcome", 0, ("a",))]
    with pytest.raises(RuntimeError, match="on_connect only"):
        _ = ws.query
    again = live.reloaded()
    assert [s.id for s in again.instance.sockets] == ["a"]
    assert again.instance.sockets.get("a").attachment == {"name": "Ada"}
    assert again.instance.sockets.get("b") is None
    assert "a" in again.instance.sockets


def test_a_broadcast_crosses_to_each_gateway_once() -> None:
    live = room(("a", "g1"), ("b", "g1"), ("c", "g2"))
    live.call(lambda r: r.sockets.broadcast(b"x"))
    assert live.changes.sends == [Send("g1", BINARY, b"x"), Send("g2", BINARY, b"x")]
    live.call(lambda r: r.sockets.broadcast("x", exclude=r.sockets.get("a")))
    assert [send.exclude for send in live.changes.sends] == [("a",), ()]
    live.call(lambda r: r.sockets.broadcast("x", exclude=["c", "nobody", "c"]))
    assert [send.gateway for send in live.changes.sends] == ["g1"]


def test_rollback_drops_everything() -> None:
    live = room(("a", "g1"))

    def fail(r: Room) -> None:
        r.sockets.opened(SocketEvent("b", "g2"))
        r.sockets.get("a").attachment = 1
        r.sockets.broadcast("x")
        r.sockets.get("a").close()
        assert [s.id for s in r.sockets] == ["b"]
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (raised just above)
        live.call(fail)
    assert [s.id for s in live.instance.sockets] == ["a"]
    assert live.instance.sockets.get("a").attachment is None
    live.call(lambda r: r.sockets.broadcast("x"))
    assert [send.gateway for send in live.changes.sends] == ["g1"]


def test_rollback_keeps_the_order() -> None:
    live = room(("a", "g1"), ("b", "g1"), ("c", "g1"))
    live.call(lambda r: [ws.tag("x") for ws in r.sockets])

    def fail(r: Room) -> None:
        r.sockets.get("a").close()
        r.sockets.opened(SocketEvent("d", "g1"))
        r.sockets.get("d").close()
        assert [ws.id for ws in r.sockets("x")] == ["b", "c"]
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (raised just above)
        live.call(fail)
    assert [ws.id for ws in live.instance.sockets] == ["a", "b", "c"]
    assert [ws.id for ws in live.instance.sockets(tag="x")] == ["a", "b", "c"]


def test_closing() -> None:
    live = room(("a", "g1"), ("b", "g1"))

    def close(r: Room) -> None:
        ws = r.sockets.get("a")
        ws.send("bye")
        ws.close(4001, "enough")
        ws.send("too late")
        assert len(r.sockets) == 1

    live.call(close)
    assert [send.kind for send in live.changes.sends] == [TEXT, CLOSE]
    assert live.changes.sends[1] == Send("g1", CLOSE, b"enough", 4001, ("a",))
    assert live.changes.sockets == [SocketChange("a", "g1", False)]
    assert live.call(lambda r: r.sockets.closed("a")) is None
    assert not live.changes


def test_the_other_side_closes() -> None:
    live = room(("a", "g1"), ("b", "g1"))
    live.call(lambda r: setattr(r.sockets.get("a"), "attachment", ["Ada"]))

    def leave(r: Room) -> Any:
        ws = r.sockets.closed("a")
        assert ws.attachment == ["Ada"]
        ws.send("nobody hears this")
        ws.attachment = 3
        r.sockets.broadcast("Ada left")

    live.call(leave)
    assert live.changes.sockets == [SocketChange("a", "g1", False)]
    assert [send.data for send in live.changes.sends] == [b"Ada left"]
    assert len(live.reloaded().instance.sockets) == 1


def test_refusing_a_connection_leaves_nothing_of_the_socket() -> None:
    live = room(("a", "g1"))

    def refuse(r: Room) -> Any:
        ws = r.sockets.opened(SocketEvent("b", "g2"))
        ws.send("full")
        ws.close(4003, "full")
        r.sockets.broadcast("someone knocked")
        return ws

    ws = live.call(refuse)
    assert ws.refused == (4003, "full")
    assert live.changes.sockets == []
    assert [send.gateway for send in live.changes.sends] == ["g1"]


def test_tags() -> None:
    live = room(("a", "g1"), ("b", "g1"), ("c", "g2"))

    def tag(r: Room) -> None:
        a, b, c = r.sockets
        assert a.tags == ()
        a.tags = ["red", "tall", "red"]
        b.tag("red")
        c.tag("blue")
        assert [ws.id for ws in r.sockets(tag="red")] == ["a", "b"]
        assert [ws.id for ws in r.sockets()] == ["a", "b", "c"]
        r.sockets.broadcast("x", tag="red")

    live.call(tag)
    assert live.changes.sends[0] == Send("g1", TAGS, encode(["red", "tall"]), 0, ("a",))
    # A message for a tag goes after the tags, and only where there are any.
    assert live.changes.sends[3:] == [Send("g1", TEXT, b"x", tag="red")]
    live = live.reloaded()
    assert [ws.tags for ws in live.instance.sockets] == [("red", "tall"), ("red",), ("blue",)]
    live.call(lambda r: r.sockets.broadcast("x", tag="red", exclude=["a", "c"]))
    assert live.changes.sends == [Send("g1", TEXT, b"x", exclude=("a",), tag="red")]
    live.call(lambda r: r.sockets.broadcast("x", tag="red", exclude=["a", "b"]))
    assert not live.changes
    live.call(lambda r: r.sockets.get("a").tag("red"))  # it has it
    assert not live.changes

    def change(r: Room) -> None:
        a = r.sockets.get("a")
        a.tags = ["blue"]
        a.attachment = "kept beside"
        assert [ws.id for ws in r.sockets(tag="red")] == ["b"]
        r.sockets.get("b").close()
        assert r.sockets(tag="red") == []
        assert r.sockets.get("c").tags == ("blue",)

    def fail(r: Room) -> None:
        change(r)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (raised just above)
        live.call(fail)
    assert {ws.id for ws in live.instance.sockets(tag="red")} == {"a", "b"}
    assert {ws.id for ws in live.instance.sockets(tag="blue")} == {"c"}
    live.call(change)
    for sockets in (live.instance.sockets, live.reloaded().instance.sockets):
        assert {ws.id for ws in sockets(tag="blue")} == {"a", "c"}
        assert sockets(tag="tall") == []
        assert sockets.get("a").attachment == "kept beside"


@pytest.mark.parametrize(
    ("tags", "error", "words"),
    [
        ("red", TypeError, "list of strings"),
        ([1], TypeError, "string, not int"),
        ([""], InvalidCall, "1 to 256"),
        (["ä" * 129], InvalidCall, "1 to 256"),
        ([str(n) for n in range(11)], InvalidCall, "at most 10 tags"),
    ],
)
def test_wrong_tags(tags: Any, error: type[Exception], words: str) -> None:
    live = room(("a", "g1"))
    with pytest.raises(error, match=words):
        live.call(lambda r: setattr(r.sockets.get("a"), "tags", tags))


def test_auto_responses() -> None:
    live = room(("a", "g1"), ("b", "g2"))
    live.call(lambda r: r.sockets.auto_response("ping", "pong"))
    text = live.changes.sends[0].data
    assert live.changes.sends == [Send("g1", AUTO, text), Send("g2", AUTO, text)]
    live.call(lambda r: r.sockets.auto_response("ping", "pong"))
    assert not live.changes  # to say it again costs nothing
    live = live.reloaded()
    assert live.instance.sockets.auto_responses == {"ping": "pong"}
    live.call(lambda r: r.sockets.opened(SocketEvent("c", "g3")))
    assert live.changes.sends == [Send("g3", AUTO, text, 0, ("c",))]

    def change(r: Room) -> None:
        r.sockets.auto_response(b"\x09", b"\x0a")
        r.sockets.auto_response("ping", None)
        r.sockets.auto_response("never there", None)
        assert r.sockets.auto_responses == {b"\x09": b"\x0a"}

    def fail(r: Room) -> None:
        change(r)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (raised just above)
        live.call(fail)
    assert live.instance.sockets.auto_responses == {"ping": "pong"}
    live.call(change)
    assert live.reloaded().instance.sockets.auto_responses == {b"\x09": b"\x0a"}
    with pytest.raises(RuntimeError, match="only be written while"):
        live.instance.sockets.auto_response("x", "y")
    live.call(lambda r: live.state.delete())
    assert live.instance.sockets.auto_responses == {}


@pytest.mark.parametrize(
    ("request_", "response", "error", "words"),
    [
        ("x" * (AUTO_RESPONSE_BYTES_MAX + 1), "y", InvalidCall, "2,048 bytes"),
        ("x", b"y" * (AUTO_RESPONSE_BYTES_MAX + 1), InvalidCall, "2,048 bytes"),
        ("x", 3, TypeError, "not int"),
        ("\ud800", "x", InvalidCall, "UTF-8"),
    ],
)
def test_wrong_auto_responses(
    request_: Any, response: Any, error: type[Exception], words: str
) -> None:
    live = room(("a", "g1"))
    with pytest.raises(error, match=words):
        live.call(lambda r: r.sockets.auto_response(request_, response))


def test_the_number_of_auto_responses_is_bounded() -> None:
    live = room(("a", "g1"))
    for number in range(AUTO_RESPONSES_MAX):
        live.call(lambda r, n=str(number): r.sockets.auto_response(n, n))
    with pytest.raises(InvalidCall, match="at most 10 auto responses"):
        live.call(lambda r: r.sockets.auto_response("one more", "x"))
    live.call(lambda r: r.sockets.auto_response("0", "another answer"))
    assert live.instance.sockets.auto_responses["0"] == "another answer"


def test_subprotocols() -> None:
    live = room()

    def connect(r: Room) -> Any:
        ws = r.sockets.opened(SocketEvent("a", "g1", subprotocols=["v1", "v2"]))
        assert ws.subprotocols == ["v1", "v2"]
        assert ws.subprotocol == ""
        with pytest.raises(ValueError, match="does not offer"):
            ws.subprotocol = "v3"
        ws.subprotocol = "v2"
        ws.attachment = 1
        return ws

    ws = live.call(connect)
    live.call(lambda r: r.sockets.opened(SocketEvent("b", "g1")))
    assert ws.subprotocol == "v2"
    with pytest.raises(RuntimeError, match="on_connect only"):
        _ = ws.subprotocols
    with pytest.raises(RuntimeError, match="on_connect only"):
        live.call(lambda r: setattr(r.sockets.get("a"), "subprotocol", "v1"))
    again = live.reloaded().instance.sockets
    assert [socket.subprotocol for socket in again] == ["v2", ""]


def test_attachments_are_noticed_like_attributes() -> None:
    live = room(("a", "g1"))
    live.call(lambda r: setattr(r.sockets.get("a"), "attachment", {"n": 0}))
    live.call(lambda r: r.sockets.get("a").attachment["n"])
    assert not live.changes
    live.call(lambda r: r.sockets.get("a").attachment.update(n=1))
    assert len(live.changes.sockets) == 1
    live = live.reloaded()
    assert live.instance.sockets.get("a").attachment == {"n": 1}
    live.call(lambda r: setattr(r.sockets.get("a"), "attachment", None))
    assert live.reloaded().instance.sockets.get("a").attachment is None
    with pytest.raises(InvalidCall, match="attachment has at most 16,384"):
        live.call(lambda r: setattr(r.sockets.get("a"), "attachment", "x" * ATTACHMENT_BYTES_MAX))


def test_guarantee_3_what_is_done_to_an_attachment_between_two_calls_is_no_calls() -> None:
    """By a task that outlives the call which began it."""
    live = room(("a", "g1"))
    live.call(lambda r: setattr(r.sockets.get("a"), "attachment", {"n": 0}))
    outlives: list[Any] = []
    live.call(lambda r: outlives.append(r.sockets.get("a")))
    outlives[0].attachment["n"] = 99
    live.call(lambda r: None)
    assert not live.changes
    assert live.reloaded().instance.sockets.get("a").attachment == {"n": 0}


@pytest.mark.parametrize("data", [{"a": 1}, ["a"], 3, None])
def test_only_text_and_bytes_are_sent(data: Any) -> None:
    live = room(("a", "g1"))
    with pytest.raises(TypeError, match=r"json\.dumps"):
        live.call(lambda r: r.sockets.get("a").send(data))
    with pytest.raises(TypeError, match=r"json\.dumps"):
        live.call(lambda r: r.sockets.broadcast(data))


def test_limits() -> None:
    live = room(("a", "g1"))
    ws = live.instance.sockets.get("a")
    with pytest.raises(InvalidCall, match="1,048,576"):
        live.call(lambda r: ws.send("x" * (SOCKET_MESSAGE_BYTES_MAX + 1)))
    live.call(lambda r: ws.send("x" * SOCKET_MESSAGE_BYTES_MAX))
    with pytest.raises(InvalidCall, match="UTF-8"):
        live.call(lambda r: ws.send("\ud800"))
    for code in (0, 1005, 1006, 2000, 5000, True):
        with pytest.raises(ValueError, match="close code"):
            live.call(lambda r, code=code: ws.close(code))
    with pytest.raises(ValueError, match="123"):
        live.call(lambda r: ws.close(1000, "ä" * 62))
    with pytest.raises(RuntimeError, match="only be written while"):
        ws.send("x")


def test_the_number_of_sockets_is_bounded() -> None:
    ledger = MemoryLedger()
    live = Live(Room, ledger)
    ledger.open[live.id] = {str(i): SocketChange(str(i), "g") for i in range(SOCKETS_MAX)}
    live = live.reloaded()
    with pytest.raises(Overloaded, match="32,768"):
        live.call(lambda r: r.sockets.opened(SocketEvent("one more", "g")))
    live.call(lambda r: r.sockets.broadcast("x"))
    assert len(live.changes.sends) == 1


def test_deleting_the_object_closes_its_sockets() -> None:
    live = room(("a", "g1"), ("b", "g2"))
    live.call(lambda r: live.state.delete())
    assert [(s.gateway, s.kind, s.code) for s in live.changes.sends] == [
        ("g1", CLOSE, 1001),
        ("g2", CLOSE, 1001),
    ]
    assert len(live.instance.sockets) == 0
