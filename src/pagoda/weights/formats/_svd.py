"""The best approximation of low rank, cheaply and always the same: subspace iteration from a fixed start.

Halko, Martinsson and Tropp 2011 (arXiv:0909.4061), algorithm 4.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OVERSAMPLE, ITERATIONS = 8, 3


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``left [rows, rank]``, ``right [rank, cols]``: the product is near ``matrix`` (float32), zeros past its rank."""
    import torch
    from torch.nn.functional import pad

    rows, cols = matrix.shape
    width = min(rank + OVERSAMPLE, rows, cols)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(cols, width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = s[:rank].clamp(min=0).sqrt()
    left, right = (basis @ u[:, :rank]) * root, root[:, None] * vh[:rank]
    left, right = pad(left, (0, rank - left.shape[1])), pad(right, (0, 0, 0, rank - right.shape[0]))
    return left.contiguous(), right.contiguous()
