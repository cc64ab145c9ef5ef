"""From pieces to the deltas that the endpoints tell: ids are given, the ways of writing calls are left behind."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from .base import Delta, ToolCallDelta
from .pieces import Content, Parser, Piece, Reasoning, ToolStart


class Reader:
    """An ``OutputParser`` over a parser of pieces."""

    def __init__(self, parser: Parser) -> None:
        self._parser, self.special = parser, parser.needs_special_tokens

    def push(self, text: str) -> Delta:
        return _delta(self._parser.push(text))

    def finish(self) -> Delta:
        return _delta(self._parser.flush())


def new_call_id() -> str:
    """Nine letters and digits, which is what Mistral's templates insist on; 46 bits at random."""
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in uuid.uuid4().bytes[:9])


_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def _delta(pieces: Iterable[Piece]) -> Delta:
    delta = Delta()
    for piece in pieces:
        if isinstance(piece, Content):
            delta.content += piece.text
        elif isinstance(piece, Reasoning):
            delta.reasoning += piece.text
        elif isinstance(piece, ToolStart):
            delta.tool_calls.append(ToolCallDelta(piece.index, new_call_id(), piece.name))
        elif delta.tool_calls and delta.tool_calls[-1].index == piece.index:
            delta.tool_calls[-1].arguments += piece.text
        else:
            delta.tool_calls.append(ToolCallDelta(piece.index, arguments=piece.text))
    return delta
