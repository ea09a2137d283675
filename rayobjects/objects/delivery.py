"""What a gateway keeps of one socket: what it has had of its object's messages, and what the object
said of it.

An object's messages reach a gateway in the object's order, each perhaps again after the host has
died. Their position (sequence, index) only grows, so what lies not beyond the socket's own is a
repetition (guarantee 6). The position begins with the reply to `on_connect`: the socket gets what
that call sent and everything later. Messages may overtake that reply, so the gateway keeps what it
has taken until then, and drops what turns out to be older (`begin`).

Tags and auto responses come the same way, as messages that the client does not see. So a message
for a tag finds the tags that the socket had when it was sent.

Nothing in here survives the gateway, and nothing needs to: its sockets do not either.
"""

from __future__ import annotations

from rayobjects.messages import AUTO, TAGS, Send, decode_tags
from rayobjects.objects.auto_response import Message, decoded_pairs

Position = tuple[int, int]

START: Position = (0, -1)


class Delivery:
    """One socket's.

    Attributes:
        position: of the last message that it took.
        tags: its tags.
    """

    __slots__ = ("_auto", "_auto_at", "position", "tags")

    def __init__(self) -> None:
        self.position = START
        self.tags: frozenset[str] = frozenset()
        self._auto: dict[Message, Message] = {}
        self._auto_at = START

    def take(self, position: Position, send: Send) -> bool:
        """Takes a message that is for this socket, or for all; returns whether the client is to
        have it: not if it had it before, or lacks the tag."""
        if position <= self.position:
            return False
        if send.kind == TAGS:
            self.tags = frozenset(decode_tags(send.data))
        elif send.kind == AUTO:
            self._auto, self._auto_at = decoded_pairs(send.data), position
        elif send.tag and send.tag not in self.tags:
            return False
        self.position = position
        return send.kind not in (TAGS, AUTO)

    def begin(self, sequence: int) -> None:
        """`on_connect` was record `sequence`: what came before was none of this socket's."""
        start = (sequence, -1)
        self.position = max(self.position, start)
        if self._auto_at < start:
            self._auto = {}

    def answer(self, kind: int, data: bytes) -> Message | None:
        """What is answered to a message of the client without asking the object."""
        return self._auto.get((kind, data)) if self._auto else None
