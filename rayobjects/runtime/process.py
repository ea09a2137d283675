"""This process's part of the runtime: its configuration and its router.

Stubs name objects and nothing else; wherever one is used (a driver, a Ray task, another actor, a
host), it finds the router here. A process that has not called `ro.init` attaches by itself if its
Ray cluster has a configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid

import ray

from rayobjects.clock import SystemClock
from rayobjects.errors import InvalidCall, misuse
from rayobjects.objects.context import current_call, local_router
from rayobjects.runtime.configuration import Configuration, read_configuration
from rayobjects.runtime.router import Router

END_WITHIN_S = 10.0
"""How long the end of a router is waited for. It takes a second if a host does not answer."""

_lock = threading.Lock()
_router: Router | None = None
_thread: threading.Thread | None = None


def new_router_id() -> str:
    """A name for this process that no other has."""
    return uuid.uuid4().hex[:16]


def router() -> Router:
    """This process's router; attaches to the cluster if need be.

    Raises:
        InvalidCall: Ray is not running, or its cluster has no configuration.
    """
    local: Router | None = local_router.get()
    if local is not None:
        return local
    if _router is not None:
        return _router
    if not ray.is_initialized():
        raise InvalidCall("rayobjects is not connected here: call ro.init(…) first")
    configuration = read_configuration()
    if configuration is None:
        raise InvalidCall(
            "this Ray cluster runs no rayobjects yet: call ro.init(storage=…) once, or start it "
            "with `rayobjects serve`"
        )
    return attach(configuration)


def attach(configuration: Configuration) -> Router:
    """Makes this process's router, with an event loop of its own."""
    global _router, _thread
    if _router is not None and _router.configuration.cluster_id != configuration.cluster_id:
        detach()  # it belonged to another cluster
    with _lock:
        if _router is not None:
            return _router
        loop = _new_loop()
        made = Router(new_router_id(), loop, configuration, SystemClock())
        _thread = threading.Thread(target=loop.run_forever, name="rayobjects", daemon=True)
        _thread.start()
        _router = made
        return made


def adopt(made: Router) -> None:
    """Makes the router of an actor's own loop this process's router."""
    global _router
    _router = made


def detach() -> None:
    """Ends this process's router; calls under way fail with Unavailable.

    Raises:
        InvalidCall: in a method, or in a host or a gateway: their own calls need it.
    """
    global _router, _thread
    with _lock:
        made, thread = _router, _thread
        if current_call.get() is not None or (made is not None and thread is None):
            raise misuse(
                "ro.shutdown() belongs to programs, not to methods, nor to what else runs in a "
                "host or a gateway: leave it out"
            )
        _router = _thread = None
    if made is None or thread is None:
        return
    ending = asyncio.run_coroutine_threadsafe(_end(made), made.loop)
    with contextlib.suppress(TimeoutError):
        ending.result(timeout=END_WITHIN_S)
    made.loop.call_soon_threadsafe(made.loop.stop)
    thread.join(timeout=END_WITHIN_S)


async def _end(made: Router) -> None:
    """Closes a router and ends what else runs on its loop, which is about to stop."""
    await made.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # no uvloop on this platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
