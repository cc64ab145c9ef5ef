"""Prompts as the API takes them: one or several, as text or as token ids."""

from __future__ import annotations

from typing import Any


def listed(prompt: Any) -> list[str | list[int]]:
    """The prompts of a validated ``prompt`` or ``input`` field."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)
