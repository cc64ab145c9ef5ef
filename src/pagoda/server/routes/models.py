"""``/v1/models``."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..schemas.common import Answer
from ..service import Service
from .base import READS, json_answer, service_of

router = APIRouter(tags=["models"])


class ModelAnswer(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelsAnswer(Answer):
    object: Literal["list"]
    data: list[ModelAnswer]


@router.get("/v1/models", response_model=ModelsAnswer, responses=READS)
async def models(request: Request) -> Response:
    """The names under which the model is served."""
    service = service_of(request)
    return json_answer({"object": "list", "data": [_model(service, name) for name in service.names]})


@router.get("/v1/models/{model:path}", response_model=ModelAnswer, responses=READS)
async def model(model: str, request: Request) -> Response:
    """One name. It is compared with those that are served, never looked up as a path."""
    service = service_of(request)
    return json_answer(_model(service, service.check_model(model)))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "pagoda",
        "max_model_len": service.llm.max_model_len,
    }  # fmt: skip
