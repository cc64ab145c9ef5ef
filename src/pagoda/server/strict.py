"""``tool_choice`` auto: the model is free, and held as soon as it calls a tool with ``strict: true``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..sampling.grammar import json_rule, literal
from ..sampling.structured import Structured
from .errors import bad
from .parsers import TOOL_PARSERS
from .parsers._strict import Held
from .parsers.pipeline import choose_reasoning_parser, choose_tool_parser

if TYPE_CHECKING:
    from .service import Service


def free_until_called(
    service: Service, tools: Sequence[Any], several: bool, form: Structured | None
) -> Structured | None:
    """The form of an answer that is calls of these tools, or else text (or else in ``form``); None if all is free.

    Raises ApiError naming what cannot be held.
    """
    if form is None and not any(tool.function.strict for tool in tools):
        return None
    if choose_reasoning_parser(service.config.reasoning_parser, service.template_text) == "gpt_oss":
        raise bad("tools", "tools: strict cannot be held in this model's format while tool_choice is auto; set "
                  "tool_choice to required or to a name, or leave strict and response_format out")  # fmt: skip
    tokenizer = service.llm.tokenizer

    def special(mark: str) -> int | None:
        token_id = tokenizer.token_id(mark)
        return token_id if token_id is not None and tokenizer.is_special(token_id) else None

    held = Held(
        [(tool.function.name, json_rule(_schema(tool.function))) for tool in tools],
        None if form is None else _rule(form), several, special, service.template_text or "",
    )  # fmt: skip
    name = choose_tool_parser(service.config.tool_call_parser, service.template_text)
    return Structured(grammar=TOOL_PARSERS.module(name).strict_rules(held))


def _schema(function: Any) -> dict[str, Any]:
    """Arguments are an object, whatever else; only those of strict tools are held to more."""
    return {"type": "object"} | ((function.parameters or {}) if function.strict else {})


def _rule(form: Structured) -> str:
    """The right-hand side of a rule for what the answer is if it is no call."""
    if form.is_json:
        return json_rule({"type": "object"} if form.json_object else json.loads(form.json_schema))
    if form.choice is not None:
        return " | ".join(map(literal, form.choice))
    raise bad("structured_outputs", f"structured_outputs.{form.kind} leaves no room for calls; set tool_choice to none")
