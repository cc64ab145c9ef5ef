"""Which parsers an answer goes through: reasoning first, then tool calls in what is content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pagoda.core.errors import ConfigError, choices
from pagoda.core.registry import Registry

from . import REASONING_PARSERS, TOOL_PARSERS
from .pieces import Content, Parser, Piece, joined

_KNOWS_TOOLS = re.compile(r"\{[%{][^}]*\btools\b")


class Pipeline(Parser):
    """``reasoning`` and ``tools`` may be None. An answer without either is content."""

    def __init__(self, reasoning: Parser | None, tools: Parser | None) -> None:
        self._reasoning, self._tools = reasoning, tools
        self.needs_special_tokens = any(p is not None and p.needs_special_tokens for p in (reasoning, tools))

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = self._reasoning.push(text) if self._reasoning is not None else [Content(text)]
        return joined(self._through_tools(pieces))

    def flush(self) -> list[Piece]:
        pieces = self._reasoning.flush() if self._reasoning is not None else []
        through = self._through_tools(pieces)
        return joined([*through, *(self._tools.flush() if self._tools is not None else [])])

    def _through_tools(self, pieces: Iterable[Piece]) -> list[Piece]:
        out: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Content) and self._tools is not None:
                out.extend(self._tools.push(piece.text))
            else:
                out.append(piece)
        return out


def knows_tools(template: str | None) -> bool:
    """Whether a chat template shows the tools that it is given."""
    return template is not None and _KNOWS_TOOLS.search(template) is not None


def choose_tool_parser(wanted: str, template: str | None) -> str:
    """``auto``: the format whose marks the chat template shows; ``json`` where it shows none.

    Raises ConfigError listing what exists.
    """
    return _choose(TOOL_PARSERS, wanted, template if knows_tools(template) else None) or "json"


def choose_reasoning_parser(wanted: str, template: str | None) -> str | None:
    """Likewise; None where the template shows no reasoning, or for ``none``."""
    return None if wanted == "none" else _choose(REASONING_PARSERS, wanted, template, also=("none",))


def _choose(registry: Registry, wanted: str, template: str | None, also: tuple[str, ...] = ()) -> str | None:
    if wanted != "auto":
        if wanted not in registry.names():
            raise ConfigError(choices(registry.kind, wanted, ["auto", *also, *registry.names()]))
        return wanted
    for name in registry.names():
        module: Any = registry.module(name)
        if template is not None and any(mark in template for mark in module.MARKS):
            return name
    return None


def tool_parser(name: str, tool_names: Iterable[str]) -> Parser:
    """A fresh parser of that format for one answer."""
    parser: Any = TOOL_PARSERS.get(name)
    made: Parser = parser(frozenset(tool_names))
    return made


def reasoning_parser(name: str | None, prompt_tail: str) -> Parser | None:
    """Likewise; ``prompt_tail`` is how the rendered prompt ends. None for None."""
    if name is None:
        return None
    parser: Any = REASONING_PARSERS.get(name)
    made: Parser = parser(prompt_tail)
    return made
