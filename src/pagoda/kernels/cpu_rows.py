"""The C++ bodies of what is done to single rows: norms, rotation, activations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features
from .ops.rms_norm import rounds_first

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3, "relu": 4, "relu2": 5, "swiglu_oai": 6}


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, *, offset: float = 0.0, fp32_weight: bool = False, isa: str = ""
) -> Tensor:
    """As `ops.rms_norm`; ``isa`` fixes the instruction set (for tests)."""
    return _norm(x, weight, None, eps, offset, False, rounds_first(offset, fp32_weight), isa)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, isa: str = "") -> Tensor:
    """As `ops.layer_norm`."""
    return _norm(x, weight, bias, eps, 0.0, True, False, isa)


def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, offset: float, centred: bool, round_first: bool,
    isa: str,
) -> Tensor:  # fmt: skip
    dim = x.shape[-1]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, dim).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    weight, bias = (None if w is None else w.contiguous() for w in (weight, bias))
    _cpu.norm(
        rows.data_ptr(), out.data_ptr(), rows.shape[0], dim, rows.stride(0), DTYPES[x.dtype], _address(weight),
        _address(bias), eps, offset, centred, round_first, torch.get_num_threads(), isa,
    )  # fmt: skip
    return out


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, rotary_dim: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `ops.rotary`; the results are views of one tensor."""
    both = torch.cat((q, k), dim=1)
    cos, sin = cos.contiguous(), sin.contiguous()
    tokens, heads, dim = both.shape
    _cpu.rotary(
        both.data_ptr(), tokens, heads, dim, heads * dim, DTYPES[q.dtype], cos.data_ptr(), sin.data_ptr(),
        DTYPES[cos.dtype], cos.shape[-1], interleaved, torch.get_num_threads(), isa,
    )  # fmt: skip
    return both[:, : q.shape[1]], both[:, q.shape[1] :]


def activation(x: Tensor, kind: str, isa: str = "") -> Tensor:
    """As `ops.activation`."""
    return _activation(x, None, kind, 0.0, 0.0, isa)


def gated_activation(
    gate: Tensor, up: Tensor, kind: str, *, alpha: float = 1.702, limit: float = 7.0, isa: str = ""
) -> Tensor:
    """As `ops.gated_activation`."""
    return _activation(gate, up, kind, alpha, limit, isa)


def _activation(gate: Tensor, up: Tensor | None, kind: str, alpha: float, limit: float, isa: str) -> Tensor:
    shape, width = gate.shape, gate.shape[-1]
    if gate.dim() != 2 or gate.stride(1) != 1 or (up is not None and up.stride() != gate.stride()):
        gate, up = (None if t is None else t.reshape(-1, width).contiguous() for t in (gate, up))
    assert gate is not None
    out = torch.empty(shape, dtype=gate.dtype)
    _cpu.activation(
        gate.data_ptr(), _address(up), out.data_ptr(), gate.shape[0], width, gate.stride(0), DTYPES[gate.dtype],
        ACTIVATIONS[kind], alpha, limit, torch.get_num_threads(), isa,
    )  # fmt: skip
    return out


def greedy(logits: Tensor, isa: str = "") -> Tensor:
    """As `ops.greedy`."""
    logits = logits.contiguous()
    ids = torch.empty(logits.shape[0], dtype=torch.int64)
    _cpu.greedy(logits.data_ptr(), *logits.shape, ids.data_ptr(), torch.get_num_threads(), isa)
    return ids


def likeliest(logits: Tensor, width: int, isa: str = "") -> tuple[Tensor, Tensor]:
    """As `ops.likeliest`; of equals those with lower ids, first."""
    logits, (rows, count) = logits.contiguous(), logits.shape
    assert 0 < width <= count, f"{width} of {count}"
    values, ids = torch.empty(rows, width), torch.empty(rows, width, dtype=torch.int64)
    _cpu.likeliest(
        logits.data_ptr(), rows, count, width, values.data_ptr(), ids.data_ptr(), torch.get_num_threads(), isa
    )
    return values, ids


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


WIDE = frozenset(DTYPES)
dispatch.register(
    "rms_norm", "cpu", rms_norm,
    Features(CPU, WIDE, frozenset({"no_weight", "fp32_weight", "offset"}), same_dtype=True),
)  # fmt: skip
dispatch.register("layer_norm", "cpu", layer_norm, Features(CPU, WIDE, frozenset({"no_weight", "no_bias"})))
dispatch.register("rotary", "cpu", rotary, Features(CPU, WIDE, frozenset({"interleaved", "partial"})))
dispatch.register("activation", "cpu", activation, Features(CPU, WIDE, frozenset(ACTIVATIONS) - {"swiglu_oai"}))
dispatch.register("gated_activation", "cpu", gated_activation, Features(CPU, WIDE, frozenset(ACTIVATIONS)))
dispatch.register("greedy", "cpu", greedy, Features(CPU, frozenset({torch.float32})))
dispatch.register("likeliest", "cpu", likeliest, Features(CPU, frozenset({torch.float32})))
