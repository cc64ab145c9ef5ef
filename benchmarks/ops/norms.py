"""Normalizations of rows beside torch's, in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from pagoda.kernels.ops import layer_norm, rms_norm

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

TOKENS, ROUNDS, EPS = (1, 32, 1024, 8192), 15, 1e-6


def rows(dim: int, clock: str = "wall") -> Iterator[Measured]:
    """Rows of ``dim`` numbers."""
    weight, bias = torch.randn(2, dim).bfloat16()
    for tokens in TOKENS:
        x = torch.randn(tokens, dim).bfloat16()
        moved = 2 * x.nbytes
        root = {
            "pagoda": lambda number, x=x: rms_norm(x, weight, EPS),
            "torch": lambda number, x=x: functional.rms_norm(x, (dim,), weight, EPS),
            REFERENCE: lambda number, x=x: plain("rms_norm")(x, weight, EPS),
        }
        layer = {
            "pagoda": lambda number, x=x: layer_norm(x, weight, bias, EPS),
            "torch": lambda number, x=x: functional.layer_norm(x, (dim,), weight, bias, EPS),
            REFERENCE: lambda number, x=x: plain("layer_norm")(x, weight, bias, EPS),
        }
        for what, ways in (("rms_norm", root), ("layer_norm", layer)):
            yield Measured({"op": what, "tokens": tokens}, in_turn(ways, ROUNDS, clock), moved)
