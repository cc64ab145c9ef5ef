"""Which experts of a mixture a token passes, and what their answers count."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import ConfigError, choices
from ..case import Make, cross
from ..dispatch import Needs, Op

KINDS = ("softmax", "topk_softmax", "sigmoid")


def route(
    logits: Tensor,
    correction: Tensor | None = None,
    *,
    dtype: torch.dtype,
    kind: str,
    top_k: int,
    normalize: bool = False,
    scaling: float = 1.0,
    num_groups: int = 1,
    topk_group: int = 1,
) -> tuple[Tensor, Tensor]:
    """logits float32 ``[T, E]`` (`router_logits`) -> ids int64 ``[T, k]``, weights float32 ``[T, k]``.

    ``softmax``: over all logits, the k largest, divided by their sum where ``normalize``. ``topk_softmax``: over the k
    largest logits. Weights are rounded to ``dtype``, the model's.

    ``sigmoid`` (DeepSeek-V3, https://arxiv.org/abs/2412.19437, 2.1.2): ``correction`` (float32 ``[E]``) is added to the
    scores for the choice, never to the weights. A group's score is the sum of its two best experts; of the
    ``topk_group`` best of ``num_groups`` groups the k largest are chosen, their scores divided by their sum where
    ``normalize``, and multiplied by ``scaling``.

    Raises ConfigError for an unknown kind. Which of equals are chosen is what torch's ``topk`` chooses.
    """
    key = (logits.device.type, kind)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(logits, kind))
    out: tuple[Tensor, Tensor] = run(
        logits, correction, dtype=dtype, kind=kind, top_k=top_k, normalize=normalize, scaling=scaling,
        num_groups=num_groups, topk_group=topk_group,
    )  # fmt: skip
    return out


def _needs(logits: Tensor, kind: str) -> Needs:
    if kind not in KINDS:
        raise ConfigError(choices("router", kind, KINDS))
    return Needs(logits.device.type, (logits.dtype,), options=frozenset({kind}))


def reference(
    logits: Tensor,
    correction: Tensor | None = None,
    *,
    dtype: torch.dtype,
    kind: str,
    top_k: int,
    normalize: bool = False,
    scaling: float = 1.0,
    num_groups: int = 1,
    topk_group: int = 1,
) -> tuple[Tensor, Tensor]:
    if kind == "sigmoid":
        scores = logits.sigmoid()
        choice = scores if correction is None else scores + correction
        ids = _in_best_groups(choice, num_groups, topk_group).topk(top_k, dim=-1).indices
        weights = scores.gather(1, ids)
        if normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * scaling
    if kind == "topk_softmax":
        top, ids = logits.topk(top_k, dim=-1)
        return ids, top.softmax(-1).to(dtype).float()
    weights, ids = logits.softmax(-1).topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids, weights.to(dtype).float()


def _in_best_groups(choice: Tensor, num_groups: int, topk_group: int) -> Tensor:
    """``[T, E]`` with -inf outside the best groups."""
    tokens, num_experts = choice.shape
    groups = choice.view(tokens, num_groups, num_experts // num_groups)
    best = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1).topk(topk_group, dim=-1).indices
    is_open = torch.zeros(tokens, num_groups, dtype=torch.bool, device=choice.device).scatter_(1, best, True)
    return groups.masked_fill(~is_open[..., None], float("-inf")).view(tokens, num_experts)


_OP = Op("route", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-6)}


def _case(
    make: Make, tokens: int = 7, experts: int = 40, correction: bool = False, **options: object
) -> dict[str, object]:
    """Many logits are equal, as bfloat16's are."""
    return {
        "logits": make.normal(tokens, experts, scale=8.0).round() * 0.25,
        "correction": make.normal(experts) if correction else None,
        "dtype": torch.float32,
        "kind": "softmax",
        "top_k": 3,
        **options,
    }


GROUPS = {"kind": "sigmoid", "num_groups": 8, "topk_group": 3, "normalize": True, "scaling": 2.5}
CASES = cross(
    "route", _case,
    {}, {"tokens": 1, "normalize": True}, {"tokens": 0}, {"experts": 5}, {"top_k": 8, "normalize": True},
    {"experts": 300, "tokens": 33}, {"experts": 4, "top_k": 4}, {"kind": "topk_softmax", "dtype": torch.bfloat16},
    {"kind": "topk_softmax", "experts": 128, "top_k": 1, "tokens": 20}, {"kind": "sigmoid"},
    {"top_k": 8, "normalize": True, "dtype": torch.bfloat16}, {**GROUPS, "correction": True},
    {**GROUPS, "experts": 256, "tokens": 19, "top_k": 8},
)  # fmt: skip
