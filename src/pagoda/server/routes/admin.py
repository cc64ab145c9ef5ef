"""``/admin``: what the person who runs the server may see and do. Needs the admin key, where keys are configured."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import WithJsonSchema
from starlette.responses import Response

from ...core.errors import BudgetError, RequestError
from ..errors import ApiError, bad
from ..roster import Entry, Place, Roster
from ..schemas.common import Answer, Body
from .base import errors, json_answer, require_admin, roster_of

router = APIRouter(prefix="/admin", tags=["admin"])
_ANSWERS = errors(401, 403, 405, 408, 413, 429, 500, 503)


class AuditAnswer(Answer):
    balanced: bool


@router.get("/stats", response_model=dict[str, Any], responses=_ANSWERS | errors(404))
async def stats(request: Request, model: str | None = None) -> Response:
    """Ledger, pages, queue and steps, as ``llm.stats()`` gives them, and what the server holds beside the engine.

    Of several models the first one's, or those of the one that is named; the ledger is of all.
    """
    require_admin(request)
    roster = roster_of(request)
    service = roster.find(model).service or roster.first
    found = await service.llm.stats()
    if roster.shares_budget:
        found["models"] = [of_model(roster, entry) for entry in roster.entries]
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


Amount = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]})]


class BudgetBody(Body):
    """As ``LLM.set_budget`` takes them; what is left out stays."""

    memory: Amount = None
    host_memory: Amount = None
    device_memory: Amount = None
    disk: Amount = None


class BudgetAnswer(Answer):
    total_bytes: int
    leased_bytes: int
    free_bytes: int
    disk_bytes: int | None


@router.post("/budget", response_model=BudgetAnswer, responses=errors(400, 401, 403, 405, 408, 409, 413, 429, 500, 503))
async def budget(request: Request, body: BudgetBody) -> Response:
    """Other budgets from the next step on; 409 with the nearest that can where one is too small."""
    require_admin(request)
    roster = roster_of(request)
    said = {name: value for name, value in body.model_dump().items() if value is not None}
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            share = "" if name == "disk" else ", or a share of the machine (0.5, '50%')"
            raise bad(name, f"{name}: give bytes (2147483648, '2GiB'){share}")
    try:
        await roster.set_budget(said)
    except BudgetError as error:
        raise ApiError(409, str(error), param=next(iter(said)), code="budget_too_small") from error
    stats = await roster.first.llm.stats()
    found = {name: stats["memory"][name] for name in ("total_bytes", "leased_bytes", "free_bytes")}
    return json_answer(found | {"disk_bytes": (stats["disk"] or {}).get("budget_bytes")})


class SleepAnswer(Answer):
    asleep: bool
    freed_bytes: int


@router.post("/sleep", response_model=SleepAnswer, responses=errors(401, 403, 405, 408, 409, 413, 429, 500, 503))
async def sleep(request: Request) -> Response:
    """Give weights and KV of every model back until the next request, or ``/admin/wake``; 409 while requests run."""
    require_admin(request)
    roster = roster_of(request)
    roster.first.check_ready()
    freed = 0
    try:
        for entry in {id(entry.service): entry for entry in roster.entries if entry.service}.values():
            freed += await roster.unload(entry)
    except RequestError as error:
        raise ApiError(409, str(error), code="busy") from error
    return json_answer({"asleep": True, "freed_bytes": freed})


class WakeAnswer(Answer):
    asleep: bool


@router.post("/wake", response_model=WakeAnswer, responses=_ANSWERS)
async def wake(request: Request) -> Response:
    """Load the weights again now (of several models: the first one's); 503 saying why where that cannot be."""
    require_admin(request)
    roster = roster_of(request)
    roster.first.check_ready()
    await roster.load(roster.entries[0])
    return json_answer({"asleep": False})


class ModelBody(Body):
    model: str
    loaded: bool | None = None
    pinned: bool | None = None


class ModelPlaceAnswer(Answer):
    id: str
    state: str
    pinned: bool
    required_bytes: int | None
    num_loads: int


@router.post("/models", response_model=ModelPlaceAnswer, responses=_ANSWERS | errors(400, 404, 409))
async def place_model(request: Request, body: ModelBody) -> Response:
    """Load a model, unload it (409 while it has requests), pin it so that it stays when others need room, or unpin."""
    require_admin(request)
    roster = roster_of(request)
    roster.first.check_ready()
    entry = roster.find(body.model)
    if body.loaded is None and body.pinned is None:
        raise bad("loaded", "loaded or pinned: say what is to become of the model")
    try:
        if body.pinned is not None:
            await roster.pin(entry, body.pinned)
        if body.loaded:
            await roster.load(entry)
        elif body.loaded is False:
            await roster.unload(entry)
    except RequestError as error:
        raise ApiError(409, str(error), code="busy") from error
    return json_answer(of_model(roster, entry))


def of_model(roster: Roster, entry: Entry) -> dict[str, Any]:
    """Where a model is, and what it leases as long as it is loaded (known once it was)."""
    service, place = entry.service, roster.place_of(entry)
    return {
        "id": entry.name, "state": str(place), "pinned": entry.pinned, "num_loads": entry.num_loads,
        "required_bytes": service.llm.required_bytes if service and place is Place.LOADED else None,
    }  # fmt: skip


@router.post("/audit", response_model=AuditAnswer, responses=_ANSWERS)
async def audit(request: Request) -> Response:
    """Recount every page reference between two steps; 500 naming the page that is wrong."""
    require_admin(request)
    try:
        for service in roster_of(request).services:
            await service.llm.audit()
    except AssertionError as error:
        raise ApiError(500, f"the page accounts do not balance: {error}", code="audit_failed") from error
    return json_answer({"balanced": True})
