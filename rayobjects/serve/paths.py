"""Which object a URL means.

The raw path is split at its slashes before each segment is percent-decoded, so a name may contain
any character, `/` as `%2F` too. Web frameworks decode first and split then, and lose such names.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from rayobjects.errors import InvalidCall
from rayobjects.ids import check_object_name

PREFIX = b"/objects/"


class Target(NamedTuple):
    """What the path of a URL under `/objects/` names.

    Attributes:
        class_name: the object's class.
        name: the object's name; None for the class itself.
        method: the method to call; None where the object itself is meant. May be empty.
        path: what follows `/fetch`, with its leading slash; None for anything else.
    """

    class_name: str
    name: str | None = None
    method: str | None = None
    path: str | None = None

    @property
    def route(self) -> str:
        """The kind of its URL, as traces and metrics name it."""
        if self.name is None:
            return "/objects/{class}"
        tail = "" if self.method is None else "/{method}"
        return "/objects/{class}/{name}" + ("/fetch/{path}" if self.path is not None else tail)


def parse_target(raw_path: bytes) -> Target:
    """Splits the raw path of a URL that begins with `/objects/`.

    Raises:
        InvalidCall: 422 if a segment is not UTF-8 or the name cannot be an object's; 404 if there
            are more segments than any route has.
    """
    segments = raw_path[len(PREFIX) :].split(b"/", 3)
    class_name = _decode(segments[0], "the class name")
    if len(segments) == 1:
        return Target(class_name)
    name = check_object_name(_decode(segments[1], "the object's name"))
    if len(segments) == 2:
        return Target(class_name, name)
    method = _decode(segments[2], "the method's name")
    if len(segments) == 3:
        return Target(class_name, name, method)
    if method == "fetch":
        return Target(class_name, name, None, "/" + _decode(segments[3], "the path"))
    raise InvalidCall(
        "no such route: it is /objects/CLASS/NAME/METHOD; write a slash inside a name as %2F",
        status=404,
    )


def _decode(segment: bytes, what: str) -> str:
    try:
        if b"%" in segment:
            segment = unquote_to_bytes(segment)
        return segment.decode()
    except UnicodeDecodeError:
        raise InvalidCall(
            f"{what} in the URL is not UTF-8: percent-encode its UTF-8 bytes"
        ) from None
