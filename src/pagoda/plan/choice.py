"""What distinguishes one plan from another, in words of ``pagoda serve``."""

from __future__ import annotations

from dataclasses import dataclass

from .demand import Demand
from .prices import EXACT, OFFLOAD

PAGE_SIZE = 16
"""Slots of a page, as the engine has them by default."""


def longest_of(demand: Demand) -> int:
    """``max_model_len`` of the engine that a plan describes: whole pages."""
    return -(-demand.length // PAGE_SIZE) * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Choice:
    """The fields are options of ``pagoda serve``."""

    quantization: str = "auto"
    kv_cache_dtype: str = "auto"
    kv: str = EXACT
    max_num_batched_tokens: int = 2048

    def __str__(self) -> str:
        return (
            f"weights {self.quantization}, KV {self.kv_cache_dtype}, {self.kv}, steps of {self.max_num_batched_tokens}"
        )

    @property
    def offloads(self) -> bool:
        """Whether KV lies in a lower tier."""
        return self.kv.endswith(OFFLOAD)

    @property
    def flags(self) -> tuple[str, ...]:
        """Formats and policy, where they are not the usual ones."""
        found: list[str] = []
        for name, value, default in (
            ("--quantization", self.quantization, "auto"),
            ("--kv-cache-dtype", self.kv_cache_dtype, "auto"),
            ("--kv", self.kv, EXACT),
        ):
            found += [] if value == default else [name, value]
        return tuple(found)
