"""The gateway: one ASGI application that puts every deployed class behind HTTP and WebSocket.

    POST /objects/{class}/{name}/{method}      calls a method, JSON in and out; the items of a
                                               generator also as events (`serve.events`)
    GET  /objects/{class}/{name}   + upgrade   a WebSocket to the object (`serve.sockets`)
    ANY  /objects/{class}/{name}/fetch/{path}  the raw request to `on_request` (`serve.requests`);
                                               …/fetch is the same as …/fetch/
    GET  /objects/{class}?prefix=&after=       the names of the class's objects, in pages
    GET  /docs, /openapi.json, /               `serve.docs`
    anything else                              the user's pages, then the user's own app

It is stateless but for the sockets that it holds. The call route is the hot path, and is no more
than: split the path, read the body, hand the bytes to the router, write the reply's bytes. The
arguments are checked by the host that has the class, so nothing is parsed here; a web framework's
routing and models would cost several times what the call itself does here.

A client that goes away does not cancel its call: the call has been sent, and what it does to the
object must not hang on somebody's connection. When this process dies, calls under way are lost to
their clients, who ask again with the same Idempotency-Key; sockets break and reconnect.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

from rayobjects.errors import InvalidCall, RayObjectsError, info_from_wire
from rayobjects.limits import PAGE_KEYS_MAX
from rayobjects.messages import ITEMS, JSON, OK, WHOLE, Call, Reply
from rayobjects.objects import tracing
from rayobjects.objects.arguments import id_of_key
from rayobjects.objects.reading import Reading
from rayobjects.serve import events
from rayobjects.serve.docs import Docs
from rayobjects.serve.links import Router
from rayobjects.serve.paths import PREFIX, Target, parse_target
from rayobjects.serve.problems import (
    Headers,
    problem_of_error,
    problem_of_info,
    problem_of_status,
)
from rayobjects.serve.requests import Request, forward, read_body
from rayobjects.serve.sockets import SocketTable
from rayobjects.serve.visitors import Visitors

logger = logging.getLogger("rayobjects.gateway")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = tuple[int, Headers, bytes]

PAGE_NAMES = 100
"""Names on a page of a listing unless `limit` asks for another number."""

QUERY_SHOWN_MAX = 100
"""Characters of a query that an error shows."""

_LISTING = ("prefix", "after", "limit")


class Gateway:
    """The ASGI application.

    Args:
        router: the way to the objects; its `on_push` is set here.
        pages: static pages by path: content type and body, served from memory.
        app: an ASGI application of the user's, for every path that is not ours.
        allowed_hosts: names that it answers to beside those of the loopback; see `Visitors`.
        socket_idle_s: how many seconds a socket may be without a message; 0: for ever.
    """

    def __init__(
        self,
        router: Router,
        *,
        pages: Mapping[str, tuple[str, bytes]] | None = None,
        app: Application | None = None,
        allowed_hosts: Iterable[str] = (),
        socket_idle_s: float = 0.0,
    ) -> None:
        self._router = router
        self._pages = dict(pages or {})
        self._app = app
        self._visitors = Visitors(allowed_hosts)
        self._docs = Docs(router)
        self._sockets = SocketTable(router, idle_s=socket_idle_s)
        router.on_push = self._sockets.push
        router.on_unknown = self._sockets.unknown

    @property
    def routes(self) -> list[Any]:
        """None by name: Serve asks an app for its routes to label its metrics."""
        return []

    @property
    def router(self) -> Gateway:
        return self

    redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        request = Request.of(scope)
        if kind == "websocket":
            await self._socket(raw_path, request, scope, receive, send)
            return
        try:
            self._visitors.check_host(request)
            if not raw_path.startswith(PREFIX):
                await self._other(raw_path, scope, receive, send)
                return
            answer = await self._traced(raw_path, request, scope, receive)
        except RayObjectsError as error:
            answer = problem_of_error(error)
        if isinstance(answer, Reading):
            await events.send_events(answer, receive, send)
        elif answer is not None:
            await _respond(send, answer)

    # ---- objects -------------------------------------------------------------------------------

    async def _traced(
        self, raw_path: bytes, request: Request, scope: Scope, receive: Receive
    ) -> Answer | Reading | None:
        """The answer; a stream that is to be sent as events; None for a client that has gone."""
        target, context = parse_target(raw_path), request.context()
        if tracing.tracer() is None:
            return await self._object(target, request, scope, receive, context)
        carrying = context or {}
        with tracing.request(scope["method"], target.route, carrying) as answered:
            answer: Answer | Reading | None
            try:
                answer = await self._object(target, request, scope, receive, carrying)
            except RayObjectsError as error:
                answer = problem_of_error(error)
            if isinstance(answer, tuple):
                answered(answer[0])
            return answer

    async def _object(
        self,
        target: Target,
        request: Request,
        scope: Scope,
        receive: Receive,
        context: dict[str, str] | None,
    ) -> Answer | Reading | None:
        self._visitors.check_origin(request)
        verb = scope["method"]
        if target.method == "fetch" and await self._takes_raw(target.class_name, verb):
            target = target._replace(method=None, path="")
        if target.path is not None:
            return await forward(self._router, target, request, scope, receive, context)
        if target.method is not None:
            if verb != "POST":
                return _method_not_allowed(
                    f"{target.method!r} is a method of an object, called with POST and not with "
                    f"{verb}: its arguments are a JSON object in the body",
                    b"POST",
                )
            if scope["query_string"]:  # else it would run without what is there
                raise InvalidCall(
                    f"the address of a call takes no query ({_shown(scope['query_string'])}): "
                    "arguments go into the JSON body"
                )
            return await self._call(target, request, receive, context)
        if verb not in ("GET", "HEAD"):
            where = f"/objects/{target.class_name}/NAME/METHOD"
            return _method_not_allowed(
                f"no method is named in this address, and without one it takes no {verb}: POST to "
                f"{where} calls a method",
                b"GET, HEAD",
            )
        if target.name is None:
            return await self._list(target.class_name, scope["query_string"])
        status, headers, body = problem_of_status(
            426,
            f"{target.class_name}/{target.name} is an object: open a WebSocket to this address, or "
            "POST to a method of the object: see /docs",
        )
        return status, [*headers, (b"upgrade", b"websocket")], body

    async def _takes_raw(self, class_name: str, verb: str) -> bool:
        """Whether …/NAME/fetch, without a slash behind it, is for `on_request`, as it is with one.
        A POST may be for a method of that name."""
        for info in (await self._router.catalog()).values():
            if class_name == info.name or class_name in info.former:
                return info.requests and not (verb == "POST" and "fetch" in info.methods)
        return False

    async def _call(
        self,
        target: Target,
        request: Request,
        receive: Receive,
        context: dict[str, str] | None,
    ) -> Answer | Reading | None:
        method = target.method or ""
        if not method or method[0] == "_":
            raise InvalidCall(
                f"{target.class_name} has no method {method!r} that can be called: see /docs",
                status=404,
            )
        call_id = _call_id(request.idempotency_key)
        body = await read_body(receive, request.content_length)
        if body and not _may_be_json(request.content_type):
            raise InvalidCall(
                f"the body's content type is {request.content_type.decode('latin-1')!r}: send the "
                "arguments as a JSON object, with Content-Type: application/json (with curl: "
                "--json '{…}' in place of -d '{…}')",
                status=415,
            )
        takes = ITEMS if events.wants_events(request.accept) else WHOLE
        call = Call(0, target.class_name, target.name or "", method, JSON, body, call_id)
        call.takes, call.context = takes, context
        call.timeout_s = request.wait_s
        answer = await events.answer_of(self._router.ask(call))
        if isinstance(answer, Reading):
            if takes == ITEMS:
                return answer
            whole = await events.whole(answer, receive)
            if whole is None:
                return None
            answer = whole
        reply: Reply = answer
        if reply.status == OK:
            body = reply.body
            return (
                200,
                [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                ],
                body,
            )
        return _failed(reply)

    async def _list(self, class_name: str, query: bytes) -> Answer:
        prefix, after, limit = _page(query)
        names = await self._router.list_objects(class_name, prefix, after, limit)
        following = names[-1] if len(names) == limit else None
        return _json({"names": names, "next": following})

    async def _socket(
        self, raw_path: bytes, request: Request, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            self._visitors.check_host(request)
            if not raw_path.startswith(PREFIX):
                if self._app is None:
                    raise InvalidCall(f"nothing is at {scope['path']}", status=404)
                await self._app(scope, receive, send)
                return
            target = parse_target(raw_path)
            if target.name is None or target.method is not None or target.path is not None:
                raise InvalidCall("a WebSocket is opened at /objects/CLASS/NAME", status=404)
            self._visitors.check_origin(request)
        except InvalidCall as error:
            await receive()
            await _refuse(scope, send, problem_of_error(error))
            return
        refusal = await self._sockets.serve(target.class_name, target.name, scope, receive, send)
        if refusal is not None:
            await _refuse(scope, send, refusal)

    # ---- everything else -----------------------------------------------------------------------

    async def _other(self, raw_path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        verb: str = scope["method"]
        page = self._pages.get(path)
        if page is not None and verb in ("GET", "HEAD"):
            await _respond(send, _page_answer(page))
            return
        try:
            answer = await self._docs.answer(path, index=self._app is None)
        except RayObjectsError as error:
            answer = problem_of_error(error)
        if answer is not None:
            if verb not in ("GET", "HEAD"):
                answer = _method_not_allowed(f"{path} is read with GET", b"GET, HEAD")
            await _respond(send, answer)
        elif self._app is not None:
            await self._app(scope, receive, send)
        else:
            await _respond(send, problem_of_status(404, f"nothing is at {path}: see /docs"))

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def _failed(reply: Reply) -> Answer:
    info = info_from_wire(reply.body)
    if info.traceback:
        logger.error("%s\n%s", info.message, info.traceback)
    return problem_of_info(info)


def _json(value: Any) -> Answer:
    body = msgspec.json.encode(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return 200, headers, body


def _page_answer(page: tuple[str, bytes]) -> Answer:
    content_type, body = page
    headers = [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-cache"),
    ]
    return 200, headers, body


async def _respond(send: Send, answer: Answer) -> None:
    status, headers, body = answer
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(scope: Scope, send: Send, answer: Answer) -> None:
    """Refuses a WebSocket: with the problem where the server can, else with its plain 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    status, headers, body = answer
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _method_not_allowed(detail: str, allow: bytes) -> Answer:
    status, headers, body = problem_of_status(405, detail)
    return status, [*headers, (b"allow", allow)], body


