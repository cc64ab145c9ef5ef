"""Keeps tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Op
from ._rows import needs, on_active_rows, rows


def min_p_mask(logits: Tensor, p: Tensor) -> Tensor:
    """Logits ``[N, V]`` with -inf where the probability is below p times the row's largest.

    p ``[N]`` float in 0..1 on the logits' device; a row with ``p <= 0`` is untouched.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs(logits))
    out: Tensor = run(logits, p)
    return out


def reference(logits: Tensor, p: Tensor) -> Tensor:
    def hidden(x: Tensor, p: Tensor) -> Tensor:
        probs = x.softmax(-1)
        return probs < p.to(x.dtype)[:, None] * probs.amax(-1, keepdim=True)

    return on_active_rows(logits, p, p > 0, hidden)


_OP = Op("min_p_mask", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, p: list[float], vocab: int = 50, ties: bool = False) -> dict[str, object]:
    return {"logits": rows(make, len(p), vocab, ties), "p": torch.tensor(p, device=make.device)}


CASES = cross(
    "min_p_mask", _case,
    {"p": [0.1]}, {"p": [0.9, 0.0, 1.0]}, {"p": [0.0]}, {"p": []}, {"p": [0.5, 0.2], "ties": True},
)  # fmt: skip
