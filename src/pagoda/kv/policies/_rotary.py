"""Rotary positions of keys and queries, for methods that take them out or change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def turn(x: Tensor, by: Tensor, freq: Tensor) -> Tensor:
    """Rotates [H, N, D] by ``by`` ([N] or [H, N]) positions more; channel i turns with channel i + D / 2, ``freq``
    [1, D / 2].
    """
    import torch

    angles = by.to(torch.float32)[..., None] * freq.to(x.device).view(1, -1)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def angles(by: Tensor | int, freq: Tensor) -> Tensor:
    """float32 [..., D]: cosines and sines of ``by`` positions at frequencies ``freq`` [..., D / 2], which broadcast."""
    import torch

    found = by * freq
    return torch.cat([found.cos(), found.sin()], -1)
