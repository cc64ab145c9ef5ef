"""What single selections make of a text: the marks by which they judge its pages."""

from __future__ import annotations

import torch

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
