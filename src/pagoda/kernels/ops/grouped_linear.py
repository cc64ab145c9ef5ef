"""Products with several packed weights of one shape at once: the experts of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Op
from ..packed import PackedWeight
from ..quantize import pack
from .packed_linear import needs_of
from .packed_linear import reference as product


def grouped_linear(
    x: Tensor,
    counts: Sequence[int],
    matrices: Sequence[PackedWeight],
    biases: Sequence[Tensor] | None = None,
    *,
    dynamic: bool = False,
) -> Tensor:
    """Rows of x, expert after expert: the first ``counts[0]`` times ``matrices[0]``, the next ``counts[1]`` …

    x ``[N, inputs]`` float32 or bfloat16, N the sum of the counts (some may be 0); matrices of one format and shape;
    biases one ``[outputs]`` each. Returns ``[N, outputs]``, every row as `packed_linear` gives it.
    """
    key = (x.dtype, x.device.type, matrices[0].format, dynamic, biases is None)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs_of(*key))
    out: Tensor = run(x, counts, matrices, biases, dynamic=dynamic)
    return out


def reference(
    x: Tensor,
    counts: Sequence[int],
    matrices: Sequence[PackedWeight],
    biases: Sequence[Tensor] | None = None,
    *,
    dynamic: bool = False,
) -> Tensor:
    parts = x.split(list(counts))
    rows = [
        product(part, matrices[e], None if biases is None else biases[e], dynamic=dynamic)
        for e, part in enumerate(parts)
    ]
    return torch.cat(rows)


_OP = Op("grouped_linear", reference)
TOLERANCE = {torch.float32: (1e-4, 2e-5), torch.bfloat16: (1.6e-2, 2e-2)}


def _case(
    make: Make, counts: tuple[int, ...], format: str, group: int = 0, bias: bool = False, dynamic: bool = False
) -> dict[str, object]:
    experts = len(counts)
    weights = make.normal(experts, 48, 96, scale=96**-0.5, dtype=torch.float32)
    return {
        "x": make.normal(sum(counts), 96),
        "counts": counts,
        "matrices": [pack(weights[e], format, group=group) for e in range(experts)],
        "biases": list(make.normal(experts, 48)) if bias else None,
        "dynamic": dynamic,
    }


CASES = cross(
    "grouped_linear", _case,
    {"counts": (3, 0, 5, 1), "format": "fp32"}, {"counts": (1, 1), "format": "bf16", "bias": True},
    {"counts": (0, 33, 0, 2), "format": "int8"}, {"counts": (4, 7), "format": "int8", "dynamic": True},
    {"counts": (9, 1, 0), "format": "int4", "group": 32, "bias": True},
    {"counts": (2, 14), "format": "int4", "group": 64, "dynamic": True}, {"counts": (0, 0), "format": "bf16"},
    {"counts": (3, 8), "format": "int5", "group": 96}, {"counts": (2, 1), "format": "nf4", "group": 32},
    {"counts": (3, 40), "format": "bf12"},
)  # fmt: skip
