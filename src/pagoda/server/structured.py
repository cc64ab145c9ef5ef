"""``response_format``, ``tools`` and ``tool_choice``: what an answer may look like."""

from __future__ import annotations

from typing import Any

from .errors import bad


def constraint(response_format: Any, tools: Any, tool_choice: Any) -> dict[str, Any]:
    """Fields of ``SamplingParams`` that hold the answer to its form. Raises ApiError for forms that it cannot hold."""
    if response_format is not None and response_format.type != "text":
        raise bad("response_format", f"response_format: {response_format.type} is not supported yet; accepted: text")
    if tools:
        raise bad("tools", "tools are not supported yet; leave them out")
    if tool_choice not in (None, "none", "auto"):
        raise bad("tool_choice", "tool_choice: there are no tools to choose from")
    return {}
