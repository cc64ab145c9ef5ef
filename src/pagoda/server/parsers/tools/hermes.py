"""Hermes and Qwen: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, any number of them, text around.

https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from .._scan import SPACE, CharParser
from .._strict import Held

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes(CharParser):
    """Several objects in one pair of tags are several calls. White space beside the tags is not content."""

    tag = _OPEN

    def _in_text(self, char: str) -> None:
        plain, found = self._scan.take(char)
        self._say(plain)
        if found:
            self._held, self._state = self._scan.empty(), self._after_open

    def _after_open(self, char: str) -> None:
        if char == "{":
            self._open_call(char)
        elif char in SPACE:
            self._held += char
        else:
            self._give_up(char)

    def _after_call(self, char: str) -> None:
        tag = self._held.lstrip(SPACE)
        if char == "{" and not tag:
            self._after_open(char)
        elif char in SPACE and not tag:
            self._held += char
        elif _CLOSE.startswith(tag + char):
            self._held += char
            if tag + char == _CLOSE:
                self._held, self._state = "", self._in_text
        else:
            self._give_up(char)


PARSER = Hermes
MARKS = (_OPEN,)


def strict_rules(held: Held) -> str:
    """The grammar of an answer in this format."""
    return held.grammar('WS call WS "</tool_call>" WS', held.call_rules(), mark=_OPEN)
