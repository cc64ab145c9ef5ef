"""Keeps the k most likely tokens (Fan et al. 2018, arXiv:1805.04833)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Op
from ._rows import needs, on_active_rows


def top_k_mask(logits: Tensor, k: Tensor) -> Tensor:
    """Logits ``[N, V]`` with -inf below each row's k-th largest value; equals of the k-th stay, as in transformers.

    k ``[N]`` int on the logits' device; a row with ``k <= 0`` or ``k >= V`` is untouched.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs(logits))
    out: Tensor = run(logits, k)
    return out


def reference(logits: Tensor, k: Tensor) -> Tensor:
    def hidden(rows: Tensor, k: Tensor) -> Tensor:
        largest = torch.topk(rows, int(k.max()), dim=-1).values  # sorted, so the k-th is at k - 1
        return rows < largest.gather(1, k.long()[:, None] - 1)

    return on_active_rows(logits, k, (k > 0) & (k < logits.shape[-1]), hidden)


_OP = Op("top_k_mask", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}
