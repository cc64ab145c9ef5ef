"""Which parser reads an answer: by the server's options, the chat template, and what the request asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._named import NamedCall
from .base import OutputParser, PlainParser
from .pipeline import Pipeline, choose_reasoning_parser, choose_tool_parser, reasoning_parser, tool_parser
from .reader import Reader

if TYPE_CHECKING:
    from ..conversation import Conversation
    from ..service import Service


def make_parser(
    service: Service, conversation: Conversation, tool_choice: Any = None, *, held_to_form: bool = False
) -> OutputParser:
    """A fresh parser for one answer, made once the prompt is rendered (its end tells whether reasoning has begun).

    An answer that is held to a form (a schema, a call that must come) has no reasoning before it.
    """
    tools, template = conversation.tools if tool_choice != "none" else None, service.template_text
    calls = None
    if tools:
        names = [tool["function"]["name"] for tool in tools]
        if tool_choice in (None, "auto"):
            calls = tool_parser(choose_tool_parser(service.config.tool_call_parser, template), names)
        elif tool_choice == "required":
            calls = tool_parser("json", names)
        else:
            calls = NamedCall(tool_choice.function.name)
    name = None if held_to_form else choose_reasoning_parser(service.config.reasoning_parser, template)
    thoughts = reasoning_parser(name, conversation.rendered[-256:])
    return PlainParser() if calls is None and thoughts is None else Reader(Pipeline(thoughts, calls))
