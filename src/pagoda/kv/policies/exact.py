"""Keep everything: one row of whole blocks, as cheap as a block table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core.types import Granularity
from .base import Keep, KVPolicy, PolicyInputs


@dataclass(frozen=True)
class Exact(KVPolicy):
    granularity: ClassVar[Granularity] = Granularity.SEQUENCE
    exact: ClassVar[bool] = True

    def select(self, inputs: PolicyInputs, state: object) -> Keep | None:
        return None


POLICY = Exact
