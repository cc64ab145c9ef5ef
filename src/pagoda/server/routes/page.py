"""``/``: the web page, and ``/api/state``: what it draws. The page is files of this package, all of it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from ..errors import ApiError
from .base import READS, errors, json_answer, roster_of

router = APIRouter(tags=["page"])
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/", response_class=HTMLResponse, responses=errors(405))
async def index() -> Response:
    """The web page."""
    return _file("index.html")


@router.get("/page/{name}", response_class=Response, responses=errors(404, 405))
async def page(name: str) -> Response:
    """A file of the web page."""
    if name not in _files():
        raise ApiError(404, "the page has no such file")
    return _file(name)


@router.get("/api/state", response_model=dict[str, Any], responses=READS | errors(503))
async def state(request: Request, model: str | None = None) -> Response:
    """The engine at this moment: ledger, queue, sequences with the slots that each head keeps, prefix tree.

    Of several models the first that was loaded, or the one that is named.
    """
    roster = roster_of(request)
    service = roster.find(model).service or roster.first
    shown = await service.llm.watched(with_picture=True)
    kv = shown.pop("kv")
    del shown["startup"], shown["held_bytes_by_request"], shown["pages_by_granularity"]
    shown["model"]["name"] = service.names[0]
    return json_answer({"state": str(service.state), "kv": kv} | shown)


@cache
def _files() -> dict[str, bytes]:
    """The page's files by name, read once: a name that is not here leads nowhere."""
    folder = resources.files("pagoda.server") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _file(name: str) -> Response:
    kind = _TYPES["." + name.rpartition(".")[2]]
    charset = "" if kind.startswith("image") else "; charset=utf-8"
    return Response(_files()[name], headers=_HEADERS | {"Content-Type": kind + charset})
