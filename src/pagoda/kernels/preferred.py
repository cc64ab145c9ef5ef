"""Which order of plain weights an instruction set multiplies best. No torch: plans ask before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Set


def prefers_bf12(isa: str) -> bool:
    """Whether bfloat16 in twelve bits (`bf12`) is multiplied at least as fast as in sixteen."""
    return isa == "amx"


def isa_of(flags: Set[str]) -> str:
    """As `cpu.best_isa`, by the processor's flags where no kernel is asked: that of those which ``prefers_bf12`` knows,
    or empty.
    """
    known = {"avx512bf16": {"avx512f", "avx512_bf16"}, "amx": {"amx_tile", "amx_bf16", "amx_int8"}}
    has = [isa for isa, needed in known.items() if needed <= flags]
    asked = os.environ.get("PAGODA_ISA")
    return max(has, key=list(known).index, default="") if not asked else asked if asked in has else ""
