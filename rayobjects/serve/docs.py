"""`/docs`, `/openapi.json` and `/`: what is deployed, for people.

The page is Swagger UI, whose files come from the package `fastapi-offline` and are served from
memory: FastAPI's own page loads them from a CDN, which a machine without internet does not reach.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib.resources import files
from urllib.parse import quote

import msgspec

from rayobjects.serve.links import ObjectClass, Router
from rayobjects.serve.openapi import document
from rayobjects.serve.problems import Headers

_ASSETS = {
    "/docs/swagger-ui.css": "text/css; charset=utf-8",
    "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}

_FRESH = b"no-cache"
_KEPT = b"public, max-age=86400"


class Docs:
    """Answers the paths of this module. The document is built anew when a class's version or the
    set of classes has changed."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._built_for: frozenset[tuple[str, int]] | None = None
        self._document = b""
        self._assets: dict[str, bytes] = {}

    async def answer(self, path: str, *, index: bool) -> tuple[int, Headers, bytes] | None:
        """The answer to a GET of this path; None if it is not one of ours.

        Args:
            path: the decoded path.
            index: whether `/` is ours.

        Raises:
            RayObjectsError: the catalog could not be read.
        """
        if path == "/openapi.json":
            return _answer("application/json", await self._openapi())
        if path == "/docs":
            return _answer("text/html; charset=utf-8", _DOCS_PAGE)
        if path == "/" and index:
            page = _index_page(await self._router.catalog())
            return _answer("text/html; charset=utf-8", page)
        if path in _ASSETS:
            return _answer(_ASSETS[path], self._asset(path), cache=_KEPT)
        return None

    async def _openapi(self) -> bytes:
        classes = await self._router.catalog()
        versions = frozenset((info.name, info.version) for info in classes.values())
        if versions != self._built_for:
            self._document = msgspec.json.encode(document(classes.values()))
            self._built_for = versions
        return self._document

    def _asset(self, path: str) -> bytes:
        if path not in self._assets:
            name = path.rpartition("/")[2]
            self._assets[path] = files("fastapi_offline").joinpath("static", name).read_bytes()
        return self._assets[path]


def _answer(content_type: str, body: bytes, cache: bytes = _FRESH) -> tuple[int, Headers, bytes]:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", cache),
    ]
    return 200, headers, body


_DOCS_PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>rayobjects: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<style>
body { margin: 0; background: #fff; }
html.dark-mode body { background: #1c2022; }
.swagger-ui .wrapper { padding: 0 16px; }
.swagger-ui .markdown p, .swagger-ui .renderedMarkdown p { line-height: 1.5; }
.swagger-ui .markdown :not(pre) > code, .swagger-ui .renderedMarkdown :not(pre) > code {
  padding: 1px 4px;  /* more would cover the line below */
}
</style>
</head>
<body>
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", paint);
paint();
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
  validatorUrl: null,
});
</script>
</body>
</html>
"""

_INDEX_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>rayobjects</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }
a { color: light-dark(#0b57d0, #8ab4f8); }
li { margin: .6rem 0; }
code { font-size: .95em; }
p, small { color: light-dark(#555, #aaa); }
</style>
</head>
<body>
<h1>rayobjects</h1>
<p><a href="docs">API documentation</a> · <a href="openapi.json">OpenAPI document</a></p>
"""


def _index_page(classes: Mapping[str, ObjectClass]) -> bytes:
    if not classes:
        return (
            _INDEX_HEAD + "<p>No class is deployed yet: <code>ro.deploy(…)</code>.</p>"
        ).encode()
    items = []
    for name in sorted(classes):
        info = classes[name]
        doc = info.doc.strip().partition("\n")[0]
        text = html.escape(name)
        path = quote(name, safe="")
        items.append(
            f'<li><a href="docs#/{path}"><strong>{text}</strong></a> '
            f'<a href="objects/{path}"><small>objects</small></a><br>{html.escape(doc)}</li>'
        )
    return (
        f"{_INDEX_HEAD}<h2>Classes</h2>\n<ul>\n{''.join(items)}\n</ul>\n</body>\n</html>".encode()
    )
