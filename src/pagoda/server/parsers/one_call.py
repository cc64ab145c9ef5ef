"""``parallel_tool_calls: false``: the first call is told, later ones are not."""

from __future__ import annotations

from .base import Delta, OutputParser


class OneCall:
    """Another parser, less its calls after the first."""

    def __init__(self, inner: OutputParser) -> None:
        self._inner, self.special = inner, inner.special

    def push(self, text: str) -> Delta:
        return _first_only(self._inner.push(text))

    def finish(self) -> Delta:
        return _first_only(self._inner.finish())


def _first_only(delta: Delta) -> Delta:
    delta.tool_calls = [piece for piece in delta.tool_calls if piece.index == 0]
    return delta
