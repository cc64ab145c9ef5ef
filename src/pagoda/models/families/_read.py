"""What most families read the same way: the dimensions, and the config of a tiny member."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pagoda.core.errors import ModelError

from ..config import ConfigReader


@dataclass(frozen=True, slots=True)
class Dims:
    """The dimensions that nearly every config has under the same keys."""

    vocab_size: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int


def read_dims(
    cfg: ConfigReader,
    *,
    vocab_size: int,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int | None,
    max_position: int,
    head_dim: int | None = None,
) -> Dims:
    """Dimensions with the family's defaults. ``kv_heads`` None: as many as heads; ``head_dim`` None: hidden / heads."""
    hidden = cfg.integer("hidden_size", hidden)
    heads = cfg.integer("num_attention_heads", heads)
    kv = cfg.opt_integer("num_key_value_heads", kv_heads) or heads
    if heads % kv:
        raise ModelError(f"{cfg.family} config: {heads} query heads do not divide among num_key_value_heads={kv}")
    head_dim = cfg.opt_integer("head_dim", head_dim) or whole_head_dim(cfg, hidden, heads)
    return Dims(
        vocab_size=cfg.integer("vocab_size", vocab_size),
        hidden=hidden,
        inner=cfg.integer("intermediate_size", inner),
        layers=cfg.integer("num_hidden_layers", layers),
        heads=heads,
        kv_heads=kv,
        head_dim=head_dim,
        max_position=cfg.integer("max_position_embeddings", max_position),
    )


def whole_head_dim(cfg: ConfigReader, hidden: int, heads: int) -> int:
    """hidden / heads, which must come out even where no head_dim is given."""
    if hidden % heads:
        raise ModelError(f"{cfg.family} config: hidden_size={hidden} is not a multiple of num_attention_heads={heads}")
    return hidden // heads


def sparse_layers(cfg: ConfigReader, num_layers: int) -> list[bool]:
    """Which layers have experts, by Qwen's rule: every ``decoder_sparse_step``-th, but not ``mlp_only_layers``."""
    step, dense = cfg.integer("decoder_sparse_step", 1), cfg.integers("mlp_only_layers")
    return [i not in dense and (i + 1) % step == 0 for i in range(num_layers)]


def tiny_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """The dimensions of a tiny member; families add what makes them special."""
    return {
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def upper_windows(cfg: ConfigReader, num_layers: int) -> list[int]:
    """Qwen's windows by layer: with ``use_sliding_window``, the layers from ``max_window_layers`` up have one."""
    window = (cfg.opt_integer("sliding_window", 4096) or 0) if cfg.flag("use_sliding_window", False) else 0
    first = cfg.integer("max_window_layers", 28, least=0)
    default = ("sliding_attention" if window and i >= first else "full_attention" for i in range(num_layers))
    return typed_windows(cfg, num_layers, default, window)


def typed_windows(cfg: ConfigReader, num_layers: int, default: Iterable[str], window: int) -> list[int]:
    """``layer_types`` (or its default) as one window per layer, 0 for full attention."""
    types = cfg.layer_types(num_layers, default)
    if not window and "sliding_attention" in types:
        raise ModelError(f"{cfg.family} config: layer_types has sliding_attention, but no sliding_window is in use")
    return [window if kind == "sliding_attention" else 0 for kind in types]
