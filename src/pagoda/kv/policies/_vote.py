"""What methods with an observation window share: attention of the newest queries, pooled over neighbouring slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pool_max(scores: Tensor, kernel: int) -> Tensor:
    """The highest score among ``kernel`` neighbours (odd), so that what stands together stays together: [H, N]."""
    from torch.nn.functional import max_pool1d

    pooled: Tensor = max_pool1d(scores[:, None], kernel, 1, kernel // 2)[:, 0]
    return pooled


def pool_mean(scores: Tensor, kernel: int) -> Tensor:
    """As ``pool_max``, with the mean; slots past the ends count 0. Any number of rows: [..., N]."""
    from torch.nn.functional import avg_pool1d

    pooled: Tensor = avg_pool1d(scores.reshape(-1, 1, scores.shape[-1]), kernel, 1, kernel // 2).view(scores.shape)
    return pooled


def without_window(scores: Tensor, lens: Tensor, window: int) -> Tensor:
    """Slots of the window itself count 0: they stay anyway, and pooling must not spread their weight. scores [..., N],
    lens [...].
    """
    import torch

    at = torch.arange(scores.shape[-1], device=lens.device)
    return scores.masked_fill(at >= lens[..., None] - window, 0.0)
