"""Hermes and Qwen: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, any number of them, text around.

https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from .._json import Verdict
from .._scan import SPACE, CharParser, TagScan
from .._strict import Held

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes(CharParser):
    """Several objects in one pair of tags are several calls. White space beside the tags is not content."""

    def __init__(self, tool_names: frozenset[str]) -> None:
        super().__init__(tool_names)
        self._state = self._in_text
        self._scan = TagScan(_OPEN)

    def _take(self, char: str) -> None:
        self._state(char)

    def _in_text(self, char: str) -> None:
        plain, found = self._scan.take(char)
        self._say(plain)
        if found:
            self._held, self._state = self._scan.empty(), self._after_open

    def _after_open(self, char: str) -> None:
        if char == "{":
            self._begin_call()
            self._state = self._in_call
            self._in_call(char)
        elif char in SPACE:
            self._held += char
        else:
            self._give_up(char)

    def _in_call(self, char: str) -> None:
        verdict = self._feed_call(char)
        if verdict is Verdict.DONE:
            self._state = self._after_call
        elif verdict is Verdict.BROKEN:
            self._give_up(char)
        elif verdict is Verdict.NO_CALL:
            self._give_up("")

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

    def _give_up(self, char: str) -> None:
        """What was held is text, and so is what follows, until the next tag."""
        self._release()
        self._state = self._in_text
        for each in char:
            self._in_text(each)

    def _end(self) -> None:
        tail = self._held if self._state == self._after_call else self._scan.held
        if self.num_calls and not tail.strip(SPACE):  # after the last call
            self._held = self._scan.held = "" if self._call is None else self._held
        if self._state == self._in_text:
            self._held += self._scan.empty()
        super()._end()


PARSER = Hermes
MARKS = (_OPEN,)


def strict_rules(held: Held) -> str:
    """The grammar of an answer in this format."""
    return held.grammar('WS call WS "</tool_call>" WS', held.call_rules(), mark=_OPEN)
