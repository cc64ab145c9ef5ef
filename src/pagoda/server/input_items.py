"""What a stored response was asked, as ``/v1/responses/{id}/input_items`` lists it: one page at a time."""

from __future__ import annotations

import uuid
from typing import Any

from .errors import bad
from .schemas.responses import InputItem, MessageItem, ResponsesRequest

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def input_items(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The new items of a request, oldest first, each with an id. Those before it belong to the previous response."""
    if isinstance(body.input, str):
        return [_as_dict(MessageItem(role="user", content=body.input))]
    return [_as_dict(item) for item in body.input]


def _as_dict(item: InputItem) -> dict[str, Any]:
    told: dict[str, Any] = item.model_dump(exclude_none=True)
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        told["content"] = [{"type": kind, "text": item.content}]
    return {"id": f"{_PREFIXES[item.type]}_{uuid.uuid4().hex}", "status": "completed"} | told


def page_of(items: list[dict[str, Any]], *, limit: int, newest_first: bool, after: str | None) -> dict[str, Any]:
    """``limit`` items that follow the one with id ``after``. Raises ApiError for an id that is not among them."""
    ordered = items[::-1] if newest_first else items
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise bad("after", f"after: no item {after!r} in this response's input")
        ordered = ordered[places[0] + 1 :]
    data = ordered[:limit]
    return {
        "object": "list", "data": data, "has_more": len(ordered) > limit,
        "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None,
    }  # fmt: skip
