"""An answer that is the arguments of one call: ``tool_choice`` named the tool, its schema held the answer."""

from __future__ import annotations

from .pieces import Parser, Piece, ToolArguments, ToolStart


class NamedCall(Parser):
    """All text is arguments of call 0."""

    def __init__(self, name: str) -> None:
        self._name, self._started = name, False

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        start: list[Piece] = [] if self._started else [ToolStart(0, self._name)]
        self._started = True
        return [*start, ToolArguments(0, text)]

    def flush(self) -> list[Piece]:
        return []
