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
from ..engine.outputs import RequestOutput
from .errors import bad
from .parsers.pipeline import knows_tools
from .schemas.chat import Message, Tool
from .tool_text import written_out


@dataclass(frozen=True, slots=True)
class Known:
    """An earlier prompt and its answer, as text and as the token ids that were computed."""

    text: str
    ids: list[int]


@dataclass(slots=True)
class Conversation:
    """``messages`` with the roles system, user, assistant, tool; ``tools`` in OpenAI's form, None for none.

    A prompt that goes on from ``known`` keeps its ids, so that the KV of an answer is found again: the model's own
    tokens, where encoding its text anew could cut it in other places.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    known: Known | None = None
    rendered: str = ""
    """The prompt's text, once it was rendered."""

    def text(self, llm: AsyncLLM) -> str:
        """The prompt as text, special tokens written out. Raises RequestError where the template refuses it."""
        messages, tools = self.messages, self.tools
        told = tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        if told and not any(map(knows_tools, template_texts(llm))):
            messages, tools = written_out(messages, tools), None
        self.rendered = llm.chat_template.render(
            messages, tools=tools, add_generation_prompt=True, **self.variables
        )  # fmt: skip
        return self.rendered

    def ids(self, llm: AsyncLLM) -> list[int]:
        """The prompt as token ids."""
        text, known, tokenizer = self.text(llm), self.known, llm.tokenizer
        if known is not None and text.startswith(known.text):
            rest = tokenizer.encode(text[len(known.text) :], add_special_tokens=False)
            if rest and tokenizer.is_special(rest[0]):  # a cut that no token can cross
                return known.ids + rest
        return tokenizer.encode(text, add_special_tokens=False, context=llm.max_model_len)

    def after(self, llm: AsyncLLM, output: RequestOutput) -> tuple[str, list[int]]:
        """Text and ids of this prompt and its answer, for the next one's ``known``; the end token is left to it."""
        ids = output.token_ids
        if ids and ids[-1] in llm.loaded.eos_ids:
            ids = ids[:-1]
        return self.rendered + llm.tokenizer.decode(ids, skip_special_tokens=False), output.prompt_token_ids + ids


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
    """Tools as templates expect them; ``strict`` is for the server."""
    left_out = {"function": {"strict"}}
    return [tool.model_dump(exclude_none=True, exclude=left_out) for tool in tools] if tools else None


def arguments_object(text: str) -> Any:
    """Arguments of a call as the object that they spell; the text itself where it spells none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def template_variables(
    llm: AsyncLLM, effort: str | None, more: Mapping[str, Any] | None, *, field: str = "reasoning_effort"
) -> dict[str, Any]:
    """Variables for the template. Raises ApiError for an effort (named ``field``) where the template does not know it,
    and for names that are not the client's to set.
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
            raise bad(field, f"{field}: this model's chat template does not know it; leave it out")
    return variables


def template_texts(llm: AsyncLLM) -> list[str]:
    """The texts of the chat templates in use."""
    from ..models.chat import choose_template

    return list(choose_template(llm.loaded.chat_templates, llm.config.chat_template).values())


def require_template(llm: AsyncLLM) -> None:
    """Raises ApiError where the model has no chat template."""
    if not template_texts(llm):
        raise bad("messages", "this model has no chat template; use /v1/completions, or serve it with --chat-template")
