"""The frame of tool parsers: a machine that is fed one character at a time, so that cuts cannot matter."""

from __future__ import annotations

from abc import abstractmethod

from ._json import CallReader, Verdict
from .pieces import Content, Parser, Piece, ToolArguments, ToolStart, joined

SPACE = " \t\n\r"


class CharParser(Parser):
    """Subclasses take characters; what they emit is joined piece by piece.

    ``_held`` is text that may turn out to be markup: it is content if it does not.
    """

    def __init__(self, tool_names: frozenset[str]) -> None:
        self._names = tool_names
        self._out: list[Piece] = []
        self._held = ""
        self._call: CallReader | None = None
        self.num_calls = 0

    def push(self, text: str) -> list[Piece]:
        for char in text:
            self._take(char)
        return self._emitted()

    def flush(self) -> list[Piece]:
        self._end()
        return self._emitted()

    @abstractmethod
    def _take(self, char: str) -> None:
        """One character, whatever state this is in."""

    def _end(self) -> None:
        """No more characters. What is held is content."""
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

    def _begin_call(self, known: bool = False) -> None:
        """A call object begins with the next character; ``known``: only calls of the request's tools count."""
        self._call = CallReader(self._names if known else None)

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
