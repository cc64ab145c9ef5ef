"""Keeps the k most likely tokens (Fan et al. 2018, arXiv:1805.04833)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Op
from ._rows import needs, on_active_rows, rows


def top_k_mask(logits: Tensor, k: Tensor) -> Tensor:
    """Logits ``[N, V]`` with -inf below each row's k-th largest value; equals of the k-th stay, as in transformers.

    k ``[N]`` int on the logits' device; a row with ``k <= 0`` or ``k >= V`` is untouched.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs(logits))
    out: Tensor = run(logits, k)
    return out


def reference(logits: Tensor, k: Tensor) -> Tensor:
    def hidden(x: Tensor, k: Tensor) -> Tensor:
        largest = torch.topk(x, int(k.max()), dim=-1).values  # sorted, so the k-th is at k - 1
        return x < largest.gather(1, k.long()[:, None] - 1)

    return on_active_rows(logits, k, (k > 0) & (k < logits.shape[-1]), hidden)


_OP = Op("top_k_mask", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, k: list[int], vocab: int = 50, ties: bool = False) -> dict[str, object]:
    return {"logits": rows(make, len(k), vocab, ties), "k": make.ints(k)}


CASES = cross(
    "top_k_mask", _case,
    {"k": [3]}, {"k": [1, 0, 50, 7]}, {"k": [0, 0]}, {"k": [], "vocab": 5}, {"k": [4, 9], "ties": True},
)  # fmt: skip
