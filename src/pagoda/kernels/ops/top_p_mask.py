"""Nucleus sampling: the smallest set of tokens whose probability reaches p (Holtzman et al. 2019, arXiv:1904.09751)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Op
from ._rows import needs, on_active_rows, rows


def top_p_mask(logits: Tensor, p: Tensor) -> Tensor:
    """Logits ``[N, V]`` with -inf outside each row's nucleus; the likeliest token always stays.

    p ``[N]`` float on the logits' device; a row with ``p >= 1`` is untouched. As in transformers a token goes when the
    probability of itself and all less likely ones is at most 1 - p; among equals the lower id goes first.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs(logits))
    out: Tensor = run(logits, p)
    return out


def reference(logits: Tensor, p: Tensor) -> Tensor:
    def hidden(x: Tensor, p: Tensor) -> Tensor:
        ordered, index = torch.sort(x, dim=-1, stable=True)  # ascending
        tail = ordered.softmax(-1).cumsum(-1) <= (1 - p.to(x.dtype))[:, None]
        tail[:, -1] = False
        return torch.zeros_like(tail).scatter_(1, index, tail)

    return on_active_rows(logits, p, p < 1, hidden)


_OP = Op("top_p_mask", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, p: list[float], vocab: int = 50, ties: bool = False) -> dict[str, object]:
    return {"logits": rows(make, len(p), vocab, ties), "p": torch.tensor(p, device=make.device)}


CASES = cross(
    "top_p_mask", _case,
    {"p": [0.5]}, {"p": [0.9, 1.0, 0.01]}, {"p": [1.0]}, {"p": []}, {"p": [0.6, 0.9], "ties": True},
)  # fmt: skip
