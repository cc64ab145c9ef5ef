"""From a conversation in any of the three API forms to the model's prompt.

``Conversation`` is what the forms have in common: messages as chat templates expect them, tools, and the template's
variables. Rendering and tokenizing happen in a worker thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine.async_llm import AsyncLLM
from .errors import bad
from .schemas.chat import Message, Tool


@dataclass(slots=True)
class Conversation:
    """``messages`` with the roles system, user, assistant, tool; ``tools`` in OpenAI's form, None for none."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def text(self, llm: AsyncLLM) -> str:
        """The prompt as text, special tokens written out. Raises RequestError where the template refuses it."""
        template = llm.chat_template
        return template.render(self.messages, tools=self.tools, add_generation_prompt=True, **self.variables)

    def ids(self, llm: AsyncLLM) -> list[int]:
        """The prompt as token ids."""
        return llm.tokenizer.encode(self.text(llm), add_special_tokens=False)


def from_chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """OpenAI's messages as templates expect them: ``developer`` is ``system``, arguments of tool calls are objects."""
    return [_plain(message.model_dump(exclude_none=True)) for message in messages]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    message.pop("refusal", None)
    message.pop("annotations", None)
    if message["role"] == "developer":
        message["role"] = "system"
    for call in message.get("tool_calls", ()):
        call["function"]["arguments"] = arguments_object(call["function"]["arguments"])
    if message["role"] == "assistant" and not message.get("tool_calls"):
        message.setdefault("content", "")
    return message


def chat_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools as templates expect them."""
    return [tool.model_dump(exclude_none=True) for tool in tools] if tools else None


def arguments_object(text: str) -> Any:
    """Arguments of a call as the object that they spell; the text itself where it spells none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def template_variables(llm: AsyncLLM, effort: str | None, more: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables for the template. Raises ApiError for ``reasoning_effort`` where the template does not know it, and for
    names that are not the client's to set.
    """
    variables = dict(more or {})
    taken = {"messages", "tools", "documents", "add_generation_prompt"} & variables.keys()
    if taken:
        raise bad("chat_template_kwargs", f"chat_template_kwargs: {', '.join(sorted(taken))} cannot be set there")
    if effort is not None:
        text = "".join(template_texts(llm))
        if "reasoning_effort" in text:
            variables.setdefault("reasoning_effort", effort)
        elif "enable_thinking" in text:
            variables.setdefault("enable_thinking", effort != "none")
        else:
            raise bad("reasoning_effort", "reasoning_effort: this model's chat template does not know it; leave it out")
    return variables


def template_texts(llm: AsyncLLM) -> list[str]:
    """The texts of the chat templates in use."""
    from ..models.chat import choose_template

    return list(choose_template(llm.loaded.chat_templates, llm.config.chat_template).values())


def require_template(llm: AsyncLLM) -> None:
    """Raises ApiError where the model has no chat template."""
    if not template_texts(llm):
        raise bad(
            "messages", "this model has no chat template; use /v1/completions, or start the server with --chat-template"
        )
