"""An answer of /v1/chat/completions: its message, and the deltas of its stream."""

from __future__ import annotations

from typing import Any

from .parsers.base import Delta
from .service import new_id


class AnswerMessage:
    """The deltas of one answer, put together."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", ""
        self.calls: list[dict[str, Any]] = []

    def add(self, delta: Delta) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        for piece in delta.tool_calls:
            if piece.index == len(self.calls):
                function = {"name": piece.name or "", "arguments": ""}
                self.calls.append({"id": piece.id or new_id("call"), "type": "function", "function": function})
            self.calls[piece.index]["function"]["arguments"] += piece.arguments

    def as_dict(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message |= {"content": self.content or None, "tool_calls": self.calls}
        return message | ({"reasoning_content": self.reasoning} if self.reasoning else {})


def delta_dict(delta: Delta) -> dict[str, Any]:
    """A delta in OpenAI's form."""
    told: dict[str, Any] = {}
    if delta.reasoning:
        told["reasoning_content"] = delta.reasoning
    if delta.content:
        told["content"] = delta.content
    if delta.tool_calls:
        told["tool_calls"] = [
            {"index": piece.index, "function": {"arguments": piece.arguments}}
            if piece.id is None
            else {
                "index": piece.index, "id": piece.id, "type": "function",
                "function": {"name": piece.name, "arguments": piece.arguments},
            }
            for piece in delta.tool_calls
        ]  # fmt: skip
    return told
