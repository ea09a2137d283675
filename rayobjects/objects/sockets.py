"""The object's WebSockets, as its methods see them.

A socket itself lives in its gateway; the object knows its id, its gateway and what it attached to
it. Whatever a call does to its sockets collects here and leaves with the call's record, or not at
all:

    ws.send, broadcast    a `Send` for the gateway; a broadcast is one for each gateway
    ws.close              a `Send` of kind CLOSE, and the socket is gone from `self.sockets`
    ws.attachment = …     a `SocketChange`, as are opening and closing
    ws.tags = …           both: the object keeps them, and the gateway delivers by them
    auto_response(…)      a durable value of the object, and a `Send` that tells the gateways

An object may die between any two steps: what is committed is in the journal until the gateways
have acknowledged it, what is not has never happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from rayobjects.errors import InvalidCall, Overloaded, misuse
from rayobjects.limits import ATTACHMENT_BYTES_MAX, SOCKETS_MAX
from rayobjects.messages import AUTO, CLOSE, TAGS, Send, SocketEvent, encode
from rayobjects.objects import auto_response
from rayobjects.objects.fields import Entry, is_immutable
from rayobjects.objects.http import join_headers, parse_query
from rayobjects.objects.websocket import WebSocket, encoded_message
from rayobjects.storage.records import DELETED, SocketChange
from rayobjects.storage.values import decode_value, encode_value

if TYPE_CHECKING:
    from rayobjects.objects.state import State

_NONE: Entry = (DELETED, b"")
_OBJECT_GONE = 1001


class Sockets:
    """`self.sockets`: the object's open sockets, in the order in which they were opened.

    Attributes:
        touched: the running call did something here that `commit` or `rollback` must end.
    """

    __slots__ = (
        "_baselines",
        "_changed",
        "_gateways",
        "_handles",
        "_live",
        "_open",
        "_opened",
        "_order",
        "_prepared",
        "_read",
        "_sends",
        "_state",
        "_tagged",
        "touched",
    )

    def __init__(self, state: State, loaded: Sequence[SocketChange] = ()) -> None:
        state.sockets = self  # its calls' ends are those of the state
        self._state = state
        self.touched = False
        self._open = {change.socket: change for change in loaded if change.open}
        """As the running call sees them."""
        self._gateways: dict[str, int] | None = None
        """How many of the open sockets each gateway holds; counted when first needed."""
        self._tagged: dict[str, dict[str, None]] | None = None
        """Tag → ids of the open sockets that have it; made when first needed."""
        self._handles: dict[str, WebSocket] = {}
        self._live: dict[str, Any] = {}
        """Attachments, decoded."""
        self._baselines: dict[str, Entry] = {}
        self._changed: dict[str, SocketChange | None] = {}
        """Sockets that the call changed → what they were before, None if they were not there."""
        self._opened: dict[str, WebSocket] = {}
        """Sockets that the call opened."""
        self._order: list[str] | None = None
        """The ids in their order, before the call took the first one away."""
        self._read: dict[str, bool] = {}
        """Sockets whose attachment the call assigned (True) or read and may have changed."""
        self._sends: list[Send] = []
        self._prepared: dict[str, SocketChange] | None = None

    # For methods.

    def __iter__(self) -> Iterator[WebSocket]:
        for id in list(self._open):
            if id in self._open:
                yield self._handle(id)

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, socket: object) -> bool:
        return (socket.id if isinstance(socket, WebSocket) else socket) in self._open

    def __call__(self, tag: str | None = None) -> list[WebSocket]:
        """The open sockets that have this tag, or all."""
        ids = self._open if tag is None else self._with_tag(tag)
        return [self._handle(id) for id in ids]

    def get(self, socket_id: str) -> WebSocket | None:
        """The open socket with this id, or None."""
        return self._handle(socket_id) if socket_id in self._open else None

    def broadcast(
        self,
        data: str | bytes,
        *,
        tag: str | None = None,
        exclude: WebSocket | str | Iterable[WebSocket | str] | None = None,
    ) -> None:
        """Sends a message to all open sockets when the call has committed. It crosses to each
        gateway once.

        Args:
            data: text or bytes, at most 1 MiB.
            tag: only sockets that have this tag get it.
            exclude: a socket, a socket's id, or several, that do not get it.

        Raises:
            TypeError: the data is neither text nor bytes.
            InvalidCall: it has more than 1 MiB.
        """
        kind, encoded = encoded_message(data)
        self._state.check_running()
        if not self._open:
            return
        excluded: dict[str, list[str]] = {}
        for id in _ids(exclude):
            change = self._open.get(id)
            if change is None or (tag is not None and tag not in change.tags):
                continue
            if id not in excluded.get(change.gateway, ()):
                excluded.setdefault(change.gateway, []).append(id)
        counts = self._counts() if tag is None else self._counts_of(self._with_tag(tag))
        for gateway, count in counts.items():
            without = tuple(excluded.get(gateway, ()))
            if count > len(without):
                self._sends.append(Send(gateway, kind, encoded, 0, None, without, tag or ""))
                self.touched = True

    def auto_response(self, request: str | bytes, response: str | bytes | None) -> None:
        """From now on a message that equals `request` is answered with `response` by the gateway,
        for every socket of this object, and does not wake it. Durable; to say the same again costs
        nothing, so `on_connect` is a good place. The answer may overtake those to messages that
        the object has to deal with.

        Args:
            request: text or bytes, at most 2 KiB.
            response: text or bytes, at most 2 KiB; None: such messages go to `on_message` again.

        Raises:
            TypeError: one is neither text nor bytes.
            InvalidCall: one is too long, or there are more than 10.
            RuntimeError: no call is under way.
        """
        asked = auto_response.checked(request)
        self._state.check_running()
        before = self._auto()
        pairs = auto_response.decoded_pairs(before)
        pairs.pop(asked, None)
        if response is not None:
            pairs[asked] = auto_response.checked(response)
        auto_response.check_count(pairs)
        if pairs == auto_response.decoded_pairs(before):
            return
        text = auto_response.encoded_pairs(pairs)
        self._state.assign(auto_response.FIELD.key, text)
        for gateway in self._counts():
            self._sends.append(Send(gateway, AUTO, text.encode()))
            self.touched = True

    @property
    def auto_responses(self) -> dict[str | bytes, str | bytes]:
        """What is answered by the gateway: request → response."""
        pairs = auto_response.decoded_pairs(self._auto())
        plain = auto_response.plain
        return {plain(request): plain(response) for request, response in pairs.items()}

    def __repr__(self) -> str:
        return f"<{len(self._open)} sockets>"

    # For the runtime, inside of a call.

    def opened(self, event: SocketEvent) -> WebSocket:
        """A client connects: adds its socket, for `on_connect`.

        Raises:
            Overloaded: the object has 32,768 open sockets.
        """
        if len(self._open) >= SOCKETS_MAX:
            raise Overloaded(
                f"an object has at most {SOCKETS_MAX:,} open sockets: spread the clients over "
                "several objects"
            )
        self.touched = True
        id = event.socket
        self._remember(id)
        self._put(id, SocketChange(id, event.gateway))
        socket = self._handle(id)
        socket._query = parse_query(event.query)
        socket._headers = join_headers(event.headers)
        socket._subprotocols = event.subprotocols
        self._opened[id] = socket
        pairs = self._auto()
        if pairs:
            self._sends.append(Send(event.gateway, AUTO, pairs.encode(), 0, (id,)))
        return socket

    def closed(self, socket_id: str) -> WebSocket | None:
        """A client is gone: takes its socket away, for `on_close`.

        Returns:
            The socket, or None if the object does not have it (any more): then there is nothing
            to tell it.
        """
        if socket_id not in self._open:
            return None
        socket = self._handle(socket_id)
        self._read_attachment(socket_id)  # on_close may want to see it
        self.touched = True
        self._remember(socket_id)
        self._put(socket_id, None)
        return socket

    # For the state: the end of the call.

    def changes(self) -> tuple[list[SocketChange], list[Send], int]:
        """What the call did: changed sockets, messages, and the bytes of both.

        Raises:
            InvalidCall: an attachment is too large or cannot be pickled.
        """
        if not self.touched:
            return [], [], 0
        changed: dict[str, SocketChange] = {}
        size = 0
        for id, before in self._changed.items():
            now = self._open.get(id)
            if now is not None:
                changed[id] = now
            elif before is not None:
                changed[id] = SocketChange(id, before.gateway, False)
        for id, assigned in self._read.items():
            now = self._open.get(id)
            if now is None:
                continue
            entry = self._encoded(id)
            before_entry = (now.attachment_encoding, now.attachment)
            if entry == (before_entry if assigned else self._baselines.get(id, before_entry)):
                continue
            changed[id] = replace(now, attachment_encoding=entry[0], attachment=entry[1])
            size += len(entry[1])
        sends = self._sends
        if self._opened:
            refused = {id for id, socket in self._opened.items() if socket.refused is not None}
            if refused:
                sends = [s for s in sends if s.sockets is None or s.sockets[0] not in refused]
        size += sum(len(send.data) for send in sends)
        self._prepared = changed
        return list(changed.values()), list(sends), size

    def commit(self) -> None:
        """The call has committed."""
        prepared = self._prepared or {}
        for id, change in prepared.items():
            if change.open:
                self._open[id] = change
            else:
                self._handles.pop(id, None)
        for id, assigned in self._read.items():
            if assigned or id in prepared or id not in self._open:
                # As with attributes: what was stored or changed is decoded afresh next time.
                self._live.pop(id, None)
                self._baselines.pop(id, None)
        for id in self._changed:
            if id not in self._open:
                self._handles.pop(id, None)
                self._live.pop(id, None)
                self._baselines.pop(id, None)
        self._end()

    def rollback(self) -> None:
        """The call has not happened."""
        for id, before in self._changed.items():
            if before is None:
                self._handles.pop(id, None)
            if before is not self._open.get(id):
                self._put(id, before)
        if self._order is not None:
            self._open = {id: self._open[id] for id in self._order if id in self._open}
            self._tagged = None
        for id in (*self._changed, *self._read):
            self._live.pop(id, None)
            self._baselines.pop(id, None)
        self._end()

    def closing(self) -> list[Send]:
        """The messages that close all sockets, for an object that is deleted."""
        return farewells(self._counts())

    def forget(self) -> None:
        """The object was deleted: there are no sockets any more."""
        self._end()
        self._open.clear()
        self._gateways = self._tagged = None
        self._handles.clear()
        self._live.clear()
        self._baselines.clear()

    # Inside.

    def _end(self) -> None:
        for socket in self._opened.values():
            socket._query = socket._headers = socket._subprotocols = None
        self._changed.clear()
        self._opened.clear()
        self._read.clear()
        self._sends = []
        self._order = None
        self._prepared = None
        self.touched = False

    def _handle(self, id: str) -> WebSocket:
        socket = self._handles.get(id)
        if socket is None:
            socket = self._handles[id] = WebSocket(self, id, self._open[id].gateway)
        return socket

    def _remember(self, id: str) -> None:
        if id not in self._changed:
            self._changed[id] = self._open.get(id)

    def _put(self, id: str, change: SocketChange | None) -> None:
        """Sets what the running call sees of a socket, None for gone."""
        before = self._open.get(id)
        if self._gateways is not None:
            for part, step in ((before, -1), (change, 1)):
                if part is not None:
                    count = self._gateways.get(part.gateway, 0) + step
                    self._gateways[part.gateway] = count
                    if count == 0:
                        del self._gateways[part.gateway]
        if self._tagged is not None:
            old, new = before.tags if before else (), change.tags if change else ()
            for tag in old:
                if tag not in new:
                    self._tagged[tag].pop(id, None)
                    if not self._tagged[tag]:
                        del self._tagged[tag]
            for tag in new:
                self._tagged.setdefault(tag, {})[id] = None
        if change is None:
            if self._order is None:
                self._order = list(self._open)
            self._open.pop(id, None)
        else:
            self._open[id] = change

    def _counts(self) -> dict[str, int]:
        if self._gateways is None:
            self._gateways = self._counts_of(self._open)
        return self._gateways

    def _counts_of(self, ids: Iterable[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for id in ids:
            gateway = self._open[id].gateway
            counts[gateway] = counts.get(gateway, 0) + 1
        return counts

    def _with_tag(self, tag: str) -> Iterable[str]:
        if self._tagged is None:
            self._tagged = {}
            for id, change in self._open.items():
                for each in change.tags:
                    self._tagged.setdefault(each, {})[id] = None
        return self._tagged.get(tag, ())

    def _auto(self) -> str:
        text: str | None = self._state.live.get(auto_response.FIELD.key)
        if text is None:
            text = self._state.read_attribute(auto_response.FIELD)
        return text or ""

    def _tags(self, id: str) -> tuple[str, ...]:
        change = self._open.get(id) or self._changed.get(id)
        return change.tags if change is not None else ()

    def _set_tags(self, id: str, tags: tuple[str, ...]) -> None:
        self._state.check_running()
        change = self._open.get(id)
        if change is not None and change.tags != tags:
            self._change(replace(change, tags=tags))
            self._sends.append(Send(change.gateway, TAGS, encode(tags), 0, (id,)))

    def _subprotocol(self, id: str) -> str:
        change = self._open.get(id) or self._changed.get(id)
        return change.subprotocol if change is not None else ""

    def _set_subprotocol(self, id: str, subprotocol: str) -> None:
        change = self._open.get(id)
        if change is not None:
            self._change(replace(change, subprotocol=subprotocol))

    def _change(self, change: SocketChange) -> None:
        self.touched = True
        self._remember(change.socket)
        self._put(change.socket, change)

    def _send(self, socket: WebSocket, send: Send) -> None:
        self._state.check_running()
        if socket.id in self._open:
            self._sends.append(send)
            self.touched = True

    def _close(self, socket: WebSocket, code: int, reason: bytes) -> None:
        self._state.check_running()
        if socket.id not in self._open:
            return
        if socket.id in self._opened:
            socket.refused = (code, reason.decode())
        else:
            self._sends.append(Send(socket.gateway, CLOSE, reason, code, (socket.id,)))
        self.touched = True
        self._remember(socket.id)
        self._put(socket.id, None)

    def _read_attachment(self, id: str) -> Any:
        if id in self._live:
            value = self._live[id]
            if id not in self._read and not is_immutable(value):
                self._read[id] = False
                self.touched = True
            return value
        change = self._open.get(id)
        if change is None or change.attachment_encoding == DELETED:
            return None
        value = decode_value(change.attachment_encoding, change.attachment)
        self._live[id] = value
        if not is_immutable(value):
            self._baselines[id] = encode_value(value)
            self._read[id] = False
            self.touched = True
        return value

    def _attach(self, id: str, value: Any) -> None:
        self._state.check_running()
        if id not in self._open:
            return
        self._live[id] = value
        self._read[id] = True
        self.touched = True

    def _encoded(self, id: str) -> Entry:
        value = self._live[id]
        if value is None:
            return _NONE
        try:
            entry = encode_value(value)
        except InvalidCall as error:
            raise misuse(f"the attachment of a socket cannot be stored: {error}") from error
        if len(entry[1]) > ATTACHMENT_BYTES_MAX:
            raise misuse(
                f"a socket's attachment has at most {ATTACHMENT_BYTES_MAX:,} bytes, this one has "
                f"{len(entry[1]):,}: keep the rest in self.storage, under a key of the socket"
            )
        return entry


def _ids(exclude: WebSocket | str | Iterable[WebSocket | str] | None) -> list[str]:
    if exclude is None:
        return []
    if isinstance(exclude, WebSocket | str):
        exclude = (exclude,)
    return [socket.id if isinstance(socket, WebSocket) else socket for socket in exclude]


def farewells(gateways: Iterable[str]) -> list[Send]:
    """The messages that close all sockets of an object that is deleted."""
    return [Send(each, CLOSE, b"the object was deleted", _OBJECT_GONE) for each in gateways]
