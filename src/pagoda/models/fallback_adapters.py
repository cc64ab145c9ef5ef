"""Older architectures that write their attention out themselves: the part that computes it, exchanged for ours.

One function for each of transformers' attention classes; it takes a module and replaces one of its methods, on that
object alone. The self-check runs on them as on all others, so a change in transformers shows as a refusal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .fallback_attention import attend_packed, attention


def adapt(module: nn.Module) -> nn.Module:
    """Exchanges the attention of every part of ``module`` that has an adapter; returns the module."""
    for part in module.modules():
        if type(part).__name__ in ADAPTERS:
            ADAPTERS[type(part).__name__](part)
    return module


def has_adapter(kind: type[nn.Module]) -> bool:
    """Whether some attention class of this architecture's file has an adapter."""
    return any(hasattr(sys.modules[kind.__module__], name) for name in ADAPTERS)


def _gpt_j(part: Any) -> None:
    """GPT-J, CodeGen: ``_attn(query, key, value, mask)``, heads first; scores are divided by ``scale_attn``."""

    def attn(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return attention(part, query, key, value, mask, scaling=1.0 / float(part.scale_attn))[0].transpose(1, 2), None

    part._attn = attn


def _gpt_neo(part: Any) -> None:
    """GPT-Neo: unscaled scores; ``local`` layers see the last ``window_size`` tokens."""
    part.layer_idx = part.layer_id
    window = part.config.window_size if part.attention_type == "local" else None

    def attn(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        out = attention(part, query, key, value, mask, scaling=1.0, sliding_window=window)[0]
        return out.transpose(1, 2), None

    part._attn = attn


def _gpt_neox_japanese(part: Any) -> None:
    """GPT-NeoX Japanese: as GPT-J, with the scale in ``norm_factor``."""

    def attn(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        out = attention(part, query, key, value, mask, scaling=1.0 / float(part.norm_factor))[0]
        return out.transpose(1, 2), None

    part._attn = attn


def _bloom(part: Any) -> None:
    """BLOOM: ALiBi; the fused projection interleaves q, k and v of each head."""
    slopes_of: Callable[..., Tensor] = sys.modules[type(part).__module__]._get_alibi_slopes

    def forward(hidden_states: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
        fused = part.query_key_value(hidden_states)[0].unflatten(-1, (part.num_heads, 3, part.head_dim))
        slopes = slopes_of(part.num_heads, hidden_states.device)
        out = attend_packed(part.layer_idx, *fused.unbind(2), scale=part.inv_norm_factor, alibi_slopes=slopes)
        return residual + part.dense(out.flatten(1))[None], None

    part.forward = forward


def _mpt(part: Any) -> None:
    """MPT: ALiBi with slopes that round the number of heads up to a power of two."""
    alibi_of: Callable[..., Tensor] = sys.modules[type(part).__module__].build_mpt_alibi_tensor

    def forward(hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        qkv = part.Wqkv(hidden_states)[0]
        if part.clip_qkv:
            qkv = qkv.clamp(min=-part.clip_qkv, max=part.clip_qkv)
        heads = qkv.unflatten(-1, (3, part.n_heads, part.head_dim)).unbind(1)
        slopes = -alibi_of(part.n_heads, 2, device=hidden_states.device)[:, 0, 0]  # the bias at distance 1
        out = attend_packed(part.layer_idx, *heads, scale=float(part.softmax_scale), alibi_slopes=slopes)
        return part.out_proj(out.flatten(1))[None], None

    part.forward = forward


def unused_mask(config: Any) -> Tensor | None:
    """What the mask function gives: nothing, or something to convert where a model does that before looking."""
    return torch.ones(1, dtype=torch.bool) if config.model_type == "mpt" else None


ADAPTERS: dict[str, Callable[[Any], None]] = {
    "GPTJAttention": _gpt_j,
    "CodeGenAttention": _gpt_j,
    "GPTNeoSelfAttention": _gpt_neo,
    "GPTNeoXJapaneseAttention": _gpt_neox_japanese,
    "BloomAttention": _bloom,
    "MptAttention": _mpt,
}
