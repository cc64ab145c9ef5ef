"""Rotary positions of keys and queries, for methods that take them out or change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def turn(x: Tensor, by: Tensor, freq: Tensor) -> Tensor:
    """Rotates [..., N, D] by ``by`` (positions [N], or what broadcasts) more; channel i turns with channel i + D / 2,
    at ``freq`` [D / 2] (or what broadcasts beside positions).
    """
    import torch

    cos, sin = _cos_sin(by.to(torch.float32)[..., None] * freq.to(x.device))
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def angles(by: Tensor | int, freq: Tensor) -> Tensor:
    """float32 [..., D]: cosines and sines of ``by`` positions at frequencies ``freq`` [..., D / 2], which broadcast."""
    import torch

    return torch.cat(_cos_sin(by * freq), -1)


def _cos_sin(of: Tensor) -> tuple[Tensor, Tensor]:
    """numpy's where it can: torch hands even a hundred numbers to MKL, whose threads wait for cores that the kernels'
    own still hold. A decode step of ``longcache`` spent 18 of 75 ms on 768 cosines (two threads, a busy Xeon).
    """
    import numpy as np
    import torch

    if of.device.type != "cpu":
        return of.cos(), of.sin()
    numbers = of.numpy()
    return torch.from_numpy(np.cos(numbers)), torch.from_numpy(np.sin(numbers))
