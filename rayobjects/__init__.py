"""Durable objects for Python, on Ray.

Public names are handed out lazily, so that `import rayobjects.storage` does not pull in Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayobjects.errors import (
        Cancelled,
        DeadlineExceeded,
        Deadlock,
        InvalidCall,
        MethodError,
        Overloaded,
        RayObjectsError,
        StorageFailed,
        Unavailable,
    )
    from rayobjects.ids import ObjectId
    from rayobjects.objects.fields import durable
    from rayobjects.objects.filters import Filter, MethodCall
    from rayobjects.objects.http import Request, Response
    from rayobjects.objects.marks import blocking, concurrent, internal
    from rayobjects.objects.model import DurableObject
    from rayobjects.objects.request_context import RequestContext, context, request_context
    from rayobjects.objects.retrying import retries
    from rayobjects.objects.scheduling import Schedule
    from rayobjects.objects.websocket import WebSocket
    from rayobjects.runtime.client import deploy, init, shutdown
    from rayobjects.runtime.stubs import Namespace, Stub, namespace

_HOMES = {
    "Cancelled": "rayobjects.errors",
    "Deadlock": "rayobjects.errors",
    "DeadlineExceeded": "rayobjects.errors",
    "DurableObject": "rayobjects.objects.model",
    "Filter": "rayobjects.objects.filters",
    "InvalidCall": "rayobjects.errors",
    "MethodCall": "rayobjects.objects.filters",
    "MethodError": "rayobjects.errors",
    "Namespace": "rayobjects.runtime.stubs",
    "ObjectId": "rayobjects.ids",
    "Overloaded": "rayobjects.errors",
    "RayObjectsError": "rayobjects.errors",
    "RequestContext": "rayobjects.objects.request_context",
    "Request": "rayobjects.objects.http",
    "Response": "rayobjects.objects.http",
    "Schedule": "rayobjects.objects.scheduling",
    "StorageFailed": "rayobjects.errors",
    "Stub": "rayobjects.runtime.stubs",
    "Unavailable": "rayobjects.errors",
    "WebSocket": "rayobjects.objects.websocket",
    "blocking": "rayobjects.objects.marks",
    "concurrent": "rayobjects.objects.marks",
    "context": "rayobjects.objects.request_context",
    "deploy": "rayobjects.runtime.client",
    "durable": "rayobjects.objects.fields",
    "init": "rayobjects.runtime.client",
    "internal": "rayobjects.objects.marks",
    "namespace": "rayobjects.runtime.stubs",
    "request_context": "rayobjects.objects.request_context",
    "retries": "rayobjects.objects.retrying",
    "shutdown": "rayobjects.runtime.client",
}

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "Deadlock",
    "DurableObject",
    "Filter",
    "InvalidCall",
    "MethodCall",
    "MethodError",
    "Namespace",
    "ObjectId",
    "Overloaded",
    "RayObjectsError",
    "Request",
    "RequestContext",
    "Response",
    "Schedule",
    "StorageFailed",
    "Stub",
    "Unavailable",
    "WebSocket",
    "blocking",
    "concurrent",
    "context",
    "deploy",
    "durable",
    "init",
    "internal",
    "namespace",
    "request_context",
    "retries",
    "shutdown",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rayobjects' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
