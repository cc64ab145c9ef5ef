"""The channels of gpt-oss (https://cookbook.openai.com/articles/openai-harmony): thoughts, calls and the answer.

<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
"""

from __future__ import annotations

import re

from ..pieces import Content, Parser, Piece, Reasoning, ToolArguments, ToolStart, joined

_MESSAGE = "<|message|>"
_BEGINS = ("<|channel|>", "<|start|>")
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")


class GptOss(Parser):
    """A message is a header up to ``<|message|>`` and a body up to the next mark. Text without any is content."""

    needs_special_tokens = True

    def __init__(self, prompt_tail: str = "") -> None:
        self._header: str | None = ""  # None inside a body
        self._kind = "content"
        self._held = ""
        self._num_calls = 0
        self._out: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        for char in text:
            if self._header is None:
                self._in_body(char)
            else:
                self._in_header(char)
        return self._emitted()

    def flush(self) -> list[Piece]:
        if self._header is not None:
            self._out.append(Content(self._header))
            self._header = ""
        else:
            self._tell(self._held)
            self._held = ""
        return self._emitted()

    def _in_header(self, char: str) -> None:
        assert self._header is not None
        header = self._header = self._header + char
        if header.endswith(_MESSAGE):
            self._begin_body(header)
        elif not any(header.startswith(mark[: len(header)]) for mark in (*_BEGINS, " to=", "to=")):
            self._header, self._kind = None, "content"  # no header at all: the text itself
            for each in header:
                self._in_body(each)

    def _begin_body(self, header: str) -> None:
        self._header = None
        recipient = _RECIPIENT.search(header)
        if recipient is not None:
            self._kind = "call"
            self._out.append(ToolStart(self._num_calls, recipient[1]))
            self._num_calls += 1
        else:
            self._kind = "reasoning" if "<|channel|>analysis" in header else "content"

    def _in_body(self, char: str) -> None:
        self._held += char
        for mark in (*_BEGINS, *_ENDS):
            if self._held.endswith(mark):
                self._tell(self._held[: -len(mark)])
                self._held, self._header = "", mark if mark in _BEGINS else ""
                return
        keep = next((n for n in range(min(11, len(self._held)), 0, -1) if _may_be_mark(self._held[-n:])), 0)
        self._tell(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def _tell(self, text: str) -> None:
        if self._kind == "call":
            self._out.append(ToolArguments(self._num_calls - 1, text))
        else:
            self._out.append(Reasoning(text) if self._kind == "reasoning" else Content(text))

    def _emitted(self) -> list[Piece]:
        out, self._out = joined(self._out), []
        return out


def _may_be_mark(text: str) -> bool:
    return any(mark.startswith(text) for mark in (*_BEGINS, *_ENDS))


PARSER = GptOss
MARKS = ("<|channel|>",)