def _may_be_json(content_type: bytes) -> bool:
    """A page's `fetch` calls a string text/plain, and many programs name no type at all."""
    media_type = content_type.split(b";", 1)[0].strip().lower()
    return media_type in (
        b"",
        b"application/json",
        b"text/plain",
        b"text/json",
    ) or media_type.endswith(b"+json")


def _call_id(key: bytes | None) -> str:
    if key is None:
        return ""
    return id_of_key(key.decode("latin-1"))


def _page(query: bytes) -> tuple[str, str, int]:
    """`prefix`, `after` and `limit` of a listing's query string."""
    try:
        fields = parse_qs(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise InvalidCall("the query is not UTF-8: percent-encode its UTF-8 bytes") from None
    for field in fields:
        if field not in _LISTING:
            raise _bad_field(field, f"a listing takes {', '.join(_LISTING)}, and no {field!r}")
    limit = fields.get("limit", [str(PAGE_NAMES)])[-1]
    digits = limit.isascii() and limit.isdigit() and len(limit) < 10
    if not digits or not 1 <= int(limit) <= PAGE_KEYS_MAX:
        raise _bad_field("limit", f"limit is a number from 1 to {PAGE_KEYS_MAX:,}, not {limit!r}")
    return fields.get("prefix", [""])[-1], fields.get("after", [""])[-1], int(limit)


def _bad_field(field: str, message: str) -> InvalidCall:
    return InvalidCall(message, details={"errors": [{"field": field, "message": message}]})


def _shown(query: bytes) -> str:
    text = query.decode("latin-1")
    return f"?{text[:QUERY_SHOWN_MAX]}" + ("…" if len(text) > QUERY_SHOWN_MAX else "")
