"""A short hash of what a call asks for, where its caller has chosen its id: the same id with other
arguments is a mistake, and must not be answered with the first one's reply.

It says less than the bytes do, because those may differ though the arguments are equal: JSON has
its spaces and its order of keys, pickles depend on which objects were identical. So the hash is of
the plain data in the arguments, in a fixed order, and of anything else just its type.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from rayobjects.errors import InvalidCall, misuse
from rayobjects.limits import IDEMPOTENCY_KEY_BYTES_MAX
from rayobjects.messages import Call
from rayobjects.storage import values


def _type_only(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=_type_only).encode


def hash_of(method: str, value: Any) -> int:
    """A 63-bit hash, never 0."""
    try:
        body = _encode(value)
    except Exception:  # such as keys of several kinds: then only the method counts
        body = b""
    digest = blake2b(method.encode() + b"\0" + body, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 or 1


def hash_of_json(method: str, body: bytes) -> int:
    """The same for a JSON body; 0 where it is none, which its own check will say."""
    try:
        return hash_of(method, msgspec.json.decode(body) if body else {})
    except msgspec.DecodeError:
        return 0


def pickled(called: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> bytes:
    """Pickles the arguments of a call.

    Raises:
        InvalidCall: one cannot be pickled; the message says which, and of what method.
    """
    try:
        return values.dump_arguments(args, keywords)
    except InvalidCall as error:
        raise _unpicklable(called, args, keywords, error) from error


def _unpicklable(
    called: str, args: tuple[Any, ...], keywords: dict[str, Any], error: InvalidCall
) -> InvalidCall:
    arguments = [(f"argument {count}", each) for count, each in enumerate(args, 1)]
    arguments += [(f"argument {name!r}", each) for name, each in keywords.items()]
    which = "an argument"
    for name, each in arguments:
        try:
            values.dump(each)
        except InvalidCall as found:
            which, error = name, found
            break
    if error.__cause__ is None:  # it says itself what to do
        return misuse(f"{which} of {called}: {error.message}")
    return misuse(
        f"{which} of {called} cannot be pickled ({error.__cause__}): arguments are plain data, or "
        "objects that pickle can take apart; no locks, connections, files or generators"
    )


def check_timeout(timeout_s: float) -> float:
    """The seconds that a call has, if they can be meant.

    Raises:
        InvalidCall: that is no positive number.
    """
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not number or not 0 < timeout_s < float("inf"):
        raise InvalidCall(f"timeout_s is a positive number of seconds, not {timeout_s!r}")
    return float(timeout_s)


def id_of_key(key: str) -> str:
    """The call id for an idempotency key.

    Raises:
        InvalidCall: it is no text of 1 to 255 printable ASCII characters.
    """
    fits = isinstance(key, str) and 0 < len(key) <= IDEMPOTENCY_KEY_BYTES_MAX
    if not fits or not all(" " <= each <= "~" for each in key):
        raise InvalidCall(
            f"an Idempotency-Key is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters: "
            "use a UUID"
        )
    return f"key:{key}"


def use_key(call: Call, arguments: Any, running: object) -> None:
    """Gives a call the id that its caller has chosen.

    Args:
        arguments: the call's.
        running: the call of an object that makes it.

    Raises:
        InvalidCall: there is one; what a method calls has an id that follows from its own.
    """
    if running is not None:
        raise misuse(
            f"an idempotency key for {call.class_name}.{call.method} inside a method: leave it "
            "out, each of a method's calls is applied once as it is"
        )
    call.arguments_hash = hash_of(call.method, arguments)


def differ(one: int, other: int) -> bool:
    """Whether two hashes show that the calls are not the same."""
    return bool(one and other and one != other)


def reused(call_id: str) -> InvalidCall:
    """The error for an id that was used for something else."""
    shown = call_id.removeprefix("key:")
    return InvalidCall(
        f"the id {shown!r} was used for another call, with another method or other arguments: use "
        "a new one for each call, and the same only to repeat it",
        status=422,
    )
