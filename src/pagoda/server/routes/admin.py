"""``/admin``: what the person who runs the server may see and do. Needs the admin key, where keys are configured."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...core.errors import BudgetError, RequestError
from ..errors import ApiError
from ..schemas.common import Answer, Body
from .base import errors, json_answer, require_admin, service_of

router = APIRouter(prefix="/admin", tags=["admin"])
_ANSWERS = errors(401, 403, 405, 408, 413, 429, 500, 503)


class AuditAnswer(Answer):
    balanced: bool


@router.get("/stats", response_model=dict[str, Any], responses=_ANSWERS)
async def stats(request: Request) -> Response:
    """Ledger, pages, queue and steps, as ``llm.stats()`` gives them, and what the server holds beside the engine."""
    require_admin(request)
    service = service_of(request)
    found = await service.llm.stats()
    found["server"] = {
        "state": str(service.state), "open_jobs": len(service.jobs), "open_streams": len(service.streams),
        "inside": service.gate.inside, "capacity": service.gate.capacity, "pins": len(service.pins),
        "pinned_bytes": service.pins.num_bytes, "stored_responses": len(service.responses),
        "connections": service.buffers.num_connections, "held_bytes": service.buffers.held,
        "capacity_bytes": service.buffers.capacity,
        "keys": {
            name: {"running": t.running, "kv_bytes": t.kv_bytes, "spent_tokens": t.spent_tokens}
            for name, t in service.gate.tenants.items()
        },
    }  # fmt: skip
    return json_answer(found)


class BudgetBody(Body):
    memory: str | int


class BudgetAnswer(Answer):
    total_bytes: int
    leased_bytes: int
    free_bytes: int


@router.post("/budget", response_model=BudgetAnswer, responses=errors(400, 401, 403, 405, 408, 409, 413, 429, 500, 503))
async def budget(request: Request, body: BudgetBody) -> Response:
    """Another memory budget from the next step on; 409 with the nearest that can where it is too small."""
    require_admin(request)
    llm = service_of(request).llm
    try:
        await llm.set_budget(body.memory)
    except BudgetError as error:
        raise ApiError(409, str(error), param="memory", code="budget_too_small") from error
    memory = (await llm.stats())["memory"]
    return json_answer({name: memory[name] for name in ("total_bytes", "leased_bytes", "free_bytes")})


class SleepAnswer(Answer):
    asleep: bool
    freed_bytes: int


@router.post("/sleep", response_model=SleepAnswer, responses=errors(401, 403, 405, 408, 409, 413, 429, 500, 503))
async def sleep(request: Request) -> Response:
    """Give weights and KV back until the next request, or ``/admin/wake``; 409 while requests run."""
    require_admin(request)
    service = service_of(request)
    service.check_ready()
    try:
        freed = await service.sleeper.sleep()
    except RequestError as error:
        raise ApiError(409, str(error), code="busy") from error
    return json_answer({"asleep": True, "freed_bytes": freed})


class WakeAnswer(Answer):
    asleep: bool


@router.post("/wake", response_model=WakeAnswer, responses=_ANSWERS)
async def wake(request: Request) -> Response:
    """Load the weights again now; 503 saying why where that cannot be."""
    require_admin(request)
    service = service_of(request)
    service.check_ready()
    await service.llm.wake()
    return json_answer({"asleep": False})


@router.post("/audit", response_model=AuditAnswer, responses=_ANSWERS)
async def audit(request: Request) -> Response:
    """Recount every page reference between two steps; 500 naming the page that is wrong."""
    require_admin(request)
    try:
        await service_of(request).llm.audit()
    except AssertionError as error:
        raise ApiError(500, f"the page accounts do not balance: {error}", code="audit_failed") from error
    return json_answer({"balanced": True})
