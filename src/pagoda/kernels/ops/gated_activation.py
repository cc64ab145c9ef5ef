"""Gated activations (Shazeer 2020, arXiv:2002.05202): the middle of a gated feed-forward block."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import ConfigError, choices
from ..case import Make, cross
from ..dispatch import Needs, Op
from .activation import KINDS as PLAIN_KINDS

KINDS = (*PLAIN_KINDS, "swiglu_oai")


def gated_activation(gate: Tensor, up: Tensor, kind: str, *, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """``act(gate) * up`` elementwise; gate, up and result of one shape and dtype.

    Kinds are those of `activation`, and ``swiglu_oai`` (gpt_oss):
    ``g * sigmoid(alpha * g) * (u + 1)`` with g = min(gate, limit), u = clamp(up, -limit, limit). Only it uses
    alpha and limit.
    Raises ConfigError for an unknown kind.
    """
    key = (gate.dtype, gate.device.type, kind)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(gate, kind))
    out: Tensor = run(gate, up, kind, alpha=alpha, limit=limit)
    return out


def _needs(gate: Tensor, kind: str) -> Needs:
    if kind not in KINDS:
        raise ConfigError(choices("gated activation", kind, KINDS))
    return Needs(gate.device.type, (gate.dtype,), options=frozenset({kind}))


def reference(gate: Tensor, up: Tensor, kind: str, *, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    if kind == "swiglu_oai":
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
        return (up + 1) * (gate * torch.sigmoid(gate * alpha))
    return PLAIN_KINDS[kind](gate) * up


_OP = Op("gated_activation", reference)
# torch's own float32 GELU is off by up to 1.2e-6 (at -4.0003, against float64), and up to 10 times that once gated.
TOLERANCE = {torch.float32: (1e-5, 1.2e-5), torch.bfloat16: (2e-2, 1e-2), torch.float16: (4e-3, 1e-3)}


def _case(make: Make, kind: str, shape: tuple[int, ...] = (5, 33)) -> dict[str, object]:
    return {"gate": make.normal(*shape, scale=4.0), "up": make.normal(*shape[::-1], scale=4.0).mT, "kind": kind}


CASES = cross("gated_activation", _case, *({"kind": kind} for kind in KINDS), {"kind": "silu", "shape": (0, 8)})
