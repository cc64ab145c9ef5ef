"""What the layers of one forward pass share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pagoda.kernels.step import StepArrays

from ..spec import RopeSpec


class KVView(Protocol):
    """The KV of one ragged batch, as models see it. It writes the chunk's K and V, then attends.

    q ``[T, Hq, Dk]``, k ``[T, Hkv, Dk]``, v ``[T, Hkv, Dv]``; the answer is ``[T, Hq, Dv]``.
    """

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor: ...

    def arrays(self) -> StepArrays | None:
        """The step as plain arrays, for those who run all layers at once; None where each calls ``attend``."""

    @property
    def in_program(self) -> bool:
        """Whether `models.program`, which knows no gradients, may call ``attend`` where ``arrays`` gives None."""

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """MLA: q ``[T, Hq, k_dim]``, latent ``[T, 1, k_dim]``; the answer is ``[T, Hq, v_dim]``."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass: the KV view, and cos/sin rows of the step's positions for every distinct rotary embedding."""

    kv: KVView
    rotary: Mapping[RopeSpec, tuple[Tensor, Tensor]]
