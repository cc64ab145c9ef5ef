"""The contract of streaming parsers, and what they emit.

A parser is fed a text in pieces and says what they mean. Two things hold for every parser, and one test over the
registry checks them: what comes out, adjacent deltas joined, does not depend on where the text was cut; and text that
is not well formed comes out as content (or as reasoning, where that had begun), none of it lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolStart:
    """Call number ``index`` of the answer begins; its name is known."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """More of the JSON text of call number ``index``."""

    index: int
    text: str


Piece = Content | Reasoning | ToolStart | ToolArguments


class Parser(ABC):
    """One answer's text. ``push`` pieces of it, then ``flush`` once."""

    needs_special_tokens: bool = False
    """Whether the format is written in special tokens, which must then be part of the text."""

    @abstractmethod
    def push(self, text: str) -> list[Piece]:
        """What is certain with this text."""

    @abstractmethod
    def flush(self) -> list[Piece]:
        """The text is over: what was held back."""


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Adjacent deltas of one kind as one; empty ones left out."""
    out: list[Piece] = []
    for piece in pieces:
        if not isinstance(piece, ToolStart) and not piece.text:
            continue
        last = out[-1] if out else None
        if isinstance(piece, Content) and isinstance(last, Content):
            out[-1] = Content(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            out[-1] = Reasoning(last.text + piece.text)
        elif isinstance(piece, ToolArguments) and isinstance(last, ToolArguments) and last.index == piece.index:
            out[-1] = ToolArguments(last.index, last.text + piece.text)
        else:
            out.append(piece)
    return out
