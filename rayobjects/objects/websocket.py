"""One WebSocket of an object, as its methods see it. What it does collects in `Sockets`, and leaves
with the call's record when that is on disk; a call that raises has sent nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from rayobjects.errors import misuse
from rayobjects.limits import (
    SOCKET_MESSAGE_BYTES_MAX,
    SOCKET_TAG_BYTES_MAX,
    SOCKET_TAGS_MAX,
)
from rayobjects.messages import BINARY, TEXT, Send

if TYPE_CHECKING:
    from rayobjects.objects.sockets import Sockets

T = TypeVar("T")

_REASON_BYTES_MAX = 123
"""RFC 6455: a control frame carries 125 bytes, two of them are the code."""

_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
"""Close codes that an application may send, besides 3000 to 4999."""


_TAGS_HINT = "keep what tells sockets apart in ws.attachment, or in self.storage"


class WebSocket:
    """A client's WebSocket. Handed out by the runtime; the same one within an activation.

    Attributes:
        id: the socket's id, made by its gateway.
        refused: (code, reason) if `on_connect` closed it: the client is not let in.
    """

    __slots__ = (
        "_headers",
        "_query",
        "_sockets",
        "_subprotocols",
        "gateway",
        "id",
        "refused",
    )

    def __init__(self, sockets: Sockets, id: str, gateway: str) -> None:
        self._sockets = sockets
        self._query: dict[str, str] | None = None
        self._headers: dict[str, str] | None = None
        self._subprotocols: list[str] | None = None
        self.id = id
        self.gateway = gateway
        self.refused: tuple[int, str] | None = None

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the opening request's address; only in `on_connect`."""
        return _of_opening(self._query, "query")

    @property
    def headers(self) -> dict[str, str]:
        """The opening request's headers, names in lower case; only in `on_connect`."""
        return _of_opening(self._headers, "headers")

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers to speak, what it likes best first; only in `on_connect`."""
        return list(_of_opening(self._subprotocols, "subprotocols"))

    @property
    def subprotocol(self) -> str:
        """What is spoken: one of `subprotocols` that `on_connect` has assigned here, or "". A
        browser that offered some breaks the connection off if none is chosen.

        Raises (on assignment):
            RuntimeError: it is not `on_connect` that assigns it.
            ValueError: the client does not offer it.
        """
        return self._sockets._subprotocol(self.id)

    @subprotocol.setter
    def subprotocol(self, value: str) -> None:
        offered = _of_opening(self._subprotocols, "subprotocol")
        if value not in offered:
            raise ValueError(
                f"the client does not offer the subprotocol {value!r}, but {offered}: choose one "
                "of ws.subprotocols, or ws.close(1002)"
            )
        self._sockets._set_subprotocol(self.id, value)

    @property
    def tags(self) -> tuple[str, ...]:
        """What tells groups of sockets apart, for `self.sockets(tag=…)` and
        `self.sockets.broadcast(…, tag=…)`; they survive sleep and restarts. Assign a list, in
        `on_connect` or later.

        Raises (on assignment):
            TypeError: it is no list of strings.
            InvalidCall: there are more than 10, or one has more than 256 bytes.
        """
        return self._sockets._tags(self.id)

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        self._sockets._set_tags(self.id, _checked_tags(tags))

    def tag(self, *tags: str) -> None:
        """Adds tags; raises what assigning `tags` raises."""
        self.tags = (*self.tags, *tags)

    @property
    def attachment(self) -> Any:
        """What the object attached to this socket, None if nothing; survives sleep and restarts.

        At most 16 KiB, encoded. Changes inside a list or dict are noticed when the call ends.
        """
        return self._sockets._read_attachment(self.id)

    @attachment.setter
    def attachment(self, value: Any) -> None:
        self._sockets._attach(self.id, value)

    def send(self, data: str | bytes) -> None:
        """Sends a message when the call has committed; to a socket that is closed, nothing.

        Raises:
            TypeError: it is neither text nor bytes.
            InvalidCall: it has more than 1 MiB.
        """
        kind, encoded = encoded_message(data)
        self._sockets._send(self, Send(self.gateway, kind, encoded, 0, (self.id,)))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the socket when the call has committed. `on_close` is not called for it. In
        `on_connect` it refuses the client.

        Raises:
            ValueError: the code is none that may be sent, or the reason has over 123 bytes.
        """
        if type(code) is not int or not (code in _CODES or 3000 <= code <= 4999):
            raise ValueError(f"{code!r} is no close code: use 1000, or 4000 to 4999 for your own")
        encoded = reason.encode()
        if len(encoded) > _REASON_BYTES_MAX:
            raise ValueError(
                f"a close reason has at most {_REASON_BYTES_MAX} bytes of UTF-8, this one has "
                f"{len(encoded)}"
            )
        self._sockets._close(self, code, encoded)

    def __repr__(self) -> str:
        return f"<WebSocket {self.id}>"


def encoded_message(data: str | bytes) -> tuple[int, bytes]:
    """A message as (TEXT or BINARY, bytes).

    Raises:
        TypeError: it is neither text nor bytes.
        InvalidCall: it has more than 1 MiB, or is no UTF-8.
    """
    if isinstance(data, str):
        try:
            kind, encoded = TEXT, data.encode()
        except UnicodeEncodeError:
            raise misuse(
                "a text message must be UTF-8: remove the lone surrogates, or send bytes"
            ) from None
    elif isinstance(data, bytes | bytearray | memoryview):
        kind, encoded = BINARY, bytes(data)
    else:
        raise TypeError(
            f"a socket takes str or bytes, not {type(data).__name__}: send json.dumps(…)"
        )
    if len(encoded) > SOCKET_MESSAGE_BYTES_MAX:
        raise misuse(
            f"a WebSocket message has at most {SOCKET_MESSAGE_BYTES_MAX:,} bytes, this one has "
            f"{len(encoded):,}: split it"
        )
    return kind, encoded


def _checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise TypeError(f"ws.tags is a list of strings: write [{tags!r}]")
    found = tuple(dict.fromkeys(tags))
    for tag in found:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is a string, not {type(tag).__name__}")
        if not tag or len(tag.encode(errors="replace")) > SOCKET_TAG_BYTES_MAX:
            raise misuse(
                f"a tag has 1 to {SOCKET_TAG_BYTES_MAX} bytes of UTF-8, {tag[:40]!r} has "
                f"{len(tag.encode(errors='replace'))}: {_TAGS_HINT}"
            )
    if len(found) > SOCKET_TAGS_MAX:
        raise misuse(
            f"a socket has at most {SOCKET_TAGS_MAX} tags, this one would have {len(found)}: "
            f"{_TAGS_HINT}"
        )
    return found


def _of_opening(values: T | None, name: str) -> T:
    if values is None:
        raise RuntimeError(
            f"ws.{name} is there in on_connect only: keep what you need of it in ws.attachment"
        )
    return values
