"""What the answers of the HTTP APIs say, however they were told: whole, or as a stream of events.

Only what a client is promised to see each time is read: texts, calls, log-probabilities and how it ended, without ids
and times.
"""

from __future__ import annotations

import json
from typing import Any

from .api_work import Ask, Body

UNPROMISED = ("id", "created", "created_at", "metrics", "usage", "call_id", "model", "item_id", "response_id")


def told(ask: Ask, answer: bytes) -> Any:
    """Raises ValueError for a stream that does not end as streams do."""
    if not ask.streams:
        return _bare(_choices(json.loads(answer)))
    events = [json.loads(line[6:]) for line in answer.decode().split("\n") if line.startswith("data: {")]
    for one in events:
        if "error" in one and one["error"] is not None:
            raise ValueError(f"the stream ends with {one}")
    if ask.path == "/v1/responses":
        if events[-1].get("type") not in ("response.completed", "response.incomplete"):
            raise ValueError(f"the last event is {events[-1]}")
        return _bare(_choices(events[-1]["response"]))
    if ask.path == "/v1/messages":
        return _bare(_choices(_message(events)))
    if not answer.endswith(b"data: [DONE]\n\n"):
        raise ValueError(f"no [DONE]: {answer[-200:]!r}")
    return _bare(_joined(events))


def _choices(answer: Body) -> Any:
    if "choices" not in answer:
        return {key: answer[key] for key in ("content", "output", "status", "stop_reason", "data", "tokens", "prompt",
                                             "input_tokens", "token_strs") if key in answer}  # fmt: skip
    return sorted((_choice(one) for one in answer["choices"]), key=lambda one: one["index"])


def _choice(one: Body) -> Body:
    message = one.get("message", {})
    return {
        "index": one["index"], "finish_reason": one["finish_reason"], "logprobs": one["logprobs"],
        "text": one.get("text", message.get("content") or ""), "reasoning": message.get("reasoning_content") or "",
        "calls": [[one["function"]["name"], one["function"]["arguments"]] for one in message.get("tool_calls") or ()],
    }  # fmt: skip


def _joined(events: list[Body]) -> Any:
    """Chunks of completions or chats as the whole answer has it."""
    found: dict[int, Body] = {}
    for part in (choice for one in events for choice in one["choices"]):
        empty = {
            "index": part["index"],
            "finish_reason": None,
            "logprobs": None,
            "text": "",
            "reasoning": "",
            "calls": [],
        }
        whole, delta = found.setdefault(part["index"], empty | {"calls": []}), part.get("delta", {})
        whole["text"] += part.get("text", delta.get("content") or "")
        whole["reasoning"] += delta.get("reasoning_content") or ""
        whole["finish_reason"] = part["finish_reason"] or whole["finish_reason"]
        for call in delta.get("tool_calls") or ():
            if call["index"] == len(whole["calls"]):
                whole["calls"].append(["", ""])
            whole["calls"][call["index"]][0] += call["function"].get("name") or ""
            whole["calls"][call["index"]][1] += call["function"].get("arguments") or ""
        for key, value in (part["logprobs"] or {}).items():
            whole["logprobs"] = whole["logprobs"] or {}
            whole["logprobs"][key] = value if value is None else (whole["logprobs"].get(key) or []) + value
    return [found[index] for index in sorted(found)]


def _message(events: list[Body]) -> Body:
    """Anthropic's events as the whole message has it."""
    message, partial = {"content": [], "stop_reason": None}, ""
    for one in events:
        if one["type"] == "content_block_start":
            message["content"].append(dict(one["content_block"]))
            partial = ""
        elif one["type"] == "content_block_delta":
            block, delta = message["content"][-1], one["delta"]
            if delta["type"] == "input_json_delta":
                partial += delta["partial_json"]
            else:
                key = "text" if delta["type"] == "text_delta" else "thinking"
                block[key] += delta.get(key, "")
        elif one["type"] == "content_block_stop" and message["content"][-1]["type"] == "tool_use":
            try:
                message["content"][-1]["input"] = json.loads(partial or "{}")
            except ValueError:
                message["content"][-1]["input"] = {}
        elif one["type"] == "message_delta":
            message["stop_reason"] = one["delta"]["stop_reason"]
    if events[-1]["type"] != "message_stop":
        raise ValueError(f"the last event is {events[-1]}")
    return message


def _bare(found: Any) -> Any:
    """Without what differs each time."""
    if isinstance(found, dict):
        return {key: _bare(value) for key, value in found.items() if key not in UNPROMISED}
    return [_bare(one) for one in found] if isinstance(found, list) else found


def alike(mine: Any, alone: Any, rounding: float = 1e-5) -> str:
    """Where two answers differ, or nothing; numbers that are no integers may by ``rounding``: the mean of an embedding
    is added up chunk by chunk.
    """
    if isinstance(mine, dict) and isinstance(alone, dict):
        if mine.keys() != alone.keys():
            return f"keys {sorted(mine.keys() ^ alone.keys())}"
        return next((f"{key}: {why}" for key in mine if (why := alike(mine[key], alone[key], rounding))), "")
    if isinstance(mine, list) and isinstance(alone, list):
        if len(mine) != len(alone):
            return f"{len(mine)} things, alone {len(alone)}: {str(mine)[:200]} / {str(alone)[:200]}"
        pairs = enumerate(zip(mine, alone, strict=True))
        return next((f"{at}: {why}" for at, (a, b) in pairs if (why := alike(a, b, rounding))), "")
    if isinstance(mine, float) and isinstance(alone, float):
        return "" if abs(mine - alone) <= rounding else f"{mine} alone {alone}"
    return "" if mine == alone else f"{mine!r} alone {alone!r}"
