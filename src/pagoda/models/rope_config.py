"""Reading rotary settings from a config, in both of transformers' spellings, with every default resolved.

Old (v4): ``rope_theta`` beside ``rope_scaling: {"type" | "rope_type": ..., "factor": ...}``.
New (v5): one ``rope_parameters`` object, or one per layer type inside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pagoda.core.errors import ModelError, choices

from .config import LAYER_TYPES, ConfigReader
from .spec import RopeSpec

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def read_rope(
    cfg: ConfigReader,
    head_dim: int,
    *,
    default_theta: float = 10000.0,
    theta_key: str = "rope_theta",
    partial_key: str | None = None,
    default_partial: float = 1.0,
    interleaved: bool = False,
    float32: bool = False,
    layer_type: str | None = None,
    default: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    max_position: int,
    original_max_position: int | None = None,
) -> RopeSpec:
    """The rotary spec of one layer type.

    ``partial_key`` names the key of the rotated fraction of a head where the family has one; elsewhere a fraction
    is refused. ``default`` stands in for an absent ``rope_parameters``. ``rename`` maps a family's own rope types.
    ``original_max_position`` is the pre-training length of a family that keeps it beside the rope table.
    Raises ModelError naming an unknown rope type or a missing field.
    """
    table = _table(cfg, layer_type, default)
    theta = _number(cfg, table, "rope_theta", cfg.number(theta_key, default_theta))
    kind = str(table.get("rope_type") or table.get("type") or "default")
    kind = (rename or {}).get(kind, kind)
    if kind not in ROPE_TYPES:
        raise ModelError(f"{cfg.family} config: {choices('rope type', kind, ROPE_TYPES)}")
    if "mrope_section" in table:
        raise ModelError(f"{cfg.family} config: rope key mrope_section (multimodal positions) is not supported")
    dim = _rotary_dim(cfg, table, head_dim, partial_key, default_partial)
    if original_max_position is not None:
        table["original_max_position_embeddings"] = original_max_position
    scaling = _SCALING[kind](cfg, table, max_position, dim)
    return RopeSpec(kind, theta, dim, max_position, interleaved, float32, **scaling)


def _table(cfg: ConfigReader, layer_type: str | None, default: Mapping[str, Any] | None) -> dict[str, Any]:
    table = cfg.table("rope_scaling") or cfg.table("rope_parameters") or dict(default or {})
    if any(name in table for name in LAYER_TYPES):
        table = dict(table.get(layer_type or "full_attention") or {})
    return table


def _rotary_dim(
    cfg: ConfigReader, table: Mapping[str, Any], head_dim: int, partial_key: str | None, default_partial: float
) -> int:
    outside = cfg.number(partial_key, default_partial) if partial_key else cfg.number("partial_rotary_factor", 1.0)
    partial = _number(cfg, table, "partial_rotary_factor", outside)
    if partial_key is None and partial != 1.0:
        raise ModelError(f"{cfg.family} config: partial_rotary_factor={partial} is not a {cfg.family} feature")
    dim = int(head_dim * partial)
    if dim <= 0 or dim % 2 or dim > head_dim:
        raise ModelError(
            f"{cfg.family} config: rotary dimension {dim} (head_dim {head_dim} x {partial}) must be even, positive "
            f"and at most head_dim"
        )
    return dim


def _number(cfg: ConfigReader, table: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = table.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise cfg.error(f"rope_parameters.{key}", value, "a number")
    return float(value)


def _original(cfg: ConfigReader, table: Mapping[str, Any], max_position: int) -> int:
    """The pre-training length: beside the rope table (Phi-3) first, then inside it, then the maximum length."""
    if cfg.has("original_max_position_embeddings"):
        return cfg.integer("original_max_position_embeddings")
    return int(_number(cfg, table, "original_max_position_embeddings", max_position))


def _no_scaling(cfg: ConfigReader, table: Mapping[str, Any], max_position: int, dim: int) -> dict[str, Any]:
    return {}


def _factor_only(cfg: ConfigReader, table: Mapping[str, Any], max_position: int, dim: int) -> dict[str, Any]:
    return {"factor": _number(cfg, table, "factor")}


def _llama3(cfg: ConfigReader, table: Mapping[str, Any], max_position: int, dim: int) -> dict[str, Any]:
    return {
        "factor": _number(cfg, table, "factor"),
        "low_freq_factor": _number(cfg, table, "low_freq_factor"),
        "high_freq_factor": _number(cfg, table, "high_freq_factor"),
        "original_max_position": _original(cfg, table, max_position),
    }


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature (https://arxiv.org/abs/2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn(cfg: ConfigReader, table: Mapping[str, Any], max_position: int, dim: int) -> dict[str, Any]:
    original = _original(cfg, table, max_position)
    factor = _number(cfg, table, "factor", max_position / original)
    mscale, all_dim = table.get("mscale"), table.get("mscale_all_dim")
    inferred = yarn_mscale(factor)
    if mscale and all_dim:
        inferred = yarn_mscale(factor, float(mscale)) / yarn_mscale(factor, float(all_dim))
    return {
        "factor": factor,
        "original_max_position": original,
        "attention_factor": _number(cfg, table, "attention_factor", inferred),
        "beta_fast": _number(cfg, table, "beta_fast", 32.0) or 32.0,
        "beta_slow": _number(cfg, table, "beta_slow", 1.0) or 1.0,
        "truncate": bool(table.get("truncate", True)),
    }


def _longrope(cfg: ConfigReader, table: Mapping[str, Any], max_position: int, dim: int) -> dict[str, Any]:
    original = _original(cfg, table, max_position)
    factor = _number(cfg, table, "factor", max_position / original)
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "original_max_position": original,
        "attention_factor": _number(cfg, table, "attention_factor", inferred),
        "short_factor": _factors(cfg, table, "short_factor", dim),
        "long_factor": _factors(cfg, table, "long_factor", dim),
    }


def _factors(cfg: ConfigReader, table: Mapping[str, Any], key: str, dim: int) -> tuple[float, ...]:
    value = table.get(key)
    if not isinstance(value, (list, tuple)) or len(value) != dim // 2:
        raise cfg.error(f"rope_parameters.{key}", value, f"a list of {dim // 2} numbers")
    return tuple(float(v) for v in value)


_SCALING = {
    "default": _no_scaling,
    "linear": _factor_only,
    "dynamic": _factor_only,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
