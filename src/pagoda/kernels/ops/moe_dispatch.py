"""Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538): tokens through their experts, batched by expert."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...core.errors import ConfigError, choices
from ..case import Make, cross
from ..dispatch import Needs, Op
from .activation import KINDS as PLAIN_KINDS
from .activation import activation
from .gated_activation import KINDS as GATED_KINDS
from .gated_activation import gated_activation


def moe_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up_w: Tensor,
    down_w: Tensor,
    *,
    kind: str = "silu",
    gated: bool = True,
    interleaved: bool = False,
    gate_up_b: Tensor | None = None,
    down_b: Tensor | None = None,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    """Sum over a token's experts e of ``weight * down_e(act(gate_up_e(x)))``.

    x ``[T, hidden]``; topk_ids ``[T, k]`` int, the experts of a token all different; topk_weights ``[T, k]``.
    gate_up_w ``[E, 2I, hidden]``: rows of gate, then of up, or alternating when ``interleaved`` (gpt_oss);
    ``[E, I, hidden]`` when not ``gated``. down_w ``[E, hidden, I]``; biases one per row ``[E, 2I]``, ``[E, hidden]``.
    Strided views are fine (gpt_oss stores both matrices transposed).
    kind, alpha and limit as in `gated_activation`, or `activation` when not gated.

    Returns ``[T, hidden]`` in x's dtype, experts added in the order of their numbers, each sum rounded to x's dtype as
    transformers does. Raises ConfigError for an unknown kind.
    """
    key = (x.dtype, gate_up_w.dtype, x.device.type, kind, gated, interleaved, gate_up_b is None, down_b is None)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(*key))
    out: Tensor = run(
        x, topk_ids, topk_weights, gate_up_w, down_w, kind=kind, gated=gated, interleaved=interleaved,
        gate_up_b=gate_up_b, down_b=down_b, alpha=alpha, limit=limit,
    )  # fmt: skip
    return out


def _needs(
    dtype: torch.dtype, weight: torch.dtype, device: str, kind: str, gated: bool, interleaved: bool, *no_bias: bool
) -> Needs:
    kinds = GATED_KINDS if gated else PLAIN_KINDS
    if kind not in kinds:
        raise ConfigError(choices("gated activation" if gated else "activation", kind, kinds))
    options = {kind: True, "ungated": not gated, "interleaved": interleaved, "bias": not all(no_bias)}
    return Needs(device, (dtype, weight), options=frozenset(name for name, on in options.items() if on))


def reference(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up_w: Tensor,
    down_w: Tensor,
    *,
    kind: str = "silu",
    gated: bool = True,
    interleaved: bool = False,
    gate_up_b: Tensor | None = None,
    down_b: Tensor | None = None,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    out = torch.zeros_like(x)
    top_k = topk_ids.shape[1]
    order = topk_ids.reshape(-1).argsort(stable=True)  # by expert, then by token
    counts = torch.bincount(topk_ids.reshape(-1), minlength=gate_up_w.shape[0]).tolist()
    tokens, weights = order // top_k, topk_weights.reshape(-1).index_select(0, order)[:, None]
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        part = slice(start, start + count)
        start += count
        inner = linear(x.index_select(0, tokens[part]), gate_up_w[expert], _row(gate_up_b, expert))
        if gated:
            gate, up = (inner[..., 0::2], inner[..., 1::2]) if interleaved else inner.chunk(2, dim=-1)
            inner = gated_activation(gate, up, kind, alpha=alpha, limit=limit)
        else:
            inner = activation(inner, kind)
        result = linear(inner, down_w[expert], _row(down_b, expert)) * weights[part]
        out.index_add_(0, tokens[part], result.to(x.dtype))
    return out


def _row(bias: Tensor | None, expert: int) -> Tensor | None:
    return None if bias is None else bias[expert]


_OP = Op("moe_dispatch", reference)
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (3e-2, 3e-2), torch.float16: (5e-3, 5e-3)}


def _case(
    make: Make, tokens: int = 7, experts: int = 5, top_k: int = 2, dim: int = 16, inner: int = 24, bias: bool = False,
    **options: object,
) -> dict[str, object]:  # fmt: skip
    width = 2 * inner if options.get("gated", True) else inner
    scores = make.normal(tokens, experts, dtype=torch.float32).softmax(-1)
    weights, ids = scores.topk(top_k, dim=-1)
    return {
        "x": make.normal(tokens, dim),
        "topk_ids": ids,
        "topk_weights": weights.to(make.dtype),
        "gate_up_w": make.normal(experts, width, dim, scale=dim**-0.5),
        "down_w": make.normal(experts, dim, inner, scale=inner**-0.5),
        "gate_up_b": make.normal(experts, width, scale=0.1) if bias else None,
        "down_b": make.normal(experts, dim, scale=0.1) if bias else None,
        **options,
    }


CASES = cross(
    "moe_dispatch", _case,
    {}, {"tokens": 1}, {"tokens": 0}, {"top_k": 1}, {"experts": 40, "tokens": 3}, {"gated": False, "kind": "relu2"},
    {"bias": True}, {"bias": True, "kind": "swiglu_oai", "interleaved": True},
)  # fmt: skip
