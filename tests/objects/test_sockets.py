"""The object's side of WebSockets: what collects in a call, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from objects_double import Live, MemoryLedger

from rayobjects.errors import InvalidCall, Overloaded
from rayobjects.limits import ATTACHMENT_BYTES_MAX, SOCKET_MESSAGE_BYTES_MAX, SOCKETS_MAX
from rayobjects.messages import BINARY, CLOSE, TEXT, Send
from rayobjects.objects.model import DurableObject
from rayobjects.storage.records import SocketChange


class Room(DurableObject):
    pass


def room(*sockets: tuple[str, str]) -> Live:
    live = Live(Room, MemoryLedger())
    for id, gateway in sockets:
        live.call(lambda r, id=id, gateway=gateway: r.sockets.opened(id, gateway))
    return live


def test_opening_sees_query_and_headers_once() -> None:
    live = room()

    def connect(r: Room) -> Any:
        ws = r.sockets.opened("a", "g1", "name=Ada&x=", [("Cookie", "a"), ("cookie", "b")])
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
        r.sockets.opened("b", "g2")
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
        ws = r.sockets.opened("b", "g2")
        ws.send("full")
        ws.close(4003, "full")
        r.sockets.broadcast("someone knocked")
        return ws

    ws = live.call(refuse)
    assert ws.refused == (4003, "full")
    assert live.changes.sockets == []
    assert [send.gateway for send in live.changes.sends] == ["g1"]


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
        live.call(lambda r: r.sockets.opened("one more", "g"))
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
