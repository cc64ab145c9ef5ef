"""Pointwise activations of feed-forward blocks that have no gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ...core.errors import ConfigError, choices
from ..case import Make, cross
from ..dispatch import Needs, Op

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,  # exact, by erf
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),  # transformers' gelu_new, gelu_pytorch_tanh
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),  # arXiv:2109.08668
}


def activation(x: Tensor, kind: str) -> Tensor:
    """``kind(x)``, elementwise, in x's shape and dtype. Raises ConfigError for an unknown kind (``KINDS``)."""
    key = (x.dtype, x.device.type, kind)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(x, kind))
    out: Tensor = run(x, kind)
    return out


def _needs(x: Tensor, kind: str) -> Needs:
    if kind not in KINDS:
        raise ConfigError(choices("activation", kind, KINDS))
    return Needs(x.device.type, (x.dtype,), options=frozenset({kind}))


def reference(x: Tensor, kind: str) -> Tensor:
    return KINDS[kind](x)


_OP = Op("activation", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (1.6e-2, 1e-2), torch.float16: (2e-3, 1e-3)}


def _case(make: Make, kind: str, shape: tuple[int, ...] = (5, 33)) -> dict[str, object]:
    return {"x": make.normal(*shape, scale=3.0), "kind": kind}


CASES = cross("activation", _case, *({"kind": kind} for kind in KINDS), {"kind": "silu", "shape": (0, 8)})
