"""The ASGI application: routes from the folder, errors in one shape, an OpenAPI document that says what happens."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from .. import __version__
from ..core.errors import PagodaError
from . import routes
from .errors import ApiError, from_validation, translated
from .guard import Guard
from .roster import Roster
from .streams import encode

_log = logging.getLogger(__name__)


def create_app(roster: Roster) -> ASGIApp:
    """The application over the models that are served; the caller starts and stops them."""
    app = FastAPI(
        title="Pagoda", version=__version__, description="Language models inside a memory budget.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.roster = roster
    for router in routers():
        app.include_router(router)
    _handle_errors(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    guarded: ASGIApp = Guard(app, roster.first)
    if roster.first.config.cors_origins:
        guarded = CORSMiddleware(
            guarded, allow_origins=list(roster.first.config.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    return guarded


def routers() -> list[Any]:
    """``router`` of every file in ``routes`` that has one, in the order of the names."""
    found = []
    for module in sorted(m.name for m in pkgutil.iter_modules(routes.__path__)):
        router = getattr(importlib.import_module(f"{routes.__name__}.{module}"), "router", None)
        if router is not None:
            found.append(router)
    return found


def _handle_errors(app: FastAPI) -> None:
    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _answer(request, error)

    async def on_pagoda_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, PagodaError)
        return _answer(request, translated(error))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _answer(request, from_validation(list(error.errors())))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: _no_such_path(request.url.path), 405: f"{request.method} is not possible here"}
        answer = _answer(request, ApiError(error.status_code, what.get(error.status_code, str(error.detail))))
        answer.headers.update(error.headers or {})
        return answer

    async def on_bug(request: Request, error: Exception) -> Response:
        _log.error("request %s failed", request.scope["state"]["request_id"], exc_info=error)
        return _answer(request, ApiError(500, "internal error; the server's log has the details", code="internal"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(PagodaError, on_pagoda_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def _no_such_path(path: str) -> str:
    """With the way out for the habits of other servers' clients."""
    if path.startswith("/api/"):
        return f"no such path: {path}; Ollama's own API is not spoken here: point its OpenAI client at /v1"
    return f"no such path: {path}; the APIs of OpenAI and Anthropic are at /v1/…, and /openapi.json lists all paths"


def _answer(request: Request, error: ApiError) -> Response:
    anthropic = request.url.path.startswith("/v1/messages")
    body = error.anthropic_body() if anthropic else error.body()
    return Response(encode(body), error.status, error.headers(), media_type="application/json")


def _document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document without its 422, which is never sent: what does not validate is a 400 here."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
