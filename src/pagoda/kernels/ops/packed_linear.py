"""Matrix product with a packed weight: plain, or quantized to eight, five, four or two bits."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..case import Make, cross
from ..dispatch import Needs, Op
from ..packed import PackedWeight, codes_of, unpack
from ..quantize import pack, quantize_tokens

INTEGER = ("int8", "int4", "ternary")


def packed_linear(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, dynamic: bool = False, wide: bool = False
) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., inputs]`` float32 or bfloat16, bias ``[outputs]`` -> ``[..., outputs]``.

    Exact products of x with the weight that ``packed`` stands for, summed in float32 and rounded once to x's dtype.
    With ``dynamic``, x is first rounded to int8 (`quantize_tokens`: one scale a token for int8 and ternary, one a token
    and group for int4) and multiplied in integers. ``wide``: the rounded result as float32 (logits are
    sampled in float32, and need no second pass then). A token's bits do not depend on the other tokens of the call.
    Raises ConfigError for ``dynamic`` with fp32 or bf16 weights.
    """
    key = (x.dtype, x.device.type, packed.format, dynamic, bias is None)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs_of(*key))
    out: Tensor = run(x, packed, bias, dynamic=dynamic, wide=wide)
    return out


def needs_of(dtype: torch.dtype, device: str, format: str, dynamic: bool, no_bias: bool) -> Needs:
    """What a product of these asks for; `grouped_linear` asks for the same."""
    if dynamic and format not in INTEGER:
        raise ConfigError(f"dynamic quantization needs weights of {', '.join(INTEGER)}; these are {format}")
    options = {format: True, "dynamic": dynamic, "bias": not no_bias}
    return Needs(device, (dtype,), options=frozenset(name for name, on in options.items() if on))


def reference(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, dynamic: bool = False, wide: bool = False
) -> Tensor:
    tokens = x.reshape(-1, packed.inputs)
    if packed.format == "dgq":  # its weights are made for tokens of 8 bits
        q, scale = quantize_tokens(tokens)
        tokens = q * scale
    out = _integer_product(tokens, packed) if dynamic else tokens.float() @ unpack(packed).float().T
    out = out if bias is None else out + bias.float()
    rounded = out.to(x.dtype).view(*x.shape[:-1], packed.outputs)
    return rounded.float() if wide else rounded


def _integer_product(tokens: Tensor, packed: PackedWeight) -> Tensor:
    """Sums of integer products, exact in float64, then scaled and added up in float32, group after group."""
    codes, scales, zeros = codes_of(packed)
    assert scales is not None
    codes, scales = codes[0], scales[0].float().reshape(packed.outputs, -1)
    q, token_scales = quantize_tokens(tokens, packed.group)
    out = tokens.new_zeros(tokens.shape[0], packed.outputs, dtype=torch.float32)
    for g in range(packed.num_groups):
        part = slice(g * packed.group, (g + 1) * packed.group) if packed.group else slice(None)
        values = codes[:, part].double()
        if zeros is not None:
            values = values - zeros[0, :, g, None]
        sums = (q[:, part].double() @ values.T).float()
        out += sums * (token_scales[:, g, None] * scales[:, g])
    return out


_OP = Op("packed_linear", reference)
TOLERANCE = {torch.float32: (1e-4, 2e-5), torch.bfloat16: (1.6e-2, 2e-2)}


def _case(
    make: Make, tokens: int, inputs: int, outputs: int, format: str, bias: bool = False, dynamic: bool = False,
    group: int = 0, symmetric: bool = True, scale_dtype: torch.dtype = torch.bfloat16, wide: bool = False,
) -> dict[str, object]:  # fmt: skip
    weight = make.normal(outputs, inputs, scale=inputs**-0.5, dtype=torch.float32)
    packed = pack(weight, format, group=group, symmetric=symmetric, scale_dtype=scale_dtype)
    bias_row = make.normal(outputs) if bias else None
    return {"x": make.normal(tokens, inputs), "packed": packed, "bias": bias_row, "dynamic": dynamic, "wide": wide}


_SHAPES = (
    {"tokens": 1, "inputs": 64, "outputs": 33}, {"tokens": 7, "inputs": 101, "outputs": 80, "bias": True},
    {"tokens": 33, "inputs": 288, "outputs": 16}, {"tokens": 0, "inputs": 64, "outputs": 32},
)  # fmt: skip
_FORMATS = (
    {"format": "fp32"}, {"format": "bf16"},
    {"format": "int8"}, {"format": "int8", "dynamic": True},
    {"format": "ternary"}, {"format": "ternary", "dynamic": True},
    {"format": "int4", "group": 32}, {"format": "int4", "group": 128, "scale_dtype": torch.float32},
    {"format": "int4", "group": 64, "symmetric": False},
    {"format": "int4", "group": 32, "dynamic": True},
    {"format": "int4", "group": 64, "dynamic": True, "symmetric": False},
    {"format": "int5", "group": 96, "symmetric": False}, {"format": "int5", "group": 48},
    {"format": "fp16"}, {"format": "fp8"}, {"format": "nf4", "group": 64},
    {"format": "bf12"},
)  # fmt: skip
_WIDE = {"tokens": 2, "inputs": 64, "outputs": 40, "bias": True, "wide": True}
CASES = cross("packed_linear", _case, *({**shape, **form} for form in _FORMATS for shape in (*_SHAPES, _WIDE)))
