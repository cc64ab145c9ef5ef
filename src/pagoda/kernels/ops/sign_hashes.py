"""Which side of some planes vectors lie on, as whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op

MOST_BITS = 24
"""Whole numbers up to there are exact in float32."""


def sign_hashes(x: Tensor, planes: Tensor) -> Tensor:
    """float32 ``[...]``, whole: bit b is set where ``x`` float32 ``[..., D]`` times column b of ``planes`` float32
    ``[D, bits]`` is above 0; at most MOST_BITS bits.
    """
    key = (x.dtype, x.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(x.device.type, (x.dtype,)))
    hashes: Tensor = run(x, planes)
    return hashes


def reference(x: Tensor, planes: Tensor) -> Tensor:
    bits = torch.arange(planes.shape[1], device=x.device)
    return (x @ planes > 0).float() @ (2.0**bits)  # exact: a sum of powers of two


_OP = Op("sign_hashes", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, shape: tuple[int, ...], bits: int) -> dict[str, object]:
    return {"x": make.normal(*shape), "planes": make.normal(shape[-1], bits)}


CASES = [
    Case("heads", lambda make: _case(make, (2, 3, 9, 24), 16)),
    Case("most bits", lambda make: _case(make, (5, 64), MOST_BITS)),
    Case("one bit", lambda make: _case(make, (7, 3), 1)),
    Case("nothing", lambda make: _case(make, (2, 0, 8), 4)),
]
