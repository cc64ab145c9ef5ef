"""What a mixture's router says of each expert: a product that must not depend on who is beside a token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..case import Make, cross
from ..dispatch import Needs, Op


def router_logits(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    """``x @ weight.T + bias``: x ``[T, hidden]``, weight ``[E, hidden]``, bias ``[E]`` -> float32 ``[T, E]``.

    Rounded to x's dtype; with ``exact`` products and sums are float32 whatever that is (near-ties decide which experts
    run: DeepSeek).
    """
    key = (x.dtype, weight.dtype, x.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(x.device.type, (x.dtype, weight.dtype)))
    out: Tensor = run(x, weight, bias, exact=exact)
    return out


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    if exact:
        return linear(x.float(), weight.float(), None if bias is None else bias.float())
    return linear(x, weight, bias).float()


_OP = Op("router_logits", reference)
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1.6e-2, 2e-2), torch.float16: (4e-3, 4e-3)}


def _case(
    make: Make, tokens: int = 7, hidden: int = 48, experts: int = 40, bias: bool = False, exact: bool = False
) -> dict[str, object]:
    weight = make.normal(experts, hidden, scale=hidden**-0.5)
    return {
        "x": make.normal(tokens, hidden), "weight": weight, "bias": make.normal(experts) if bias else None,
        "exact": exact,
    }  # fmt: skip


CASES = cross(
    "router_logits", _case,
    {}, {"tokens": 1, "bias": True}, {"tokens": 0}, {"experts": 1, "hidden": 17}, {"tokens": 35, "experts": 5},
    {"exact": True}, {"experts": 67, "hidden": 2050, "tokens": 2}, {"tokens": 18, "experts": 300, "hidden": 512},
)  # fmt: skip
