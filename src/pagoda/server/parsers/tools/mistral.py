"""Mistral: ``[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]``, and since v11 ``[TOOL_CALLS]name[ARGS]{…}``.

https://github.com/mistralai/mistral-common (its tokenizers and their tests).
"""

from __future__ import annotations

from .._json import JsonAutomaton
from .._scan import SPACE, CharParser
from .._strict import Held

_TAG, _ARGS = "[TOOL_CALLS]", "[ARGS]"
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class Mistral(CharParser):
    """Both forms, told apart by what follows the tag."""

    needs_special_tokens = True
    tag = _TAG

    def __init__(self, tool_names: frozenset[str]) -> None:
        super().__init__(tool_names)
        self._name, self._arguments = "", JsonAutomaton()
        self._in_list = False

    def _in_text(self, char: str) -> None:
        plain, found = self._scan.take(char)
        self._say(plain)
        if found:
            self._held, self._state = self._scan.empty(), self._after_tag
            self._name, self._in_list = "", False

    def _after_tag(self, char: str) -> None:
        if char == "{":
            self._open_call(char)
        elif char == "[" and not self._in_list:
            self._in_list = True
            self._held += char
        elif char in SPACE:
            self._held += char
        elif char in _NAME_CHARS and not self._in_list:
            self._state = self._in_name
            self._in_name(char)
        else:
            self._give_up(char)

    # -- the list ----------------------------------------------------------------------------------------------------

    def _after_call(self, char: str) -> None:
        if char == "{" and self._in_list:
            self._after_tag(char)
        elif char in SPACE or (char == "," and self._in_list):
            self._held += char
        elif char == "]" and self._in_list:
            self._held, self._state = "", self._in_text
        else:
            self._give_up(char)

    # -- the name and its arguments ----------------------------------------------------------------------------------

    def _in_name(self, char: str) -> None:
        """``name``, then ``{`` or ``[ARGS]{``; what is between name and brace is kept in ``_held`` behind the tag."""
        rest = self._held_after_name()
        if char == "{" and rest in ("", _ARGS):
            self._start_call(self._name)
            self._arguments = JsonAutomaton()
            self._state = self._in_arguments
            self._in_arguments(char)
        elif char in _NAME_CHARS and not rest:
            self._name += char
            self._held += char
        elif _ARGS.startswith(rest + char):
            self._held += char
        else:
            self._give_up(char)

    def _held_after_name(self) -> str:
        return self._held[self._held.rindex(self._name) + len(self._name) :] if self._name else ""

    def _in_arguments(self, char: str) -> None:
        if not self._arguments.feed(char):
            self._give_up(char)
            return
        self._tell_arguments(char)
        if self._arguments.complete:
            self._state = self._in_text


PARSER = Mistral
MARKS = (_TAG,)


def strict_rules(held: Held) -> str:
    """The grammar of an answer in the form that the template shows."""
    if _ARGS not in held.template:
        more = '(WS "," WS call)* ' if held.several else ""
        return held.grammar(f'WS "[" WS call {more}WS "]" WS', held.call_rules(), mark=_TAG)
    args_id = held.special(_ARGS)
    args = f'"{_ARGS}"' if args_id is None else f"<[{args_id}]>"
    calls = [f'"{name}" {args} arguments{n}' for n, (name, _) in enumerate(held.tools)]
    return held.grammar("call WS", [f"call: {' | '.join(calls)}", *held.argument_rules()], mark=_TAG)
