"""What gateways answer for an object that sleeps: `self.sockets.auto_response("ping", "pong")`.

The pairs are a durable value of the object, under a key that no attribute can have, so they live
and die with its state: a call that raises has not set them, a restart finds them, a deleted object
has none. Each gateway learns them through the object's own messages (`AUTO`), in order with the
others and repeated like them after a crash: all sockets when the pairs change, a new one with its
opening. So every socket answers by what the object had said last, whoever died in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from rayobjects.errors import misuse
from rayobjects.limits import AUTO_RESPONSE_BYTES_MAX, AUTO_RESPONSES_MAX
from rayobjects.messages import BINARY, TEXT
from rayobjects.objects.fields import Field

Data = str | bytes

Message = tuple[int, bytes]
"""TEXT or BINARY, and the bytes."""

FIELD = Field("", None)
FIELD.__set_name__(object, "sockets.auto_response")

_decode = msgspec.json.Decoder(list[tuple[int, bytes, int, bytes]]).decode


def encoded_pairs(pairs: Mapping[Message, Message]) -> str:
    """The pairs as they are stored and sent; "" for none."""
    return msgspec.json.encode([(*a, *b) for a, b in pairs.items()]).decode() if pairs else ""


def decoded_pairs(text: str | bytes) -> dict[Message, Message]:
    """The pairs that were encoded, request → response."""
    return {(a, b): (c, d) for a, b, c, d in _decode(text)} if text else {}


def checked(data: Data) -> Message:
    """One half of a pair.

    Raises:
        TypeError: it is neither text nor bytes.
        InvalidCall: it is too long, or no UTF-8.
    """
    if isinstance(data, str):
        try:
            message = TEXT, data.encode()
        except UnicodeEncodeError:
            raise misuse("an auto response must be UTF-8: remove lone surrogates") from None
    elif isinstance(data, bytes):
        message = BINARY, data
    else:
        raise TypeError(f"an auto response is str or bytes, not {type(data).__name__}")
    if len(message[1]) > AUTO_RESPONSE_BYTES_MAX:
        raise misuse(
            f"an auto response has at most {AUTO_RESPONSE_BYTES_MAX:,} bytes, this one has "
            f"{len(message[1]):,}: answer it in on_message"
        )
    return message


def check_count(pairs: Iterable[Message]) -> None:
    """Raises InvalidCall if there are too many."""
    if len(list(pairs)) > AUTO_RESPONSES_MAX:
        raise misuse(
            f"an object has at most {AUTO_RESPONSES_MAX} auto responses: remove one with "
            "auto_response(request, None), or answer in on_message"
        )


def plain(message: Message) -> Data:
    """A message as methods see it."""
    return message[1].decode() if message[0] == TEXT else message[1]
