"""Multi-head latent attention with absorbed up-projections (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

A slot keeps ``[latent (kv_rank) | rotary key (rope_dim)]``, one vector for all heads. Instead of expanding keys and
values of every slot, the key up-projection is applied to the query and the value up-projection to the answer:

    q_nope . (W_k c)  =  (W_k^T q_nope) . c          sum_j p_j (W_v c_j)  =  W_v (sum_j p_j c_j)
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagoda.kernels import ops

from ..spec import LatentSpec
from .linear import Linear, Norm, Weights
from .step import Step


class LatentAttention:
    """One layer's MLA over a latent page."""

    def __init__(self, spec: LatentSpec, weights: Weights, name: str, layer: int) -> None:
        self.spec, self.layer = spec, layer
        self.down, self.out = Linear(weights, f"{name}down"), Linear(weights, f"{name}out")
        self.q_norm = Norm(spec.norm, weights, f"{name}q_norm") if spec.q_rank else None
        self.q_up = Linear(weights, f"{name}q_up") if spec.q_rank else None
        self.kv_norm = Norm(spec.norm, weights, f"{name}kv_norm")
        self.k_up, self.v_up = weights[f"{name}k_up"], weights[f"{name}v_up"]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x ``[T, hidden]`` -> ``[T, hidden]``."""
        spec, tokens = self.spec, x.shape[0]
        q_rows = spec.q_rank or spec.num_heads * spec.head_dim
        q, latent, k_rope = torch.split(self.down(x), [q_rows, spec.kv_rank, spec.rope_dim], dim=-1)
        if self.q_up is not None and self.q_norm is not None:
            q = self.q_up(self.q_norm(q))
        heads = q.view(tokens, spec.num_heads, spec.head_dim)
        q_nope, q_rope = torch.split(heads, [spec.nope_dim, spec.rope_dim], dim=-1)
        cos, sin = step.rotary[spec.rope]
        q_rope, k_rope = ops.rotary(q_rope, k_rope[:, None], cos, sin, interleaved=spec.rope.interleaved)
        q_latent = ops.head_products(q_nope, self.k_up, down=True)
        query = torch.cat((q_latent, q_rope), dim=-1)  # [T, H, kv_rank + rope_dim]
        slot = torch.cat((self.kv_norm(latent)[:, None], k_rope), dim=-1)  # [T, 1, kv_rank + rope_dim]
        mixed = step.kv.attend_latent(self.layer, query, slot, v_dim=spec.kv_rank, scale=spec.scale)
        values = ops.head_products(mixed, self.v_up)
        return self.out(values.reshape(tokens, -1))
