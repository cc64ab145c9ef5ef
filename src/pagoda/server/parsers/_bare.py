"""Calls that stand alone: objects, or a list of them, at the very beginning of an answer or behind a tag."""

from __future__ import annotations

from ._scan import SPACE, CharParser


class BareCalls(CharParser):
    """Without a tag an object counts as a call only at the beginning and only with the name of a known tool.

    Behind the tag any object is a call. ``separators``: what may stand between two calls.
    """

    separators = ","
    lists = True

    def __init__(self, tool_names: frozenset[str]) -> None:
        super().__init__(tool_names)
        self._state = self._at_start
        self._tagged = self._in_list = False

    def _at_start(self, char: str) -> None:
        """Before the first call: white space, a brace, a bracket, or the tag's first character."""
        if char == "{":
            self._open_call(char, known=not self._tagged)
        elif char == "[" and self.lists and not self._in_list:
            self._in_list = True
            self._held += char
        elif char in SPACE:
            self._held += char
        else:
            self._give_up(char)

    def _after_call(self, char: str) -> None:
        if char == "{":
            self._at_start(char)
        elif char in SPACE or char in self.separators:
            self._held += char
        elif char == "]" and self._in_list:
            self._held, self._in_list, self._state = "", False, self._in_text
        else:
            self._give_up(char)

    def _in_text(self, char: str) -> None:
        if not self.tag:
            self._held += char
            if char not in SPACE:
                self._release()
            return
        plain, found = self._scan.take(char)
        self._say(plain)
        if found:
            self._held, self._state, self._tagged, self._in_list = self._scan.empty(), self._at_start, True, False

    def _give_up(self, char: str) -> None:
        """No call here: text, until the tag comes (again)."""
        self._state = self._in_text
        text, self._held = self._held + char, ""
        if not self.tag or (self._tagged and text.lstrip(SPACE).startswith(self.tag)):
            self._say(text)  # the tag led to nothing: it is not looked for in itself again
            return
        for each in text:
            self._in_text(each)
