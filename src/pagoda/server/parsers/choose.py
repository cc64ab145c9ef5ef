"""Which parser reads a model's output."""

from __future__ import annotations

from typing import Any

from .base import OutputParser, PlainParser


def make_parser(service: Any, conversation: Any, tool_choice: Any = None) -> OutputParser:
    """A fresh parser for one answer of this conversation."""
    return PlainParser()
