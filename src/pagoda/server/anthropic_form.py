"""Anthropic's conversations as the templates' messages."""

from __future__ import annotations

from typing import Any

from ..engine.async_llm import AsyncLLM
from .conversation import Conversation, chat_tools, require_template, template_texts, template_variables
from .errors import bad
from .pins import check_pinnable
from .schemas.chat import FunctionSpec, JsonSchemaFormat, JsonSchemaSpec, NamedFunction, NamedTool, Tool
from .schemas.messages import (
    AssistantTurn,
    MessagesFields,
    MessagesRequest,
    OneTool,
    TextBlock,
    ThinkingBlock,
    ThinkingOn,
    ToolResultBlock,
    ToolUseBlock,
    UserTurn,
)

TTL_SECONDS = {None: 300.0, "5m": 300.0, "1h": 3600.0}


def as_conversation(llm: AsyncLLM, body: MessagesFields) -> Conversation:
    """Raises ApiError for what the model's template cannot say."""
    require_template(llm)
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system)})
    for turn in body.messages:
        messages += _assistant(turn) if isinstance(turn, AssistantTurn) else _user(turn)
    none = body.tool_choice is not None and body.tool_choice.type == "none"
    return Conversation(messages, None if none else chat_tools(tools_of(body)), _variables(llm, body))


def tools_of(body: MessagesFields) -> list[Tool] | None:
    """Tools in the form of /v1/chat/completions."""
    return [
        Tool(
            type="function",
            function=FunctionSpec(
                name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
            ),
        )
        for tool in body.tools or ()
    ] or None


def single_call(body: MessagesFields) -> bool:
    """Whether an answer may have one call at most."""
    return bool(body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use)


def tool_choice_of(body: MessagesFields) -> Any:
    """The choice in OpenAI's form: none, auto, required, or a named function."""
    choice = body.tool_choice
    if choice is None:
        return None
    if isinstance(choice, OneTool):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return {"any": "required", "auto": "auto", "none": "none"}[choice.type]


def format_of(body: MessagesFields) -> JsonSchemaFormat | None:
    """``output_config.format`` in the form of ``response_format``."""
    wanted = body.output_config.format if body.output_config is not None else None
    if wanted is None:
        return None
    return JsonSchemaFormat(type="json_schema", json_schema=JsonSchemaSpec(name="output", schema=wanted.schema_))


def budget_of(body: MessagesRequest) -> int | None:
    """Most tokens of thoughts. Raises ApiError unless they leave room for an answer."""
    budget = body.thinking.budget_tokens if isinstance(body.thinking, ThinkingOn) else None
    if budget is not None and budget >= body.max_tokens:
        raise bad("thinking.budget_tokens", f"thinking.budget_tokens is {budget} and max_tokens {body.max_tokens}, "
                  "which counts both; leave room for the answer")  # fmt: skip
    return budget


def pin_seconds(llm: AsyncLLM, body: MessagesRequest) -> float | None:
    """How long the prompt is to be pinned: the longest of its cache marks; None without any."""
    found = [TTL_SECONDS[mark.ttl] for mark in _marks(body)]
    if not found:
        return None
    check_pinnable(llm, body.kv)
    return max(found)


def _marks(body: MessagesFields) -> list[Any]:
    blocks: list[Any] = [body, *(body.tools or ())]
    blocks += body.system if isinstance(body.system, list) else []
    for turn in body.messages:
        blocks += turn.content if isinstance(turn.content, list) else []
    return [mark for block in blocks if (mark := getattr(block, "cache_control", None)) is not None]


def _variables(llm: AsyncLLM, body: MessagesFields) -> dict[str, Any]:
    effort = body.output_config.effort if body.output_config is not None else None
    return template_variables(llm, effort, None, field="output_config.effort") | _thinking(llm, body)


def _thinking(llm: AsyncLLM, body: MessagesFields) -> dict[str, Any]:
    if body.thinking is None:
        return {}
    knows = any("enable_thinking" in text for text in template_texts(llm))
    if isinstance(body.thinking, ThinkingOn):
        if not knows:
            raise bad("thinking", "thinking: this model's chat template cannot turn it on; leave it out")
        return {"enable_thinking": True}
    return {"enable_thinking": body.thinking.type == "adaptive"} if knows else {}


def _user(turn: UserTurn) -> list[dict[str, Any]]:
    """Results of tools are messages of their own, before what the user says."""
    if isinstance(turn.content, str):
        return [{"role": "user", "content": turn.content}]
    results = [
        {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": ("Error: " if block.is_error else "") + _text(block.content or ""),
        }
        for block in turn.content
        if isinstance(block, ToolResultBlock)
    ]
    texts = [block.text for block in turn.content if isinstance(block, TextBlock)]
    return results + ([{"role": "user", "content": "\n".join(texts)}] if texts else [])


def _assistant(turn: AssistantTurn) -> list[dict[str, Any]]:
    if isinstance(turn.content, str):
        return [{"role": "assistant", "content": turn.content}]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(block.text for block in turn.content if isinstance(block, TextBlock)),
    }
    thoughts = "".join(block.thinking for block in turn.content if isinstance(block, ThinkingBlock))
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in turn.content
        if isinstance(block, ToolUseBlock)
    ]
    return [message | ({"reasoning_content": thoughts} if thoughts else {}) | ({"tool_calls": calls} if calls else {})]


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
