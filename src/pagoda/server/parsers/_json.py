"""JSON that arrives in pieces: a strict automaton over characters, and the reader of one tool call.

A tool call is an object with a name and arguments. Its arguments can be told as they arrive once the name is known::

    {"name": "get_weather", "arguments": {"city": "Paris"}}
                                         ^ from here on each character is an argument delta, until the brace closes
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto

_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_LITERALS = ("true", "false", "null")
MAX_DEPTH = 64


class _Want(Enum):
    VALUE = auto()  # any value
    VALUE_OR_END = auto()  # a value, or the end of an empty array
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()
    NOTHING = auto()  # the value is complete


class JsonAutomaton:
    """Reads one JSON value character by character: ``feed`` says whether the character may stand there."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self._want = _Want.VALUE
        self._atom: str | None = None  # a string (with its first quote), number or literal under way
        self._escape = 0  # characters of an escape that must still come; -1: the one after the backslash
        self.last_string = ""
        """JSON text of the string that was completed last, quotes included."""

    @property
    def depth(self) -> int:
        """Objects and arrays that are open."""
        return len(self.stack)

    @property
    def complete(self) -> bool:
        """Whether the value is over. A number at the top is over only when something else follows it."""
        return self._want is _Want.NOTHING and self._atom is None

    @property
    def in_string(self) -> bool:
        return self._atom is not None and self._atom[0] == '"'

    @property
    def wants_key(self) -> bool:
        """Whether the string that comes next, or is under way, is a key."""
        return self._want in (_Want.KEY, _Want.KEY_OR_END)

    def feed(self, char: str) -> bool:
        """Take the character, or say False and stay as it was."""
        if self._atom is not None:
            if self._atom[0] == '"':
                return self._feed_string(char)
            longer = self._atom + char
            if _is_atom_beginning(longer):
                self._atom = longer
                return True
            if not _is_atom(self._atom):
                return False
            self._atom = None
            self._after_value()
        return char in _SPACE or self._feed_structure(char)

    def _feed_structure(self, char: str) -> bool:
        want = self._want
        if want in (_Want.VALUE, _Want.VALUE_OR_END) and char != "]":
            return self._begin_value(char)
        if want in (_Want.KEY, _Want.KEY_OR_END) and char == '"':
            self._atom = char
            return True
        if want is _Want.COLON and char == ":":
            self._want = _Want.VALUE
            return True
        if want is _Want.COMMA_OR_END and char == ",":
            self._want = _Want.KEY if self.stack[-1] == "{" else _Want.VALUE
            return True
        closes = {"}": "{", "]": "["}.get(char)
        may_close = {"{": (_Want.KEY_OR_END, _Want.COMMA_OR_END), "[": (_Want.VALUE_OR_END, _Want.COMMA_OR_END)}
        if closes is not None and self.stack and self.stack[-1] == closes and want in may_close[closes]:
            self.stack.pop()
            self._after_value()
            return True
        return False

    def _begin_value(self, char: str) -> bool:
        if char in "{[":
            if len(self.stack) >= MAX_DEPTH:
                return False
            self.stack.append(char)
            self._want = _Want.KEY_OR_END if char == "{" else _Want.VALUE_OR_END
            return True
        if char == '"' or _is_atom_beginning(char):
            self._atom = char
            return True
        return False

    def _feed_string(self, char: str) -> bool:
        assert self._atom is not None
        if self._escape == -1:
            if char not in '"\\/bfnrtu':
                return False
            self._escape = 4 if char == "u" else 0
        elif self._escape:
            if char not in "0123456789abcdefABCDEF":
                return False
            self._escape -= 1
        elif char == "\\":
            self._escape = -1
        elif char == '"':
            self.last_string, self._atom = self._atom + char, None
            if self.wants_key:
                self._want = _Want.COLON
            else:
                self._after_value()
            return True
        elif char < " ":
            return False
        self._atom += char
        return True

    def _after_value(self) -> None:
        self._want = _Want.COMMA_OR_END if self.stack else _Want.NOTHING


def _is_atom(text: str) -> bool:
    return text in _LITERALS or _NUMBER.fullmatch(text) is not None


