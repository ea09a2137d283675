"""The errors of rayobjects: few kinds, each telling the caller what to do.

    RayObjectsError
    ├── MethodError        the method raised               fix the code                     500
    ├── InvalidCall        unknown class, method, argument fix the call               404 or 422
    ├── Overloaded         a bounded queue is full         back off, then try again         429
    ├── Unavailable        no host within the deadline     try again with the same id       503
    ├── DeadlineExceeded   the caller's timeout ran out    ask again with the same id       504
    ├── Cancelled          the caller took it back         nothing: it was rolled back      499
    ├── Deadlock           calls wait for each other       use `tell`, or concurrent        409
    └── StorageFailed      disk full, damage, lost epoch   see the message                  503

Every error survives pickling and the wire (`to_wire`, `from_wire`), and has an HTTP status.
Errors of Ray, DuckDB and the operating system are translated where they enter, and nowhere else.
"""

from __future__ import annotations

import os
import pickle
import traceback as tracebacks
from types import TracebackType
from typing import Any, ClassVar

import cloudpickle
import msgspec

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_FILTERS = os.path.join(_PACKAGE, "objects", "filters.py")


class RayObjectsError(Exception):
    """The root of the tree.

    Attributes:
        message: what happened and what to do, in a sentence.
        details: more for machines, of JSON types: for example the fields that were wrong.
        status: the HTTP status.
    """

    status: int = 500
    retry: ClassVar[bool] = False
    """Whether the same call, with the same id, may succeed later without a change."""

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details, self.__dict__.copy()))


class MethodError(RayObjectsError):
    """The method raised. Its writes were rolled back.

    Attributes:
        cause: the exception that the method raised, where it could be sent; also `__cause__`.
        cause_type: its type's name.
        traceback: the traceback on the host, as text, from the method on.
    """

    status = 500

    def __init__(
        self,
        message: str,
        *,
        cause: BaseException | None = None,
        cause_type: str = "",
        traceback: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, details=details)
        self.cause = cause
        self.cause_type = cause_type
        self.traceback = traceback
        self.__cause__ = cause

    @classmethod
    def of(cls, target: str, error: BaseException) -> MethodError:
        """Wraps what the method `target` (`Class/name.method`) raised."""
        where = _outside(error.__traceback__)
        text = "".join(tracebacks.format_exception(type(error), error, where))
        kind = type(error).__name__
        return cls(f"{target} raised {kind}: {error}", cause=error, cause_type=kind, traceback=text)

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__.copy()
        state["cause"] = _portable(self.cause)
        return (_rebuild, (type(self), self.message, self.details, state))


class InvalidCall(RayObjectsError):
    """The call names an unknown class or method (404), or has wrong arguments (422). A method may
    raise it to refuse its call, with another status from 400 to 499; with one from 500 on it is the
    method's own fault, and its caller gets a MethodError.

    `details["errors"]`, where the arguments are wrong: a list of `{"field", "message"}`.

    Raises:
        InvalidCall: the status is that of no error.
    """

    def __init__(
        self, message: str, *, status: int = 422, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details)
        if not isinstance(status, int) or not 400 <= status <= 599:
            # Its caller would take the refusal for a result.
            raise misuse(f"the status of an InvalidCall is 400 to 599, not {status!r}: {message}")
        self.status = int(status)


def misuse(message: str) -> InvalidCall:
    """For a mistake in the code that runs, as opposed to the call that it answers. In a method it
    is what the method has raised: its caller gets a MethodError, and the host logs the line."""
    return InvalidCall(message, status=500)


_MISCALLED = "miscalled"


def miscalled(called: str, message: str, *, status: int = 422) -> InvalidCall:
    """For a call that fits nothing that is deployed, as opposed to one that its object refuses.
    Whoever has made it is at fault: a method that lets the error through has made a mistake.

    Args:
        called: what was called, as far as it is known: `Class`, or `Class/name.method`.
    """
    return InvalidCall(message, status=status, details={_MISCALLED: called})


def is_mistake(error: BaseException, target: str) -> bool:
    """Whether an error that the method `target` (`Class/name.method`) has let through says that it
    is at fault itself. A filter around it may say that of whoever has called it."""
    if not isinstance(error, InvalidCall):
        return False
    return error.status >= 500 or error.details.get(_MISCALLED, target) != target


