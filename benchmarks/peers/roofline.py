"""The least time that a machine needs for a setting, from bytes and operations; an engine's share of it.

One formula for memory-bound decode and compute-bound prefill (Williams, Waterman, Patterson, "Roofline", 2009): the
larger of bytes / read bandwidth and operations / rate of the matrix unit. Weights count in the engine's own form: the
share says how well it reads what it stores, the rate says whether that was a good form. Activations are left out.
"""

from __future__ import annotations

from ..probe import Probe
from .settings import Setting
from .shapes import Shape


def decode_seconds(
    shape: Shape, setting: Setting, probe: Probe, weights: str, weight_bytes: int, kv_bits: int
) -> float:
    """One step of ``setting.batch`` sequences halfway through their new tokens."""
    length = setting.prompt + setting.new // 2
    own = setting.batch * (length - setting.shared)
    moved = weight_bytes + shape.kv_bytes(setting.shared + own, kv_bits)
    linear = shape.linear_flops(setting.batch, setting.batch)
    return _roof(probe, moved, linear, shape.attention_flops(setting.batch * length), weights)


def prefill_seconds(shape: Shape, setting: Setting, probe: Probe, weights: str, weight_bytes: int) -> float:
    """The prompts of ``setting``, causal, with logits of the last token of each."""
    tokens = setting.batch * setting.prompt
    pairs = setting.batch * setting.prompt * (setting.prompt + 1) // 2
    linear = shape.linear_flops(tokens, setting.batch)
    return _roof(probe, weight_bytes, linear, shape.attention_flops(pairs), weights)


def _roof(probe: Probe, moved: int, linear: int, attention: int, weights: str) -> float:
    """int8 and int4 weights may be multiplied by int8 activations, which is what the machine is fastest at."""
    rate = probe.bf16_gflop_s if weights == "bf16" else probe.int8_gop_s
    return max(moved / probe.read_gb_s, linear / rate + attention / probe.bf16_gflop_s) / 1e9
