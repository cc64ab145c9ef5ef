"""What a family file provides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import ConfigReader
from ..spec import DecoderSpec

REMOVED = "<removed>"
"""As a variant's value: the key is left out."""


@dataclass(frozen=True, slots=True)
class Family:
    """``read`` turns a config into a spec; it imports no torch and raises ModelError for what it does not know.

    ``tiny`` is the config dict of a random member small enough to test in a second, with the family's features
    switched on; ``variants`` are keys to change in it for more members (``{name: {key: value}}``).
    """

    read: Callable[[ConfigReader], DecoderSpec]
    tiny: Callable[[], dict[str, Any]]
    variants: dict[str, dict[str, Any]] | None = None

    def members(self) -> dict[str, dict[str, Any]]:
        """Every tiny config by a short name; the plain one is called ``tiny``."""
        out = {"tiny": self.tiny()}
        for name, changes in (self.variants or {}).items():
            merged = {**self.tiny(), **changes}
            out[name] = {key: value for key, value in merged.items() if value is not REMOVED}
        return out
