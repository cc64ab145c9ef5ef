"""What single selections make of a text: the marks by which they judge its pages."""

from __future__ import annotations

import pytest
import torch

from pagoda import ConfigError
from pagoda.kv.policies._pages import Look
from pagoda.kv.policies.clusterkv import ClusterKV
from pagoda.kv.policies.loki import Loki

HEADS, PAGES, SIZE, WIDTH = 2, 6, 16, 32


def keys(seed: int = 0) -> torch.Tensor:
    """float32 [H, n, page_size, D], random."""
    return torch.randn(HEADS, PAGES, SIZE, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_loki_spends_no_component_on_what_all_keys_have_in_common() -> None:
    """Keys vary along one channel, beside a mean that is much longer along another."""
    apart = keys() * 0.01
    apart[..., 5] = keys(1)[..., 5]
    memory: dict[str, torch.Tensor] = {}
    Loki(rank=1).sketch(apart + 20 * torch.eye(WIDTH)[9], memory)
    found = memory["basis"][..., 0]  # [H, D]; a second column fills the pair
    assert (found[:, 5].abs() > 0.99).all()
    assert (found[:, 9].abs() < 0.01).all()


def test_clusterkv_ranks_pages_by_their_best_cluster_or_by_all_their_tokens() -> None:
    """One token of page 1 is what the query wants most; all of page 4 are nearly so."""
    x = keys() * 0.01
    x[..., 3] = -1.0
    x[:, 1, 5, 3], x[:, 4, :, 3] = 4.0, 3.0
    best = {}
    for by in ("clusters", "tokens"):
        policy, memory = ClusterKV(by=by, tokens_per_cluster=2), {}
        sketches = policy.sketch(x, memory)
        look = Look(
            layer=0, queries=torch.eye(WIDTH)[3].expand(HEADS, 2, WIDTH) * 1.0, sketches=sketches,
            valid=torch.ones(HEADS, PAGES, dtype=torch.bool), scale=0.5, read_keys=lambda: x, held=[PAGES] * HEADS,
            memory=memory,
        )  # fmt: skip
        best[by] = policy.score(look).argmax(-1).tolist()
    assert best == {"clusters": [1] * HEADS, "tokens": [4] * HEADS}
    with pytest.raises(ConfigError, match="unknown by 'pages'; accepted: clusters, tokens"):
        ClusterKV(by="pages")
