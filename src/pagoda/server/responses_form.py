"""Conversations of /v1/responses as the templates' messages, and answers as output items with their events."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from .conversation import arguments_object
from .parsers.base import OutputParser
from .schemas.chat import (
    FunctionSpec,
    JsonObjectFormat,
    JsonSchemaFormat,
    JsonSchemaSpec,
    NamedFunction,
    NamedTool,
    Tool,
)
from .schemas.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    InputItem,
    JsonObject,
    JsonSchema,
    MessageItem,
    ReasoningItem,
    ResponsesRequest,
)
from .segments import Kind, Segment, Segments


def input_messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The new messages of a request, without its instructions."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    messages: list[dict[str, Any]] = []
    for item in body.input:
        _append(messages, item)
    return messages


def _append(messages: list[dict[str, Any]], item: InputItem) -> None:
    """Reasoning, text and calls of one assistant turn are items here and one message there."""
    if isinstance(item, FunctionOutputItem):
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        return
    if isinstance(item, MessageItem) and item.role != "assistant":
        role = "system" if item.role == "developer" else item.role
        messages.append({"role": role, "content": _text(item)})
        return
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if last is None or (isinstance(item, MessageItem) and last["content"]):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    if isinstance(item, FunctionCallItem):
        function = {"name": item.name, "arguments": arguments_object(item.arguments)}
        last.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif isinstance(item, ReasoningItem):
        thoughts = "".join(part.text for part in item.content or ())
        if thoughts:
            last["reasoning_content"] = last.get("reasoning_content", "") + thoughts
    else:
        last["content"] = _text(item)


def _text(item: MessageItem) -> str:
    return item.content if isinstance(item.content, str) else "\n".join(part.text for part in item.content)


def answer_message(segments: list[Segment]) -> dict[str, Any]:
    """What was answered, as the message that the next prompt begins with."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(segment.text for segment in segments if segment.kind is Kind.TEXT),
    }
    thoughts = "".join(segment.text for segment in segments if segment.kind is Kind.REASONING)
    calls = [
        {
            "id": segment.call_id, "type": "function",
            "function": {"name": segment.name, "arguments": arguments_object(segment.text)},
        }
        for segment in segments
        if segment.kind is Kind.CALL
    ]  # fmt: skip
    return message | ({"reasoning_content": thoughts} if thoughts else {}) | ({"tool_calls": calls} if calls else {})


def chat_tools(body: ResponsesRequest) -> list[Tool] | None:
    """Tools in the form of /v1/chat/completions."""
    return [
        Tool(
            type="function",
            function=FunctionSpec(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            ),
        )
        for tool in body.tools or ()
    ] or None


def chat_tool_choice(body: ResponsesRequest) -> Any:
    """The choice in the form of /v1/chat/completions."""
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    return NamedTool(type="function", function=NamedFunction(name=choice.name))


def chat_format(body: ResponsesRequest) -> Any:
    """``text.format`` in the form of ``response_format``."""
    wanted = body.text.format if body.text is not None else None
    if isinstance(wanted, JsonObject):
        return JsonObjectFormat(type="json_object")
    if isinstance(wanted, JsonSchema):
        spec = JsonSchemaSpec(
            name=wanted.name, description=wanted.description, schema=wanted.schema_, strict=wanted.strict
        )
        return JsonSchemaFormat(type="json_schema", json_schema=spec)
    return None


class Items(Segments):
    """Output items as events. ``emit(type, fields)`` writes one event and numbers it."""

    def __init__(self, make_parser: Callable[[], OutputParser], emit: Callable[..., bytes]) -> None:
        super().__init__(make_parser)
        self._emit = emit
        self._ids: dict[int, str] = {}
        self.logprobs: list[Any] = []
        """Of the text; told with the finished part."""

    def item_id(self, segment: Segment) -> str:
        prefix = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}[segment.kind]
        return self._ids.setdefault(segment.index, f"{prefix}_{uuid.uuid4().hex}")

    def item(self, segment: Segment, status: str = "completed", *, empty: bool = False) -> dict[str, Any]:
        """The item; ``empty`` as it is when it begins."""
        if segment.kind is Kind.CALL:
            return {
                "id": self.item_id(segment), "type": "function_call", "status": status, "call_id": segment.call_id,
                "name": segment.name, "arguments": "" if empty else segment.text,
            }  # fmt: skip
        content = [] if empty else [self._part(segment, segment.text)]
        if segment.kind is Kind.REASONING:
            return {"id": self.item_id(segment), "type": "reasoning", "summary": [], "content": content,
                    "status": status}  # fmt: skip
        return {"id": self.item_id(segment), "type": "message", "status": status, "role": "assistant",
                "content": content}  # fmt: skip

    def opened(self, segment: Segment) -> list[bytes]:
        item = self.item(segment, "in_progress", empty=True)
        told = [self._emit("response.output_item.added", output_index=segment.index, item=item)]
        if segment.kind is not Kind.CALL:
            told.append(self._emit("response.content_part.added", **self._place(segment), part=self._part(segment, "")))
        return told

    def grew(self, segment: Segment, text: str) -> list[bytes]:
        if segment.kind is Kind.CALL:
            place = {"item_id": self.item_id(segment), "output_index": segment.index}
            return [self._emit("response.function_call_arguments.delta", **place, delta=text)]
        if segment.kind is Kind.REASONING:
            return [self._emit("response.reasoning_text.delta", **self._place(segment), delta=text)]
        return [self._emit("response.output_text.delta", **self._place(segment), delta=text, logprobs=[])]

    def closed(self, segment: Segment) -> list[bytes]:
        place = self._place(segment)
        done = self._emit_done(segment, place)
        if segment.kind is not Kind.CALL:
            part = self._part(segment, segment.text)
            done.append(self._emit("response.content_part.done", **place, part=part))
        item = self.item(segment)
        return [*done, self._emit("response.output_item.done", output_index=segment.index, item=item)]

    def _emit_done(self, segment: Segment, place: dict[str, Any]) -> list[bytes]:
        if segment.kind is Kind.TEXT:
            return [self._emit("response.output_text.done", **place, text=segment.text, logprobs=self.logprobs)]
        if segment.kind is Kind.REASONING:
            return [self._emit("response.reasoning_text.done", **place, text=segment.text)]
        del place["content_index"]
        return [
            self._emit(
                "response.function_call_arguments.done", **place, name=segment.name, arguments=segment.text
            )
        ]  # fmt: skip

    def _place(self, segment: Segment) -> dict[str, Any]:
        return {"item_id": self.item_id(segment), "output_index": segment.index, "content_index": 0}

    def _part(self, segment: Segment, text: str) -> dict[str, Any]:
        if segment.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs if text else []}
