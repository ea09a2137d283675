"""Starting and stopping the gateway on Ray Serve.

Ray must have been started with `serve.haproxy.environment`; without it Serve's own proxy answers,
several times slower. The gateway listens on loopback only: it has no authentication yet, so whoever
reaches it may call every object. Behind a loopback address only the head node's replicas can be
reached, so that is where they run.

A replica that dies is started again by Serve; its sockets break. `start_gateway` on a gateway that
runs replaces its replicas one after another.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import ray
from ray import cloudpickle, serve
from ray.serve._private.utils import ensure_serialization_context
from ray.serve.config import HTTPOptions, ProxyLocation

from rayobjects.errors import InvalidCall, Unavailable
from rayobjects.objects.pickling import is_user_module
from rayobjects.serve.gateway import Application, Gateway
from rayobjects.serve.links import Router
from rayobjects.serve.pages import load_pages

APPLICATION = "rayobjects"
"""The name of the Serve application."""

ONGOING_MAX = 100_000
"""Requests and sockets of one replica; each socket is a request to Serve. HAProxy's limit of
connections comes first."""

KEEP_ALIVE_S = 75
"""How long the replica keeps an idle connection. Longer than HAProxy, which gives them up after
5 s: the other way round HAProxy would send a request on a connection that is being closed."""

PING_S = 20.0
"""How soon a client that is gone without a word is noticed: after twice as long. Phones must wake
for each ping."""

SHUTDOWN_S = 10.0

POLLING_S = 0.1
"""How often Serve's client looks whether the gateway runs; its own default is a second, of which
half is lost on average."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Connect = Callable[[], Awaitable[Router]]


def start_gateway(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    pages: Mapping[str, Any] | None = None,
    app: Application | None = None,
    allowed_hosts: Iterable[str] = (),
    socket_ping_s: float = PING_S,
    socket_idle_s: float = 0.0,
    connect: Connect | None = None,
) -> None:
    """Starts the gateway on the cluster that this process is attached to, and returns when it
    answers.

    Args:
        host: a loopback address.
        port: of HTTP and WebSocket.
        replicas: processes; 1 serves about 6,000 requests/s.
        pages: static pages by path: a file's path, or content type and body.
        app: an ASGI application for every path that is not the gateway's; goes there by value.
        allowed_hosts: names, without ports, that it answers to beside 127.0.0.1, localhost and
            [::1]: those of a proxy in front of it; "*" for every name.
        socket_ping_s: a client's WebSocket is pinged so many seconds after its last answer, and
            is lost if it does not answer within as many.
        socket_idle_s: a WebSocket without a message for so many seconds is closed; 0: never.
        connect: makes the router in the replica; the cluster's own unless given.

    Raises:
        InvalidCall: the address is not loopback, the port is in use, a page cannot be read or the
            app cannot be pickled.
        Unavailable: this process is not attached to Ray, or Serve could not start the gateway.
    """
    if host not in _LOOPBACK:
        raise InvalidCall(
            f"the gateway has no authentication yet, so it listens on loopback only, not on "
            f"{host}: use 127.0.0.1, and a proxy that authenticates in front of it"
        )
    loaded = load_pages(pages or {})
    pickled_app, pickled_connect = _by_value(app), _by_value(connect)
    check_port(host, port)
    if not ray.is_initialized():
        raise Unavailable(
            "this process is not attached to a Ray cluster: call ro.init(…) before the gateway is "
            "started"
        )
    deployment = serve.deployment(
        _replica_class(),
        name="gateway",
        num_replicas=replicas,
        max_ongoing_requests=ONGOING_MAX,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.0001}},
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    # Serve tells its own story on standard error; what went wrong is in the exceptions.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.serve._private.client.CLIENT_POLLING_INTERVAL_S = POLLING_S
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(
                host=host, port=port, request_timeout_s=None, keep_alive_timeout_s=KEEP_ALIVE_S
            ),
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        bound = deployment.bind(
            loaded, pickled_app, pickled_connect, list(allowed_hosts), socket_ping_s, socket_idle_s
        )
        serve.run(bound, name=APPLICATION, route_prefix="/", logging_config=None)
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        raise Unavailable(
            f"Ray Serve could not start the gateway: {error}; its log is in Ray's session "
            "directory under logs/serve"
        ) from error


