"""Matrix product with a weight stored row by output, as checkpoints have it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Needs, Op


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., in]``, weight ``[out, in]``, bias ``[out]`` or None -> ``[..., out]`` in x's dtype."""
    key = (x.dtype, x.device.type, weight.dtype, bias is None)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(x, weight, bias))
    out: Tensor = run(x, weight, bias)
    return out


def _needs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Needs:
    return Needs(x.device.type, (x.dtype, weight.dtype), options=frozenset({"bias"} if bias is not None else ()))


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


_OP = Op("linear", reference)
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1.6e-2, 2e-2), torch.float16: (4e-3, 4e-3)}
