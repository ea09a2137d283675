"""What crosses between processes: calls, replies and socket messages, in msgpack.

A batch is encoded once by the channel and decoded once by the host; arguments and replies travel
inside as bytes that only the two ends look into. The structs are arrays on the wire: new fields go
to the end, with a default.
"""

from __future__ import annotations

from typing import Any

import msgspec

PICKLE = 0
"""Arguments are a pickled `(args, kwargs)`, the reply is a pickled value."""
JSON = 1
"""Arguments are a JSON object of keyword arguments (or empty), the reply is JSON."""
SOCKET = 2
"""`on_connect`, `on_message`, `on_close`: arguments are a `SocketEvent`, the reply is empty."""
REQUEST = 3
"""`on_request`: arguments are an `HttpRequest`, the reply is an `HttpResponse`."""
SCHEDULED = 5
"""A schedule is due: the arguments say which, and the object knows what it had planned."""
TURN = 6
"""No call: a concurrent method waits for the turn. Never leaves a host."""
PROBE = 7
"""No call: asks the host what the call with the id `args` waits for (`objects.deadlocks`)."""
SYSTEM = 4
"""The runtime's own methods (`state`, `delete`): arguments and reply are JSON."""

OK = 0
ERROR = 1
"""The body is an `errors.ErrorInfo`."""
REDIRECT = 2
"""The object is not hosted here: read the catalog again and send the call to the right host."""
END = 3
"""A stream has come to its end; the body is the number of its items."""
OPENED = 4
"""Not the answer yet: the call is a stream, and its items and its END or ERROR follow."""
ITEM = 5
"""Not the answer yet: an item of a stream; `sequence` is its number, from 1."""

NOTHING = 0
"""The caller wants nothing of a stream; its items are dropped."""
WHOLE = 1
"""The caller wants all items in one reply, OK and not END; OPENED says that it may take long."""
ITEMS = 2
"""The caller reads items as they come."""

TEXT = 0
BINARY = 1
CLOSE = 2
TAGS = 3
"""The sockets have the tags in `data` from here on: an encoded list."""
AUTO = 4
"""What the gateway answers by itself from here on: see `objects.auto_response`."""


class Call(msgspec.Struct, array_like=True, gc=False):
    """One call on its way to an object.

    Attributes:
        number: counts the channel's calls; order and acknowledgement refer to it.
        id: the call id, where it does not follow from channel and number: an Idempotency-Key, or
            the id of a child call.
        encoding: PICKLE, JSON, SOCKET, REQUEST or SYSTEM: how `args` and the reply are encoded.
        chain: the ids (`Class/name`) of the objects that wait for this call, outermost first.
        held: another object makes this call, and says when it will not ask again.
        arguments_hash: of what is called with which arguments, where `id` is given; else 0.
        timeout_s: how long the caller waits for it; 0 for as long as it takes.
        expires_at: set by the host from that, in its own monotonic seconds; 0 for never.
        context: what it carries along (`objects.carried`); None for nothing.
        takes: what the caller wants if the method is a generator: NOTHING, WHOLE or ITEMS.
        seen: how many items of its stream have arrived already, where it is sent again.
    """

    number: int
    class_name: str
    name: str
    method: str
    encoding: int
    args: bytes
    id: str = ""
    chain: tuple[str, ...] = ()
    held: bool = False
    arguments_hash: int = 0
    timeout_s: float = 0.0
    expires_at: float = 0.0
    context: dict[str, str] | None = None
    takes: int = NOTHING
    seen: int = 0


class Reply(msgspec.Struct, array_like=True, gc=False):
    """The answer to one call.

    Attributes:
        status: OK, ERROR, REDIRECT or END; or OPENED or ITEM, and then the answer is yet to come.
        sequence: the sequence of the call's journal record, 0 if it wrote none.
    """

    number: int
    status: int
    body: bytes
    sequence: int = 0


class Send(msgspec.Struct, array_like=True, gc=False):
    """A call's message to sockets of its object at one gateway; part of the call's record.

    Attributes:
        kind: TEXT, BINARY or CLOSE.
        data: the message; for CLOSE the reason (UTF-8).
        code: for CLOSE the close code.
        sockets: the socket ids that get it; None for all of the object's at that gateway.
        exclude: socket ids that do not get it.
        tag: only sockets with this tag get it; "" for all.
    """

    gateway: str
    kind: int
    data: bytes
    code: int = 0
    sockets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    tag: str = ""


class Push(msgspec.Struct, array_like=True, gc=False):
    """A `Send` on its way to the gateway. (sequence, index) grows within one object, and is what
    the gateway tells a repetition by."""

    class_name: str
    name: str
    sequence: int
    index: int
    send: Send