def stop_gateway() -> None:
    """Stops Serve on this cluster, and the gateway with it. Clients of open sockets see 1006."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.shutdown()


def check_port(host: str, port: int) -> None:
    """Raises InvalidCall if another program than this cluster's gateway has the port. HAProxy would
    fail a minute later, with a message that does not name it."""
    if is_serving():
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                what = f"port {port} is in use: stop the program that has it, or choose another"
            else:
                what = f"port {port} cannot be used ({error.strerror}): choose another"
            raise InvalidCall(what) from None


def is_serving() -> bool:
    """Whether a gateway of this cluster runs already; it has the port then."""
    if not ray.is_initialized():
        return False  # asking Serve would start a Ray of its own
    try:
        details = serve.status()
    except Exception:  # no Serve on this cluster
        return False
    return APPLICATION in details.applications


def _by_value(value: Any) -> bytes:
    """Pickles what the user's module made, so that the replica need not import the module. Ray's
    own cloudpickle with Serve's additions, which know how to take Starlette's state along."""
    if value is None:
        return b""
    ensure_serialization_context()
    registered = cloudpickle.list_registry_pickle_by_value()
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name != "__main__" and name not in registered and is_user_module(module)
    ]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled: bytes = cloudpickle.dumps(value)
        return pickled
    except Exception as error:
        raise InvalidCall(
            f"{value!r} cannot be sent to the gateway's processes: {error}; make what it holds "
            "inside its functions"
        ) from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _keep_grpc_on_loopback() -> None:
    """Serve gives each replica a port for calls of other deployments, on every interface, without
    a password, and unpickles what comes in. The gateway takes no such calls but from Serve's own
    proxy on this node. Runs before the replica opens the port."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, "127.0.0.1:0" if address == "[::]:0" else address)

    replica.add_port_to_grpc_server = add_loopback_port


def _set_pings(every_s: float) -> None:
    """Serve does not let settings of its server through. Runs before the replica makes it."""
    import uvicorn

    make = functools.partial(uvicorn.Config, ws_ping_interval=every_s, ws_ping_timeout=every_s)
    setattr(uvicorn, "Config", make)  # noqa: B010  (mypy knows it as a type)


async def _cluster_router() -> Router:
    from rayobjects.runtime.router import connect

    router: Router = await connect()
    return router


def _replica_class() -> Any:
    """The deployment's class. Made here so that Serve's decorator does its work at a start, not at
    every import of this module."""

    @serve.ingress()
    class Replica:
        def __init__(
            self,
            pages: dict[str, tuple[str, bytes]],
            app: bytes,
            connect: bytes,
            allowed_hosts: list[str],
            socket_ping_s: float,
            socket_idle_s: float,
        ) -> None:
            _keep_grpc_on_loopback()
            _set_pings(socket_ping_s)
            self._socket_idle_s = socket_idle_s
            self._pages = pages
            self._allowed_hosts = allowed_hosts
            self._app = cloudpickle.loads(app) if app else None
            self._connect: Connect = cloudpickle.loads(connect) if connect else _cluster_router

        async def __serve_build_asgi_app__(self) -> Gateway:
            self._router = await self._connect()
            return Gateway(
                self._router,
                pages=self._pages,
                app=self._app,
                allowed_hosts=self._allowed_hosts,
                socket_idle_s=self._socket_idle_s,
            )

        async def __del__(self) -> None:
            if hasattr(self, "_router"):
                await self._router.close()

    return Replica
