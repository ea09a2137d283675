"""The journal's records: what one committed call did, all of it or nothing.

A record is a msgpack array (see `messages` for the rules of growth). Its sequence is given out by
the shard, without gaps; its epoch is the owner's, so that recovery can tell what a stale owner
wrote after it had lost the shard.
"""

from __future__ import annotations

import msgspec

from rayobjects.messages import Send

DELETED = 0
"""The key is gone; no data."""
JSON = 1
"""The data is JSON text, and JSON gives back exactly the value that was stored."""
PICKLE = 2
"""The data is a cloudpickle."""

ATTRIBUTE = "@"
"""Prefix of a durable attribute's key."""
ITEM = "/"
"""Prefix of a key of `self.storage`."""

Write = tuple[str, int, bytes]
"""(key with its prefix, DELETED, JSON or PICKLE, data)."""


class SocketChange(msgspec.Struct, array_like=True, gc=False):
    """A socket of the object that was opened, changed or closed by the call.

    Attributes:
        socket: the socket's id.
        gateway: the gateway that holds it.
        open: False if it is gone.
        tags: its tags.
        attachment_encoding: DELETED (none), JSON or PICKLE.
        attachment: what the object attached to it, encoded.
        subprotocol: the one that was agreed on when it was opened; "" for none.
        order: given by the shard when the change is on disk: grows from opening to opening.
    """

    socket: str
    gateway: str
    open: bool = True
    tags: tuple[str, ...] = ()
    attachment_encoding: int = DELETED
    attachment: bytes = b""
    subprotocol: str = ""
    order: int = 0


SCHEDULE = 0
"""The object calls itself when the time has come."""
TELL = 1
"""A message to another object that is to be delivered."""
INTENT = 2
"""A call that has called others, and has not ended."""
STEP = 3
"""One of the calls that it made."""
REPLY = 4
"""A reply that is held for another object; it is only ever taken back, in a record of its own."""


class Promise(msgspec.Struct, array_like=True, gc=False):
    """Something that the object has yet to do, whatever dies meanwhile; or that it need not do
    any more.

    Attributes:
        kind: SCHEDULE, TELL, INTENT, STEP or REPLY.
        key: tells it from the object's others of the kind.
        due: when, in seconds since the epoch (of time); 0 for at once. For an INTENT, when it was
            last retried; 0 if it never was.
        body: what, as `objects.promises` encodes it.
        failed: why it was given up, for people to see; "" while it is still tried.
        open: False takes it back.
        order: given by the shard when the change is on disk: grows from promise to promise.
    """

    kind: int
    key: str
    due: float = 0.0
    body: bytes = b""
    failed: str = ""
    open: bool = True
    order: int = 0


class Record(msgspec.Struct, array_like=True, gc=False):
    """One committed call.

    Attributes:
        sequence: given by the shard on commit.
        epoch: the shard's owner that wrote it; given by the shard.
        class_name, name: the object.
        call_id: the id of the call; "" where no repetition can come.
        status, reply: the stored reply: `messages.OK` and the encoded value.
        finished_at: seconds since the epoch (of time) when the call ended: starts its window.
        clear: the object's storage keys (those with ITEM) are deleted before `writes`.
        delete: the object is deleted, with everything that it had, before `writes`.
        writes: the changed keys.
        sockets: the changed sockets.
        sends: messages for sockets; kept until their gateway has acknowledged them.
        owner_epoch: the epoch of a dedicated object's own actor; 0 under shared hosting.
        claims: the record only makes `owner_epoch` the object's epoch.
        version: of the class that wrote it; 0 where it says nothing of that.
        promises: what the object promises from now on, or no longer.
        held: the reply is kept until the caller has said that it will not ask again, and not only
            for the usual window.
        arguments_hash: of the call's method and arguments, where the caller chose its id; else 0.
    """

    class_name: str
    name: str
    call_id: str = ""
    status: int = 0
    reply: bytes = b""
    finished_at: float = 0.0
    writes: list[Write] = []
    clear: bool = False
    delete: bool = False
    sockets: list[SocketChange] = []
    sends: list[Send] = []
    owner_epoch: int = 0
    claims: bool = False
    sequence: int = 0
    epoch: int = 0
    version: int = 0
    promises: list[Promise] = []
    held: bool = False
    arguments_hash: int = 0

    @property
    def ends_begun(self) -> bool:
        """Whether it ends a call that others have been called by, or lists it as failed. Such a
        record is never refused for want of room: what the call has done to others cannot be undone
        by then. There are no more of them than calls that run."""
        return any(each.kind == INTENT and (each.failed or not each.open) for each in self.promises)


class Loaded(msgspec.Struct, array_like=True):
    """An object as the storage has it.

    Attributes:
        exists: something has been committed for it (and it has not been deleted since).
        whole: `entries` has all of its keys; else only attributes, the items come by key.
        entries: key with prefix → (JSON or PICKLE, data).
        keys: how many storage keys (with ITEM) it has; exact if `whole`.
        sockets: its open sockets.
        owner_epoch: the dedicated owner's epoch, 0 if it never had one.
        version: of the class that last wrote it; 0 if that was before versions were kept.
        schedules: the object's promises of that kind.
    """

    exists: bool
    whole: bool
    entries: dict[str, tuple[int, bytes]]
    keys: int = 0
    sockets: list[SocketChange] = []
    owner_epoch: int = 0
    version: int = 0
    schedules: list[Promise] = []


class Finished(msgspec.Struct, array_like=True, gc=False):
    """A finished call, kept for its repetition."""

    class_name: str
    name: str
    call_id: str
    status: int
    reply: bytes
    finished_at: float
    sequence: int
    held: bool = False
    arguments_hash: int = 0


class PendingSends(msgspec.Struct, array_like=True):
    """Socket messages of one record that their gateways have not acknowledged yet.

    `index` of the messages is their position in `sends` (`Push.index`).
    """

    class_name: str
    name: str
    sequence: int
    sends: list[Send]


encode = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(Record).decode
decode_loaded = msgspec.msgpack.Decoder(Loaded).decode
