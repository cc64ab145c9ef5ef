"""``/metrics`` for Prometheus. No key needed: it holds counts and bytes, and the names of keys, never prompts."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from ..metrics_of_several import scrape
from .base import errors, roster_of

router = APIRouter(tags=["server"])


@router.get("/metrics", response_class=PlainTextResponse, responses=errors(405, 503))
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus' text form (OpenMetrics where the client asks for it)."""
    body, media_type = await scrape(roster_of(request), request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})
