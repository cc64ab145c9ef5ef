"""Locally typical sampling: tokens whose surprise is near the entropy (Meister et al. 2022, arXiv:2202.00666)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Op
from ._rows import needs, on_active_rows, rows


def typical_mask(logits: Tensor, p: Tensor) -> Tensor:
    """Logits ``[N, V]`` with -inf outside the smallest set of most typical tokens whose probability reaches p.

    p ``[N]`` float on the logits' device; a row with ``p >= 1`` is untouched. Tokens are ordered by
    ``|-log prob - entropy|``; equals of the last one that stays also stay, as in transformers.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs(logits))
    out: Tensor = run(logits, p)
    return out


def reference(logits: Tensor, p: Tensor) -> Tensor:
    def hidden(x: Tensor, p: Tensor) -> Tensor:
        log_probs = x.log_softmax(-1)
        entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)  # -inf * 0 counts as 0
        distance = (-log_probs - entropy).abs()
        ordered, index = torch.sort(distance, dim=-1, stable=True)
        mass = log_probs.exp().gather(1, index).cumsum(-1)
        last = (mass < p.to(x.dtype)[:, None]).sum(-1, keepdim=True).clamp_max(x.shape[-1] - 1)
        return distance > ordered.gather(1, last)

    return on_active_rows(logits, p, p < 1, hidden)


_OP = Op("typical_mask", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, p: list[float], vocab: int = 50, ties: bool = False) -> dict[str, object]:
    return {"logits": rows(make, len(p), vocab, ties), "p": torch.tensor(p, device=make.device)}


CASES = cross(
    "typical_mask", _case,
    {"p": [0.5]}, {"p": [0.9, 1.0, 0.01]}, {"p": [1.0]}, {"p": []}, {"p": [0.6, 0.9], "ties": True},
)  # fmt: skip
