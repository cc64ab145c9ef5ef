"""Attendre's memory: the keys that queries chose least often, or longest ago, make room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError, choices
from ._budget import at_least, looks_back, odd
from ._scored import Rolling, Scored
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs, LayerInputs


@dataclass(frozen=True)
class Attendre(Scored, Rolling):
    """``rule`` lfa: score is how often a slot was among the ``top`` of a query (least frequently attended goes); lra:
    when it last was (least recently attended goes). Ties go to the newer slot (section 3.1).

    Deviations: for causal models only, so there is no queue of waiting queries; between acts the last ``window``
    queries are counted.

    ``kernel`` as in snapkv. Counts are flat, so that neighbours cost other slots their place: with ``kernel=13`` 68 %
    of lantern's recall stays at a quarter of the KV (29 without), and the KL doubles (0.060 beside 0.026).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.04881"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.KEYS})
    tracks: ClassVar[tuple[str, ...]] = ("attended",)
    rule: str = "lfa"
    top: int = 32
    window: int = 8
    kernel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("top", self.top, 1)
        looks_back(self.window)
        odd("kernel", self.kernel)
        if self.rule not in ("lfa", "lra"):
            raise ConfigError(choices("rule", self.rule, ("lfa", "lra")))

    def why_not(self, num_heads: int, longest: int) -> str | None:
        if self.top < longest:
            return None
        return (
            f"top={self.top} would count every slot of every query, since no sequence is longer than {longest} tokens; "
            "give fewer"
        )

    @property
    def pool(self) -> int:
        return self.kernel

    def scores(self, inputs: Inputs) -> Tensor:
        held = inputs.tracks["attended"]
        for layer in inputs.layers():
            chosen = self._chosen(layer)  # [H, w, N]
            if self.rule == "lfa":
                held[layer.index] += chosen.sum(1)
            else:
                newest = inputs.num_seen - chosen.shape[1] + chosen.new_tensor(range(chosen.shape[1]))
                held[layer.index] = held[layer.index].maximum((chosen * newest[:, None]).amax(1))
        return held

    def _chosen(self, layer: LayerInputs) -> Tensor:
        attention = layer.attention.sum(1)
        best = attention.topk(min(self.top, attention.shape[-1]), dim=-1)
        return attention.new_zeros(attention.shape).scatter(-1, best.indices, (best.values > 0).float())


POLICY = Attendre
