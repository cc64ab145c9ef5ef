"""Which order of plain weights an instruction set multiplies best. No torch: plans ask before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Set

TILES = "amx"


def prefers_bf12(isa: str) -> bool:
    """Whether few tokens are multiplied faster from bfloat16 in twelve bits (`bf12`) than in sixteen."""
    return isa == TILES


def isa_of(flags: Set[str]) -> str:
    """As `cpu.best_isa`, by the processor's flags where no kernel is asked, but empty for sets that ``prefers_bf12``
    does not tell apart.
    """
    has_tiles = {"amx_tile", "amx_bf16", "amx_int8"} <= flags
    return TILES if has_tiles and os.environ.get("PAGODA_ISA", TILES) in ("", TILES) else ""
