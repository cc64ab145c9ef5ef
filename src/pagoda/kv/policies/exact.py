"""Keep everything: one row of whole blocks, as cheap as a block table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import KVPolicy, Stage


@dataclass(frozen=True)
class Exact(KVPolicy):
    """Every token's KV is kept and read."""

    stage: ClassVar[Stage] = Stage.EXACT
    exact: ClassVar[bool] = True


POLICY = Exact
