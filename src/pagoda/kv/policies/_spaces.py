"""What codecs share that keep coordinates in a smaller space."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def leading(moments: Tensor) -> Tensor:
    """Eigenvectors of second moments ``[..., D, D]`` as columns, those that carry most first: float32 alike."""
    import torch

    vectors: Tensor = torch.linalg.eigh(moments.double()).eigenvectors.flip(-1).float()
    return vectors
