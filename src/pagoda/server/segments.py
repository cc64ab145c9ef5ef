"""An answer as a row of segments, one after the other: reasoning, text, tool calls. For forms that tell them apart.

/v1/responses calls them output items, /v1/messages content blocks; each opens, grows and closes, and the next one opens
after that.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from ..engine.outputs import Completion
from .parsers.base import Delta, OutputParser


class Kind(StrEnum):
    """What a segment holds."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class Segment:
    """Number ``index`` of the answer. ``text`` is what there is so far; of a call, its arguments as JSON text."""

    index: int
    kind: Kind
    text: str = ""
    call_id: str = ""
    name: str = ""
    call_index: int = -1


class Segments(ABC):
    """Takes an answer's news and returns the events that tell them (nothing but bytes to join)."""

    def __init__(self, make_parser: Callable[[], OutputParser]) -> None:
        self.segments: list[Segment] = []
        self._make_parser = make_parser
        self._open: Segment | None = None
        self._ended = False

    @abstractmethod
    def opened(self, segment: Segment) -> list[bytes]:
        """A segment begins; it is still empty."""

    @abstractmethod
    def grew(self, segment: Segment, text: str) -> list[bytes]:
        """More text of the open segment (already part of it)."""

    @abstractmethod
    def closed(self, segment: Segment) -> list[bytes]:
        """The segment is complete."""

    @cached_property
    def _parser(self) -> OutputParser:
        """Made with the first output, when the prompt is known."""
        return self._make_parser()

    def news(self, completion: Completion) -> list[bytes]:
        """What a step brought; at the answer's end also what the parser had kept."""
        if self._ended:
            return []
        told = self._take(self._parser.push(completion.delta)) if completion.delta else []
        if completion.finish_reason is not None:
            self._ended = True
            told += self._take(self._parser.finish()) + self._close()
        return told

    def whole(self, completion: Completion) -> list[Segment]:
        """All segments of a finished answer that was not streamed."""
        self._take(self._parser.push(completion.text))
        self._take(self._parser.finish())
        self._close()
        return self.segments

    @property
    def has_calls(self) -> bool:
        return any(segment.kind is Kind.CALL for segment in self.segments)

    def _take(self, delta: Delta) -> list[bytes]:
        told = []
        if delta.reasoning:
            told += self._grow(Kind.REASONING, delta.reasoning)
        if delta.content:
            told += self._grow(Kind.TEXT, delta.content)
        for piece in delta.tool_calls:
            told += self._grow(Kind.CALL, piece.arguments, piece.index, piece.id or "", piece.name or "")
        return told

    def _grow(self, kind: Kind, text: str, call_index: int = -1, call_id: str = "", name: str = "") -> list[bytes]:
        told: list[bytes] = []
        segment = self._open
        if segment is None or segment.kind is not kind or segment.call_index != call_index:
            told += self._close()
            call_id = call_id or f"call_{uuid.uuid4().hex[:24]}"
            segment = self._open = Segment(len(self.segments), kind, "", call_id, name, call_index)
            self.segments.append(segment)
            told += self.opened(segment)
        if text:
            segment.text += text
            told += self.grew(segment, text)
        return told

    def _close(self) -> list[bytes]:
        segment, self._open = self._open, None
        return [] if segment is None else self.closed(segment)
