"""What is asked of a plan: lengths, requests at a time, and how long people will wait."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Demand:
    """``concurrency`` requests at a time, each with ``prompt`` tokens and an answer of ``output`` tokens.

    slo_ttft  most seconds from arrival to the first token, slo_tpot between two tokens; None: as it comes.
    """

    prompt: int = 1024
    output: int = 256
    concurrency: int = 1
    slo_ttft: float | None = None
    slo_tpot: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "concurrency"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number from 1")
        for name in ("slo_ttft", "slo_tpot"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value!r}; give seconds above 0")

    @property
    def length(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt + self.output