class Overloaded(RayObjectsError):
    """A bounded queue is full: back off, then try again."""

    status = 429
    retry = True


class Unavailable(RayObjectsError):
    """No host could be reached within the deadline: try again with the same id."""

    status = 503
    retry = True


class DeadlineExceeded(RayObjectsError):
    """The caller's timeout ran out; whether the call took effect is not known: ask again with the
    same id."""

    status = 504
    retry = True


class Cancelled(RayObjectsError):
    """The caller has cancelled the call, and it was rolled back."""

    status = 499
    """nginx's for a client that has gone; HTTP itself has none."""


class Deadlock(RayObjectsError):
    """Calls wait for each other in a circle; this one was rolled back."""

    status = 409


class StorageFailed(RayObjectsError):
    """The storage refused: disk full, a damaged or foreign file, a lost epoch. See the message."""

    status = 503
    retry = True


KINDS: dict[str, type[RayObjectsError]] = {
    kind.__name__: kind
    for kind in (
        RayObjectsError,
        MethodError,
        InvalidCall,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Deadlock,
        StorageFailed,
    )
}


class ErrorInfo(msgspec.Struct, array_like=True):
    """An error on the wire. `cause` is a pickle and filled only for callers that sent one."""

    kind: str
    message: str
    status: int
    details: dict[str, Any]
    cause_type: str = ""
    traceback: str = ""
    cause: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ErrorInfo)


def to_wire(error: RayObjectsError, *, with_cause: bool) -> bytes:
    """Encodes an error for a reply. `with_cause` adds the original exception as a pickle."""
    info = ErrorInfo(type(error).__name__, error.message, error.status, error.details)
    if info.kind not in KINDS:
        info.kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS)
    if isinstance(error, MethodError):
        info.cause_type = error.cause_type
        info.traceback = error.traceback
        cause = _portable(error.cause) if with_cause else None
        if cause is not None:
            info.cause = cloudpickle.dumps(cause)
    return _encoder.encode(info)


def info_from_wire(body: bytes) -> ErrorInfo:
    """Decodes an error without unpickling anything: enough for an HTTP answer."""
    return _decoder.decode(body)


PROCESS_DIED = "ProcessDied"
"""The `cause_type` of a MethodError for a call that ended its host's process again and again."""


def is_deadly(body: bytes) -> bool:
    """Whether an error on the wire says that: to try such a call again would end more of them."""
    return info_from_wire(body).cause_type == PROCESS_DIED


def from_wire(body: bytes) -> RayObjectsError:
    """Decodes an error that came from a host, with the original exception where it is at hand."""
    info = _decoder.decode(body)
    kind = KINDS.get(info.kind, RayObjectsError)
    error: RayObjectsError
    if kind is MethodError:
        cause = _unpickled(info.cause)
        error = MethodError(
            info.message,
            cause=cause,
            cause_type=info.cause_type,
            traceback=info.traceback,
            details=info.details,
        )
    else:
        error = kind(info.message, details=info.details)
        error.status = info.status
    return error


def _outside(where: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames that led to the method: this package's, and those of the
    filters around it. A filter that has raised takes the method's place."""
    begins, each = where, where
    while each is not None:
        if each.tb_frame.f_code.co_filename == _FILTERS:
            begins = each
        each = each.tb_next
    return _beyond(begins) or _beyond(where) or where


def _beyond(where: TracebackType | None) -> TracebackType | None:
    while where is not None and where.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        where = where.tb_next
    return where


def _portable(cause: BaseException | None) -> BaseException | None:
    """The exception if it survives pickling, else None: its text is in the message anyway."""
    if cause is None:
        return None
    try:
        pickle.loads(cloudpickle.dumps(cause))
    except Exception:
        return None
    return cause


def _unpickled(body: bytes) -> BaseException | None:
    if not body:
        return None
    try:
        cause = pickle.loads(body)
    except Exception:  # a class that this process cannot import
        return None
    return cause if isinstance(cause, BaseException) else None


def _rebuild(
    kind: type[RayObjectsError], message: str, details: dict[str, Any], state: dict[str, Any]
) -> RayObjectsError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    error.message, error.details = message, details
    error.__cause__ = state.get("cause")
    return error
