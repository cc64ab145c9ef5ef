"""ClusterKV: keys are clustered by direction, and whole clusters are recalled whose centre the query likes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError, choices
from ._budget import at_least
from ._pages import FLOAT32, PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_marks import MarkAids
    from ...kernels.ops.page_scores import PageRule

ROUNDS, MOST_CLUSTERS = 6, 32768
CODE_BYTES = 2
PRODUCTS = 1 << 22
"""Of keys with centres, in memory at once."""


@dataclass(frozen=True)
class ClusterKV(PageSelection):
    """K-means of a head's keys by cosine, one cluster for every ``tokens_per_cluster`` of the prompt (section 4.1);
    clusters are recalled whole, in the order of their centres' products with the query (section 4.2).

    ``by="tokens"``: a page is worth what attention to centres in place of keys would give its tokens, all of them and
    all heads together. Which is better depends on what is asked: one planted fact is in the best cluster (lantern
    recalls 83 % of 36 cases, by tokens 75), running text wants the most attention (KL 0.058, by tokens 0.035).

    The first page is always read, where the paper keeps the first 16 tokens out of the clusters (section 4.1).

    Deviations: pages are fetched, not single tokens, so a page comes with the best cluster that it has a token of;
    tokens of the answer join the nearest cluster, where the paper makes new ones every so often; clusters are of 16
    tokens, where the paper's are of 80 (prompts of 32,000 tokens); every layer selects (the authors' code leaves the
    first two dense), and heads of a group read the same pages.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.03213"
    marked: ClassVar[bool] = True
    keeps_first: ClassVar[bool] = True
    tokens_per_cluster: int = 16
    by: str = "clusters"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in ("clusters", "tokens"):
            raise ConfigError(choices("by", self.by, ("clusters", "tokens")))
        at_least("tokens_per_cluster", self.tokens_per_cluster, 1)

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return page_size * (CODE_BYTES + (dim + 2) * FLOAT32 / self.tokens_per_cluster)

    def looked_bytes(self, page_size: int, dim: int) -> float:
        return page_size * (CODE_BYTES + dim * FLOAT32 / self.tokens_per_cluster)  # what keys are assigned by is not

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("codes") if self.by == "clusters" else PageRule("codes", weigh="softmax", sum_heads=True)

    def given(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> Tensor:
        return memory["centers"]

    def mark_aids(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> MarkAids:
        from ...kernels.ops.page_marks import MarkAids

        return MarkAids(self.given(memory, learned), memory["weights"])

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        import torch

        flat = keys.flatten(1, 2)
        if "centers" not in memory:
            num = min(MOST_CLUSTERS, max(1, flat.shape[1] // self.tokens_per_cluster))
            memory["centers"] = found = centers(flat, num).contiguous()
            # The direction that is most alike is that of the largest product over its length.
            lengths = found.norm(dim=-1).clamp(min=1e-12)
            memory["weights"] = torch.stack([1 / lengths, torch.zeros_like(lengths)], 1)
        return assign(flat, memory["centers"]).view(keys.shape[:3]).to(torch.int16)


def centers(keys: Tensor, num: int) -> Tensor:
    """float32 [H, num, D]: means of the clusters that ``ROUNDS`` rounds of k-means find, from evenly spaced keys on."""
    import torch

    start = torch.linspace(0, keys.shape[1] - 1, num).round().long().to(keys.device)
    found = keys[:, start]
    for _ in range(ROUNDS):
        mine = assign(keys, found)
        sums = torch.zeros_like(found).scatter_add(1, mine[..., None].expand(keys.shape), keys)
        counts = found.new_zeros(found.shape[:2]).scatter_add(1, mine, keys.new_ones(mine.shape))[..., None]
        found = torch.where(counts > 0, sums / counts.clamp(min=1.0), found)
    return found


def assign(keys: Tensor, found: Tensor) -> Tensor:
    """int64 [H, N]: the centre [H, C, D] of the most alike direction of each key [H, N, D]."""
    import torch
    from torch.nn.functional import normalize

    directions = normalize(found, dim=-1).transpose(1, 2)
    at_once = max(1, PRODUCTS // directions.shape[0] // directions.shape[2])
    return torch.cat([(part @ directions).argmax(-1) for part in keys.split(at_once, dim=1)], 1)


POLICY = ClusterKV
