"""The page at `/ui`: files of a folder, which need nothing else.  They ask for no key: there is no secret in them."""

from __future__ import annotations

import functools
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pieray.server.problems import HttpProblem

PREFIX = "/ui"
FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
"""No text of a program can become HTML or a script: the browser has no way left to make one of it."""


def is_page(method: str, path: str) -> bool:
    """Whether a request is for a file of the page, which asks for no key."""
    return method in ("GET", "HEAD") and (path == PREFIX or path.startswith(f"{PREFIX}/"))


def routes() -> list[Route]:
    return [Route(PREFIX, _to_folder), Route(f"{PREFIX}/{{name:path}}", _file)]


async def _to_folder(_: Request) -> Response:
    return RedirectResponse(f"{PREFIX}/", status_code=308)


async def _file(request: Request) -> Response:
    name = request.path_params["name"] or "index.html"
    found = _files().get(name)
    if found is None:
        raise HttpProblem(404, f"the page has no file {name[:100]!r}", code="not_found")
    body, kind = found
    return Response(body, headers=HEADERS, media_type=kind)


@functools.cache
def _files() -> dict[str, tuple[bytes, str]]:
    """By name: the bytes, and what they are.  Read once; nothing else is ever read by a name that a client gives."""
    return {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in FOLDER.iterdir() if path.suffix in KINDS}