def _is_atom_beginning(text: str) -> bool:
    """Whether ``text`` can grow into a number or literal: with some digit behind it, at the latest."""
    if any(literal.startswith(text) for literal in _LITERALS):
        return True
    return any(_NUMBER.fullmatch(text + tail) for tail in ("", "0", "1"))


class Verdict(Enum):
    """What a character did to a call."""

    GOES_ON = auto()
    DONE = auto()
    BROKEN = auto()  # the character cannot stand here and was not taken
    NO_CALL = auto()  # the object is complete, and no call


class CallReader:
    """One call object, from its opening brace on. ``take`` characters until the verdict is not GOES_ON.

    After each character ``name`` (None until it is certain that this is a call) and ``arguments`` (new text since it
    was last emptied) tell what can be told. ``raw`` is what was read and not told: it is content if the call breaks.
    """

    NAME_KEYS = ("name",)
    ARGUMENT_KEYS = ("arguments", "parameters")

    def __init__(self, known_names: frozenset[str] | None = None) -> None:
        """``known_names``: other names make it no call. None: any name will do."""
        self.name: str | None = None
        self.arguments = ""
        self.raw = ""
        self._known = known_names
        self._json = JsonAutomaton()
        self._key: str | None = None
        self._value = ""  # text of the member under way at depth 1
        self._members: dict[str, str] = {}
        self._streams = False  # whether the member under way is told as it comes
        self._told = False

    def take(self, char: str) -> Verdict:
        """One more character; one that cannot stand here is not taken and breaks the call."""
        depth = self._json.depth
        if not self._json.feed(char):
            return Verdict.BROKEN
        self.raw += char
        if depth == 0:  # the opening brace
            assert char == "{", "a call begins with its brace"
            return Verdict.GOES_ON
        if self._streams:
            return self._stream(char)
        if self._json.complete:
            return self._close()
        if depth == 1 and self._json.depth == 1 and self._key is None:
            self._read_key(char)
        elif self._key is not None:
            self._read_value(char, depth)
        return Verdict.GOES_ON

    def _read_key(self, char: str) -> None:
        if char == ":":
            self._key, self._value = json.loads(self._json.last_string), ""

    def _read_value(self, char: str, depth: int) -> None:
        if char == "," and depth == 1 and not self._json.in_string:
            self._end_member()
            return
        self._value += char
        starts = depth == 1 and self._json.depth == 2 and char == "{"
        if starts and self._key in self.ARGUMENT_KEYS and not self._told and self._name_of(self._members):
            self.name, self._streams, self._told = self._name_of(self._members), True, True
            self.arguments, self.raw = char, ""

    def _stream(self, char: str) -> Verdict:
        self.arguments += char
        self.raw = ""
        if self._json.depth == 1:  # the arguments' brace has closed
            self._streams, self._key = False, None
        return Verdict.GOES_ON

    def _end_member(self) -> None:
        assert self._key is not None
        self._members.setdefault(self._key, self._value.strip())
        self._key = None

    def _close(self) -> Verdict:
        if self._key is not None:
            self._end_member()
        if self._told:
            return Verdict.DONE
        name, arguments = self._name_of(self._members), self._whole_arguments()
        if name is None or arguments is None:
            return Verdict.NO_CALL
        self.name, self.arguments, self.raw = name, arguments, ""
        return Verdict.DONE

    def _name_of(self, members: dict[str, str]) -> str | None:
        text = next((members[key] for key in self.NAME_KEYS if key in members), "")
        name = json.loads(text) if text.startswith('"') else None
        return name if name and (self._known is None or name in self._known) else None

    def _whole_arguments(self) -> str | None:
        """Arguments that came before the name, or as JSON in a string, or not at all; None if they are none."""
        text = next((self._members[key] for key in self.ARGUMENT_KEYS if key in self._members), "{}")
        if text == "null":
            return "{}"
        if text.startswith('"'):
            text = json.loads(text)
            try:
                return text if isinstance(json.loads(text), dict) else None
            except (ValueError, RecursionError):
                return None
        return text if text.startswith("{") else None