class Batch(msgspec.Struct, array_like=True):
    """What a channel hands to a host at once.

    Attributes:
        channel: the sending process's id; a gateway's is also its gateway id.
        session: grows each time the channel begins anew with this host.
        index: counts the batches of the session, from 0: the host takes them in this order.
        acks: numbers of calls whose replies have arrived, so that the host may forget them.
        resent: some of these calls may have reached the host before.
        credits: (number of a call that is a stream, number of the last item that was read); -1 for
            a reader that has gone.
        cancels: (number, class, name) of calls that are to be ended if they still can be.
        forget: (call id, class, name) of calls whose replies are held for objects, and whose
            callers have ended: whichever process of the host has answered them.
    """

    channel: str
    session: int
    index: int
    calls: list[Call]
    acks: list[int] = []
    resent: bool = False
    credits: list[tuple[int, int]] = []
    cancels: list[tuple[int, str, str]] = []
    forget: list[tuple[str, str, str]] = []


class Replies(msgspec.Struct, array_like=True):
    """What a host answers to a batch or to a standing request.

    Attributes:
        replies: those that are ready.
        late: how many of the channel's calls will be answered over the standing request.
        incarnation: names the host's process; another one means that the old one has died.
        pushes: socket messages; only over the standing request.
        pushed: the outbox's count after `pushes`; the next standing request acknowledges it.
        stale: the batch belongs to a session that the host does not have: begin a new one.
        tell: the host had taken this gateway for dead: say again which sockets it holds.
        unknown: of the sockets that a gateway said it holds, those that no object knows. One that
            is being opened may be among them.
        link: with the first answer of a session, the host's Unix socket, for its own machine.
    """

    replies: list[Reply]
    late: int = 0
    incarnation: str = ""
    pushes: list[Push] = []
    pushed: int = 0
    stale: bool = False
    tell: bool = False
    unknown: list[tuple[str, str, str]] = []
    link: str = ""


class Poll(msgspec.Struct, array_like=True):
    """A standing request: brings late replies and socket messages.

    Attributes:
        pushed: the outbox count up to which socket messages have arrived in this incarnation.
        incarnation: the incarnation that `pushed` refers to.
        sockets: with a session's first request of a gateway: `(class, name, socket id)` of every
            socket that it holds for this host; the host closes those it had beyond them when the
            session began. Again when the host asks for it (`Replies.tell`).
    """

    channel: str
    session: int
    pushed: int = 0
    incarnation: str = ""
    sockets: list[tuple[str, str, str]] | None = None


class SocketEvent(msgspec.Struct, array_like=True):
    """The arguments of a SOCKET call.

    Attributes:
        socket: the socket's id, made by its gateway.
        kind: TEXT or BINARY, for `on_message`.
        data: the message, or the close reason.
        code: the close code, for `on_close`.
        query, headers, subprotocols: of the opening request, for `on_connect`.
    """

    socket: str
    gateway: str
    kind: int = TEXT
    data: bytes = b""
    code: int = 0
    query: str = ""
    headers: list[tuple[str, str]] = []
    subprotocols: list[str] = []


class SocketOpened(msgspec.Struct, array_like=True):
    """The reply to `on_connect`, where it is not empty.

    Attributes:
        subprotocol: the one of those offered that the object speaks; "" for none.
    """

    subprotocol: str = ""


class HttpRequest(msgspec.Struct, array_like=True):
    """The arguments of a REQUEST call."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes


class HttpResponse(msgspec.Struct, array_like=True):
    """The reply of a REQUEST call."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


_encoder = msgspec.msgpack.Encoder()

encode = _encoder.encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_replies = msgspec.msgpack.Decoder(Replies).decode
decode_poll = msgspec.msgpack.Decoder(Poll).decode
decode_socket_event = msgspec.msgpack.Decoder(SocketEvent).decode
decode_socket_opened = msgspec.msgpack.Decoder(SocketOpened).decode
decode_tags = msgspec.msgpack.Decoder(list[str]).decode
decode_request = msgspec.msgpack.Decoder(HttpRequest).decode
decode_response = msgspec.msgpack.Decoder(HttpResponse).decode
decode_count = msgspec.msgpack.Decoder(int).decode


def encode_json(value: Any) -> bytes:
    """Encodes a value as JSON, the way a web API would: datetimes, UUIDs, enums, dataclasses and
    pydantic models too.

    Raises:
        TypeError: a value has no JSON form.
    """
    return _json_encoder.encode(value)


NOT_AWAITED = "a Response is a result to come: `await` it first, and use what it brings"
"""Where one is returned, stored or passed on, for want of an `await`."""

STUB_NO_JSON = "a stub is for Python code only: return its `.id.name`"


def _json_hook(value: Any) -> Any:
    why = getattr(type(value), "rayobjects_no_json", None)  # of stubs, and of responses to come
    if why is not None:
        raise TypeError(why)
    dump = getattr(value, "model_dump", None)  # a pydantic model
    if dump is not None:
        return dump(mode="json")
    item = getattr(value, "item", None)  # a numpy scalar
    if item is not None and getattr(value, "shape", None) == ():
        return item()
    tolist = getattr(value, "tolist", None)  # a numpy array
    if tolist is not None:
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: return plain data or a dataclass")


_json_encoder = msgspec.json.Encoder(enc_hook=_json_hook)
