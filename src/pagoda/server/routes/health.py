"""``/health``, ``/ready``, ``/version``: alive, willing, and what this is. No key needed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ... import __version__
from ..schemas.common import Answer
from ..service import State
from .base import errors, json_answer, roster_of

router = APIRouter(tags=["server"])


class HealthAnswer(Answer):
    status: str


class VersionAnswer(Answer):
    version: str


@router.get("/health", response_model=HealthAnswer, responses=errors(405, 503))
async def health(request: Request) -> Response:
    """200 while the engine lives (also while the server drains), 503 otherwise."""
    for service in roster_of(request).services:
        if service.state is State.DEAD or service.llm.dead is not None:
            service.state = State.DEAD
            service.check_ready()
    return json_answer({"status": "ok"})


@router.get("/ready", response_model=HealthAnswer, responses=errors(405, 503))
async def ready(request: Request) -> Response:
    """200 while new requests are taken, 503 while the server drains or its engine is gone."""
    roster = roster_of(request)
    for service in roster.services:
        service.check_ready()
    return json_answer({"status": str(roster.first.state)})


@router.get("/version", response_model=VersionAnswer, responses=errors(405))
async def version() -> Response:
    """The version of Pagoda."""
    return json_answer({"version": __version__})
