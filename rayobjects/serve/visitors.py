"""Who may use the gateway, as far as their headers say: which names it answers to, and pages of
which sites.

The gateway listens on loopback and asks nobody for a password, but every page that a browser has
open can reach it. Two headers that browsers set and pages cannot forge keep strangers out:

    Host     must be a name of this machine's loopback, or one that was allowed. A page whose own
             name is made to point at 127.0.0.1 (DNS rebinding) is of the same origin as the
             gateway for its browser, and only its name gives it away.
    Origin   must be the address that was asked, or another server on this machine. A POST and a
             WebSocket are sent by a page of any site, without asking first.

Where a browser sends no Origin (an image, a script), Sec-Fetch-Site says whose page it was. Other
programs send what they like; they are on this machine, or behind a proxy that knows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from rayobjects.errors import InvalidCall
from rayobjects.serve.requests import Request

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

KNOWN_MAX = 1_000
"""Host headers remembered as good: one for each name and port, so that most requests cost a look
into a set."""


class Visitors:
    """Decides by a request's headers.

    Args:
        allowed_hosts: names beside those of the loopback, without ports, for a proxy in front;
            "*" allows every name.
    """

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        names = {_bare(name) for name in allowed_hosts} - {""}
        self._any = "*" in names
        self._names = LOOPBACK_HOSTS | names
        self._known: set[str] = set()

    def check_host(self, request: Request) -> None:
        """Raises InvalidCall (421) if the gateway does not answer to that name. A request without
        one (HTTP/1.0) is not a browser's."""
        host = request.host
        if not host or self._any or host in self._known:
            return
        if _hostname(host) not in self._names:
            raise InvalidCall(
                f"this server does not answer to the name {host!r}: use 127.0.0.1 or localhost, "
                "or allow the name with RAYOBJECTS_ALLOWED_HOSTS",
                status=421,
            )
        if len(self._known) < KNOWN_MAX:
            self._known.add(host)

    def check_origin(self, request: Request) -> None:
        """Raises InvalidCall (403) if a page of another site may not use the objects."""
        if not request.origin:
            if request.fetch_site == b"cross-site" and request.fetch_mode != b"navigate":
                raise _refusal("another site", request)
        elif not _may_come_from(request.origin, request.host):
            raise _refusal(repr(request.origin), request)


def _refusal(site: str, request: Request) -> InvalidCall:
    return InvalidCall(
        f"a page of {site} may not use the objects of {request.host!r}: serve the page from the "
        "same address",
        status=403,
    )


def _may_come_from(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.netloc == host or parts.hostname in LOOPBACK_HOSTS
    except ValueError:
        return False


def _hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return _bare(host.partition("]")[0] + "]")
    return _bare(host.partition(":")[0])


def _bare(name: str) -> str:
    return name.strip().lower().removesuffix(".").removeprefix("[").removesuffix("]")
