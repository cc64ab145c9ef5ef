"""Grammars of answers that are free until they call a tool: furniture of the formats' ``strict_rules``.

``strict: true`` promises arguments that fit the schema, and with ``tool_choice`` auto nobody knows beforehand whether
a call comes. So the text is free up to the mark that begins a call, and held from there to the call's end. Lark's
notation, as llguidance reads it: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """What the calls of an answer are held to.

    tools: name and, as a right-hand side, the rule of the arguments of each. other: the rule of an answer without
    calls; None is any text, which may then stand in front of calls too. special: a mark's token id where the model
    has it as a special token. template: the chat template.
    """

    tools: Sequence[tuple[str, str]]
    other: str | None
    several: bool
    special: Callable[[str], int | None]
    template: str

    def grammar(self, calls: str, rules: Sequence[str], *, mark: str | None = None) -> str:
        """The whole grammar. ``calls`` is the right-hand side of all calls; behind ``mark`` where calls have one,
        otherwise at the beginning of the answer, so that other text begins neither with a brace nor with a bracket.
        """
        lines = [*rules, "WS: /[ \\n]?/"]
        if self.other is not None:
            start = f"({self._mark(mark)} {calls}){self._times}" if mark else calls
            return "\n".join([f"start: {start} | other", f"other: {self.other}", *lines])
        if mark is None:
            return "\n".join([f"start: {calls} | TEXT", r"TEXT: /(?s:.*)/ & ~/[ \n\t\r]*[\[{](?s:.*)/", *lines])
        lines += ["TEXT: /(?s:.*)/", self._head(mark)]
        return "\n".join([f"start: (head {calls}){'*' if self.several else '?'} TEXT", *lines])

    def call_rules(self, key: str = "arguments") -> list[str]:
        """Rules ``call``: an object with a name and, under ``key``, arguments."""
        rules = [f"call: {' | '.join(f'call{n}' for n in range(len(self.tools)))}"]
        for n, (name, _) in enumerate(self.tools):
            opening = f'"{{" WS {quoted("name")} WS ":" WS {quoted(name)} WS "," WS {quoted(key)} WS ":" WS'
            rules += [f'call{n}: {opening} arguments{n} WS "}}"']
        return rules + self.argument_rules()

    def argument_rules(self) -> list[str]:
        """Rule ``argumentsN`` of each tool."""
        return [f"arguments{n}: {rule}" for n, (_, rule) in enumerate(self.tools)]

    @property
    def _times(self) -> str:
        return "+" if self.several else ""

    def _mark(self, mark: str) -> str:
        token_id = self.special(mark)
        return json.dumps(mark) if token_id is None else f"<[{token_id}]>"

    def _head(self, mark: str) -> str:
        if self.special(mark) is None:
            return f"head[lazy]: TEXT {json.dumps(mark)}"
        return f"head: TEXT {self._mark(mark)}"


def quoted(text: str) -> str:
    """A JSON string as a literal of the grammar."""
    return json.dumps(json.dumps(text, ensure_ascii=False), ensure_ascii=False)
