"""``/v1/models``."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..roster import Entry, Roster
from ..schemas.common import Answer
from .base import READS, json_answer, roster_of

router = APIRouter(tags=["models"])


class ModelAnswer(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    state: str
    pinned: bool


class ModelsAnswer(Answer):
    object: Literal["list"]
    data: list[ModelAnswer]


@router.get("/v1/models", response_model=ModelsAnswer, responses=READS)
async def models(request: Request) -> Response:
    """The names that requests may use, and whether each one's model is loaded."""
    roster = roster_of(request)
    return json_answer({"object": "list", "data": [shown(roster, entry) for entry in roster.entries]})


@router.get("/v1/models/{model:path}", response_model=ModelAnswer, responses=READS)
async def model(model: str, request: Request) -> Response:
    """One name. It is compared with those that are served, never looked up as a path."""
    roster = roster_of(request)
    return json_answer(shown(roster, roster.find(model)))


def shown(roster: Roster, entry: Entry) -> dict[str, Any]:
    """A model as clients see it. ``max_model_len`` is known once it was loaded."""
    service = entry.service
    return {
        "id": entry.name, "object": "model", "created": roster.first.created, "owned_by": "pagoda",
        "max_model_len": None if service is None else service.llm.max_model_len,
        "state": str(roster.place_of(entry)), "pinned": entry.pinned,
    }  # fmt: skip
