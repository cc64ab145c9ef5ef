"""Grouped-query attention over the KV view: project, normalize, rotate, attend, project back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagoda.kernels import ops

from ..spec import AttentionSpec
from .linear import EachHeadNorm, Linear, Norm, Weights
from .step import Step


class Attention:
    """One layer's attention. Every feature of `AttentionSpec` is a branch decided when the layer is built."""

    def __init__(self, spec: AttentionSpec, weights: Weights, name: str, layer: int) -> None:
        self.spec, self.layer = spec, layer
        self.qkv, self.out = Linear(weights, f"{name}qkv"), Linear(weights, f"{name}out")
        self.normed = ""
        if spec.qk_norm is not None:
            self.normed = spec.qk_norm_over
            kind = EachHeadNorm if spec.qk_norm_over == "each" else Norm
            self.q_norm = kind(spec.qk_norm, weights, f"{name}q_norm")
            self.k_norm = kind(spec.qk_norm, weights, f"{name}k_norm")
        self.out_norm = None if spec.out_norm is None else Norm(spec.out_norm, weights, f"{name}out_norm")
        self.options: dict[str, Any] = {"scale": spec.scale, "window": spec.window, "soft_cap": spec.soft_cap}
        self.options["sinks"] = weights[f"{name}sinks"] if spec.sinks else None
        slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32, device=self.qkv.weight.device)
        self.options["alibi_slopes"] = slopes if spec.alibi_slopes else None

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x ``[T, hidden]`` -> ``[T, hidden]``; writes the chunk's K and V through ``step.kv``."""
        spec, tokens = self.spec, x.shape[0]
        q, k, v = torch.split(self.qkv(x), [spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        if self.normed == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        if spec.clip:
            q, k, v = (t.clamp(-spec.clip, spec.clip) for t in (q, k, v))
        q = q.view(tokens, spec.num_heads, spec.head_dim)
        k = k.view(tokens, spec.num_kv_heads, spec.head_dim)
        v = v.view(tokens, spec.num_kv_heads, spec.head_dim)
        if self.normed in ("head", "each"):
            q, k = self.q_norm(q), self.k_norm(k)
        if spec.rope is not None:
            cos, sin = step.rotary[spec.rope]
            q, k = ops.rotary(q, k, cos, sin, interleaved=spec.rope.interleaved, rotary_dim=spec.rope.dim)
        out = step.kv.attend(self.layer, q, k, v, **self.options).reshape(tokens, spec.q_size)
        if self.out_norm is not None:
            out = self.out_norm(out)
        return self.out(out)
