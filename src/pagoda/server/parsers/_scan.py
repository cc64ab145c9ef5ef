"""The frame of tool parsers: a machine that is fed one character at a time, so that cuts cannot matter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from ._json import CallReader, Verdict
from .pieces import Content, Parser, Piece, ToolArguments, ToolStart, joined

SPACE = " \t\n\r"


class CharParser(Parser):
    """Subclasses are states, functions of one character each; what they emit is joined piece by piece.

    ``tag`` leads to calls ("" for none). ``_held`` is text that may turn out to be markup: it is content if it does
    not. A call object goes ``_open_call`` -> ``_in_call`` -> ``_after_call``, or ``_give_up`` where it is none.
    """

    tag = ""

    def __init__(self, tool_names: frozenset[str]) -> None:
        self._names = tool_names
        self._state: Callable[[str], None] = self._in_text
        self._scan = TagScan(self.tag)
        self._out: list[Piece] = []
        self._held = ""
        self._call: CallReader | None = None
        self.num_calls = 0

    def push(self, text: str) -> list[Piece]:
        for char in text:
            self._state(char)
        return self._emitted()

    def flush(self) -> list[Piece]:
        self._end()
        return self._emitted()

    @abstractmethod
    def _in_text(self, char: str) -> None:
        """Content, until the tag comes."""

    @abstractmethod
    def _after_call(self, char: str) -> None:
        """A call object is complete."""

    def _open_call(self, char: str, *, known: bool = False) -> None:
        """The brace of a call object; ``known``: only calls of the request's tools count."""
        self._call = CallReader(self._names if known else None)
        self._state = self._in_call
        self._in_call(char)

    def _in_call(self, char: str) -> None:
        verdict = self._feed_call(char)
        if verdict is Verdict.DONE:
            self._state = self._after_call
        elif verdict is Verdict.BROKEN:
            self._give_up(char)
        elif verdict is Verdict.NO_CALL:
            self._give_up("")

    def _give_up(self, char: str) -> None:
        """What was held is text, and so is what follows, until the next tag."""
        self._release()
        self._state = self._in_text
        for each in char:
            self._in_text(each)

    def _end(self) -> None:
        """No more characters. What is held is content; white space behind the last call is not."""
        tail = self._held + self._scan.held
        if self.num_calls and self._call is None and not tail.strip(SPACE):
            self._held = self._scan.held = ""
        self._held += self._scan.empty()
        if self._call is not None:
            self._held += self._call.raw
            self._call = None
        self._release()

    def _emitted(self) -> list[Piece]:
        out, self._out = joined(self._out), []
        return out

    def _say(self, text: str) -> None:
        self._out.append(Content(text))

    def _release(self) -> None:
        """What was held is content after all."""
        held, self._held = self._held, ""
        self._say(held)

    def _feed_call(self, char: str) -> Verdict:
        """Give the character to the call under way and tell what became known."""
        call = self._call
        assert call is not None
        had_name = call.name is not None
        verdict = call.take(char)
        if call.name is not None and not had_name:
            self._start_call(call.name)
        if call.arguments:
            self._tell_arguments(call.arguments)
            call.arguments = ""
        if verdict in (Verdict.BROKEN, Verdict.NO_CALL):
            self._held += call.raw
        if verdict is not Verdict.GOES_ON:
            self._call = None
        return verdict

    def _start_call(self, name: str) -> None:
        self._held = ""  # the markup in front of a call is not content
        self._out.append(ToolStart(self.num_calls, name))
        self.num_calls += 1

    def _tell_arguments(self, text: str) -> None:
        self._out.append(ToolArguments(self.num_calls - 1, text))


class TagScan:
    """Looks for a tag in characters: ``take`` returns text that is surely none of it, and whether it is complete.

    White space in front of the tag belongs to it.
    """

    def __init__(self, tag: str, *, with_space: bool = True) -> None:
        self.tag, self._with_space = tag, with_space
        self.held = ""

    def take(self, char: str) -> tuple[str, bool]:
        self.held += char
        plain = ""
        while self.held:
            rest = self.held.lstrip(SPACE) if self._with_space else self.held
            if rest == self.tag:
                return plain, True
            if self.tag.startswith(rest):
                break
            plain, self.held = plain + self.held[0], self.held[1:]
        return plain, False

    def empty(self) -> str:
        """What is held is no tag."""
        held, self.held = self.held, ""
        return held
