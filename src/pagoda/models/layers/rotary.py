"""Rotary tables: inverse frequencies of each scaling, and cos/sin rows cached by position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, length: int) -> Tensor:
    """The ``dim / 2`` angular steps per position, float32 on the CPU.

    ``length`` is the longest sequence that the model will be asked for. Two scalings depend on it, and take their
    value from it once, so that a sequence's result never depends on its batch mates or on its own later growth:
    ``dynamic`` stretches theta for that length when it exceeds ``max_position``; ``longrope`` takes its long factors
    when it exceeds ``original_max_position`` and its short ones otherwise.
    """
    return _KINDS[rope.kind](rope, length)


def _plain(rope: RopeSpec, theta: float | None = None) -> Tensor:
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    return 1.0 / ((theta or rope.theta) ** exponents)


def _default(rope: RopeSpec, length: int) -> Tensor:
    return _plain(rope)


def _linear(rope: RopeSpec, length: int) -> Tensor:
    return _plain(rope) / rope.factor


def _dynamic(rope: RopeSpec, length: int) -> Tensor:
    """NTK-aware scaling: theta grows so that the slowest pair covers ``length``."""
    stretch = rope.factor * max(length, rope.max_position) / rope.max_position - (rope.factor - 1)
    return _plain(rope, rope.theta * stretch ** (rope.dim / (rope.dim - 2)))


def _longrope(rope: RopeSpec, length: int) -> Tensor:
    """LongRoPE (https://arxiv.org/abs/2402.13753): a searched factor for every pair."""
    factors = rope.long_factor if length > rope.original_max_position else rope.short_factor
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)


def _llama3(rope: RopeSpec, length: int) -> Tensor:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended."""
    freq = _plain(rope)
    wavelength = 2 * math.pi / freq
    old = rope.original_max_position
    blend = (old / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * freq / rope.factor + blend * freq
    scaled = torch.where(wavelength > old / rope.low_freq_factor, freq / rope.factor, blended)
    return torch.where(wavelength < old / rope.high_freq_factor, freq, scaled)


def _yarn(rope: RopeSpec, length: int) -> Tensor:
    """YaRN (https://arxiv.org/abs/2309.00071): interpolate slow pairs, keep fast ones, ramp in between."""

    def pair_of(rotations: float) -> float:
        """The pair that turns ``rotations`` times over the original length."""
        return rope.dim * math.log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    freq = _plain(rope)
    return freq / rope.factor * ramp + freq * (1 - ramp)


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "longrope": _longrope,
    "llama3": _llama3,
    "yarn": _yarn,
}


class RotaryTable:
    """cos and sin by position, ``[rows, dim / 2]`` each, grown by doubling as positions come.

    On the CPU rows are made on demand. On another device the whole of ``length`` is made at the first step, because
    asking for the largest position would wait for the device at every step.
    """

    def __init__(self, rope: RopeSpec, *, dtype: torch.dtype, device: torch.device, length: int) -> None:
        self.rope, self.dtype, self.device, self.length = rope, dtype, device, length
        self.freq = inverse_frequencies(rope, length)
        self.cos = self.sin = torch.empty(0)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin ``[T, dim / 2]`` of positions ``[T]``."""
        on_cpu = self.device.type == "cpu"
        needed = self.length if not on_cpu else int(positions.max()) + 1 if positions.numel() else 0
        cos, sin = self.up_to(needed)
        return cos[positions], sin[positions]

    def up_to(self, length: int) -> tuple[Tensor, Tensor]:
        """cos, sin ``[rows, dim / 2]`` of all positions below ``length``, and perhaps more."""
        rows = self.cos.shape[0]
        if length > rows:
            self._grow(max(length, min(2 * rows, self.length), min(256, self.length)))
        return self.cos, self.sin

    @torch.inference_mode(False)  # the rows outlive the step that asked for them
    def _grow(self, rows: int) -> None:
        angles = torch.arange(rows, dtype=torch.float32)[:, None] * self.freq
        scale = self.rope.attention_factor
        cos, sin = ((f(angles) * scale).to(device=self.device, dtype=self.dtype) for f in (torch.cos, torch.sin))
        # the op rotates in the wider dtype of q and cos; the table's values are rounded to the model's dtype either way
        self.cos, self.sin = (cos.float(), sin.float()) if self.rope.float32 else (cos, sin)
