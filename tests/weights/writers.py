"""Writers of other people's quantized checkpoints, from the published layouts alone: what the readers are held against.

Each takes a dense matrix and gives (stored tensors by ending, the matrix that they stand for in float32).
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

Stored = tuple[dict[str, Tensor], Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def grid(w: Tensor, group: int, symmetric: bool, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """q [rows, cols], zeros and float16 scales [rows, groups] of an unsigned grid."""
    top = 2**bits - 1
    g = w.reshape(w.shape[0], -1, group)
    if symmetric:
        scale = (g.abs().amax(-1) / (top / 2)).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
        scale = ((high - low) / top).half().float()
        zero = (-low / scale).round().clamp(1, top)
    q = ((g / scale[..., None]).round() + zero[..., None]).clamp(0, top)
    return q.reshape(w.shape).int(), zero.int(), scale


def dense_of(q: Tensor, zero: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    return (q - zero[:, index]).float() * scale[:, index]


def words(fields: Tensor, bits: int) -> Tensor:
    """Integers along the last dimension into int32, one after another from the lowest bits."""
    per = 32 // bits
    rows = torch.nn.functional.pad(fields, (0, -fields.shape[-1] % per)).reshape(fields.shape[0], -1, per).long()
    total = sum(rows[..., i] << (bits * i) for i in range(per))
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def gptq(
    w: Tensor, group: int = 32, *, symmetric: bool = True, bits: int = 4, v2: bool = False, mixed: bool = False
) -> Stored:
    """``mixed``: inputs belong to groups in an order of their own (desc_act)."""
    cols = w.shape[1]
    index = torch.arange(cols) // group
    order = torch.randperm(cols, generator=torch.Generator().manual_seed(1)) if mixed else torch.arange(cols)
    q, zero, scale = grid(w[:, order], group, symmetric, bits)
    back = order.argsort()
    q, index = q[:, back], index[back]
    return {
        "qweight": words(q, bits).T.contiguous(),
        "qzeros": words((zero - (0 if v2 else 1)).T, bits),
        "scales": scale.T.half().contiguous(),
        "g_idx": index.int(),
    }, dense_of(q, zero, scale, index)


def awq(w: Tensor, group: int = 32) -> Stored:
    q, zero, scale = grid(w, group, symmetric=False)

    def interleaved(fields: Tensor) -> Tensor:
        """[n, out]: within every eight outputs, field i holds output AWQ_ORDER[i]."""
        eights = fields.reshape(fields.shape[0], -1, 8)[..., list(AWQ_ORDER)]
        return words(eights.reshape(fields.shape), 4)

    stored = {"qweight": interleaved(q.T), "qzeros": interleaved(zero.T), "scales": scale.T.half().contiguous()}
    return stored, dense_of(q, zero, scale, torch.arange(w.shape[1]) // group)


def compressed(w: Tensor, layout: str, group: int = 32, symmetric: bool = True) -> Stored:
    rows, cols = w.shape
    if layout == "pack-quantized":
        q, zero, scale = grid(w, group, symmetric)
        stored = {
            "weight_packed": words(q, 4),
            "weight_scale": scale.half(),
            "weight_shape": torch.tensor([rows, cols]),
        }
        if not symmetric:
            stored["weight_zero_point"] = words(zero.T, 4).T.contiguous()
        return stored, dense_of(q, zero, scale, torch.arange(cols) // group)
    if layout == "int-quantized":
        scale = (w.abs().amax(1, keepdim=True) / 127).bfloat16()
        int8 = (w / scale.float()).round().clamp(-127, 127).to(torch.int8)
        return {"weight": int8, "weight_scale": scale}, int8.float() * scale.float()
    scale = w.abs().amax(1, keepdim=True) / 448
    fp8 = (w / scale).to(torch.float8_e4m3fn)
    return {"weight": fp8, "weight_scale": scale}, fp8.float() * scale


def bnb8(w: Tensor) -> Stored:
    scb = w.abs().amax(1)
    int8 = (w * (127 / scb)[:, None]).round().to(torch.int8)
    return {"weight": int8, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}, int8 * scb[:, None] / 127


def bnb4(w: Tensor, levels: tuple[float, ...], kind: str = "nf4", nested: bool = False) -> Stored:
    rows, cols = w.shape
    blocks = w.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    stored: dict[str, Tensor] = {}
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [rows, cols]}
    table = torch.tensor(levels)
    if nested:
        offset = float(absmax.mean())
        code = torch.linspace(-1, 1, 256)
        outer = torch.stack([(part - offset).abs().amax() for part in absmax.split(256)])
        ratio = (absmax - offset) / outer.repeat_interleave(256)[: len(absmax)]
        index = (ratio[:, None] - code).abs().argmin(1).to(torch.uint8)
        absmax = code[index.long()] * outer.repeat_interleave(256)[: len(index)] + offset
        stored |= {"weight.nested_absmax": outer, "weight.nested_quant_map": code, "weight.absmax": index}
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
    else:
        stored["weight.absmax"] = absmax
    q = ((blocks / absmax[:, None])[..., None] - table).abs().argmin(-1).flatten()
    stored["weight"] = ((q[0::2] << 4) | q[1::2]).to(torch.uint8)[:, None]
    stored["weight.quant_map"] = table
    text = json.dumps(state).encode()
    stored[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    return stored, (table[q].reshape(-1, 64) * absmax[:, None]).reshape(rows, cols)
