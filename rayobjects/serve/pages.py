"""Static pages of an application: read once, served from memory."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayobjects.errors import InvalidCall

OWN_PATHS = ("/objects/", "/docs", "/openapi.json", "/-/")


def load_pages(pages: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Reads the pages.

    Args:
        pages: by path (`/`, `/chat`): a file's path, whose name tells the content type, or a pair
            of content type and body (str or bytes).

    Returns:
        Content type and body by path.

    Raises:
        InvalidCall: a path is the gateway's own or has no slash in front, a file cannot be read,
            or a page is none of these.
    """
    return {path: _load(_check(path), page) for path, page in pages.items()}


def _check(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidCall(f"the page {path!r} has no slash in front: use {'/' + path!r}")
    if path.startswith(OWN_PATHS):
        raise InvalidCall(f"the path {path!r} is the gateway's own: give the page another one")
    return path


def _load(path: str, page: Any) -> tuple[str, bytes]:
    if isinstance(page, tuple) and len(page) == 2:
        content_type, body = page
        return content_type, body.encode() if isinstance(body, str) else bytes(body)
    if not isinstance(page, str | Path):
        raise InvalidCall(
            f"the page {path!r} is a {type(page).__name__}: give the path of a file, or a pair of "
            "content type and body"
        )
    try:
        body = Path(page).read_bytes()
    except OSError as error:
        raise InvalidCall(
            f"the file {str(page)!r} of the page {path!r} cannot be read: {error.strerror}"
        ) from None
    content_type = mimetypes.guess_type(str(page))[0] or "application/octet-stream"
    if content_type.startswith("text/"):
        content_type += "; charset=utf-8"
    return content_type, body
