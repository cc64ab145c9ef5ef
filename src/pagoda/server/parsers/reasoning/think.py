"""``<think>…</think>`` in front of the answer: DeepSeek-R1, Qwen3, QwQ and many more.

Templates differ in who writes the first tag: the model, or the prompt's end. ``starts_inside`` says which.
"""

from __future__ import annotations

from .._scan import SPACE, TagScan
from ..pieces import Content, Parser, Piece, Reasoning, joined

_OPEN, _CLOSE = "<think>", "</think>"


class Think(Parser):
    """Only at the beginning; later tags are content. White space beside the tags is dropped."""

    def __init__(self, prompt_tail: str = "") -> None:
        """``prompt_tail``: how the prompt ends."""
        self._starts_inside = prompt_tail.rstrip(SPACE).endswith(_OPEN)
        self._state, self._held = self._at_start, ""
        self._scan = TagScan(_CLOSE)
        self._out: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        for char in text:
            self._state(char)
        return self._emitted()

    def flush(self) -> list[Piece]:
        held = self._held + self._scan.empty()
        inside = self._state == self._inside or (self._state == self._at_start and self._starts_inside)
        if held.strip(SPACE) or not inside:
            self._out.append(Reasoning(held) if inside else Content(held))
        self._held = ""
        return self._emitted()

    def _at_start(self, char: str) -> None:
        self._held += char
        tag = self._held.lstrip(SPACE)
        if tag == _OPEN:
            self._held, self._state = "", self._before_thought
        elif not _OPEN.startswith(tag):
            held, self._held = self._held, ""
            self._state = self._before_thought if self._starts_inside else self._outside
            for each in held:
                self._state(each)

    def _before_thought(self, char: str) -> None:
        if char not in SPACE:
            self._state = self._inside
            self._inside(char)

    def _inside(self, char: str) -> None:
        plain, found = self._scan.take(char)
        self._out.append(Reasoning(plain))
        if found:
            self._scan.empty()
            self._state = self._before_answer

    def _before_answer(self, char: str) -> None:
        if char not in SPACE:
            self._state = self._outside
            self._outside(char)

    def _outside(self, char: str) -> None:
        self._out.append(Content(char))

    def _emitted(self) -> list[Piece]:
        out, self._out = joined(self._out), []
        return out


PARSER = Think
MARKS = (_OPEN, _CLOSE)
BOUNDS = (_OPEN, _CLOSE)
"""What thoughts stand between, for models whose thoughts may be cut short."""
