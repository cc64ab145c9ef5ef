"""What a model's text means: reasoning, content, tool calls. One file per format, in ``tools`` and ``reasoning``."""

from __future__ import annotations

from pagoda.core.registry import Registry

TOOL_PARSERS = Registry("pagoda.server.parsers.tools", "tool call parser", "PARSER")
REASONING_PARSERS = Registry("pagoda.server.parsers.reasoning", "reasoning parser", "PARSER")
