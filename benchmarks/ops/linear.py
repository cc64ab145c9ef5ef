"""Products with packed weights beside torch's, over the number of tokens: where does which win?

Weights are taken in turn from some 128 MiB of copies, since a decode step finds none of its weights in a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pagoda.kernels.memory import empty_bytes
from pagoda.weights.filling import pack_matrix
from pagoda.weights.packed import CodedMatrix, PackedMatrix, PanelMatrix
from pagoda.weights.quantization import parse_format

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

COPIES_BYTES = 128 << 20
ROUNDS = 15
PLAIN_TOKENS = 256  # of the reference, which takes seconds for more


def rows(shape: tuple[int, int], format: str, tokens: list[int], clock: str = "wall") -> Iterator[Measured]:
    """Times of several ways by number of tokens; bytes are those of the packed weight.

    ``format`` is any weight format as text. "torch" multiplies bfloat16 by bfloat16 (float32 for fp32), whatever the
    format, and packs the weight in every call; "torch packed" are kernels of its own for weights of as many bits, where
    it has them; "oneDNN packed" is that library with weights that it packed before: the best that anyone gets of it.
    """
    outputs, inputs = shape
    dtype = torch.float32 if format == "fp32" else torch.bfloat16
    weight = torch.randn(outputs, inputs) * inputs**-0.5
    packed = pack_matrix(parse_format(format), weight, dtype)
    copies = [_copy(packed) for _ in range(max(2, COPIES_BYTES // packed.nbytes))]
    dense = _rotated(weight.to(dtype))
    own = OWN[format](weight) if format in OWN else {}
    for count in tokens:
        x = torch.randn(count, inputs).to(dtype)
        ways = {"pagoda": _ours(x, copies), "torch": _torch(x, dense)}
        ways |= {name: way(x) for name, way in own.items()}
        if count <= PLAIN_TOKENS and packed.packed is not None:
            ways[REFERENCE] = lambda number, x=x: plain("packed_linear")(x, packed.packed, dynamic=packed.dynamic)
        rate = "fp32" if dtype == torch.float32 else "int8" if packed.dynamic else "bf16"
        times = in_turn(ways, ROUNDS, clock)
        yield Measured({"tokens": count}, times, packed.nbytes, 2 * count * outputs * inputs, rate)


def _copy(matrix: PackedMatrix) -> PackedMatrix:
    if isinstance(matrix, CodedMatrix):
        codes = {name: codes.clone() for name, codes in matrix.codes.items()}
        return CodedMatrix(matrix.format, codes, matrix.cols, matrix.dtype)
    assert isinstance(matrix, PanelMatrix)
    data = empty_bytes(tuple(matrix.packed.data.shape), torch.device("cpu"))
    return PanelMatrix(matrix.format, replace(matrix.packed, data=data.copy_(matrix.packed.data)), matrix.dtype)


def _ours(x: Tensor, copies: list[PackedMatrix]) -> Callable[[int], object]:
    return lambda number: copies[number % len(copies)].linear(x)


def _torch(x: Tensor, copies: list[Tensor]) -> Callable[[int], object]:
    return lambda number: torch.nn.functional.linear(x, copies[number % len(copies)])


Way = Callable[[Tensor], Callable[[int], object]]  # tokens -> what multiplies them, by the round's number


def _own_bf16(weight: Tensor) -> dict[str, Way]:
    weight = weight.bfloat16()

    def prepared(x: Tensor) -> Callable[[int], object]:
        copies = [torch.ops.mkldnn._reorder_linear_weight(weight, len(x)) for _ in range(_num(weight))]
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda number: multiply(x, copies[number % len(copies)], None, "none", [], "")

    return {"oneDNN packed": prepared}


def _own_int8(weight: Tensor) -> dict[str, Way]:
    """int8 weights by bfloat16 tokens."""
    codes, scales = _int8(weight)
    copies, scales = _rotated(codes), scales.bfloat16()
    return {"torch packed": lambda x: lambda number: torch._weight_int8pack_mm(x, copies[number % len(copies)], scales)}


def _own_w8a8(weight: Tensor) -> dict[str, Way]:
    """int8 weights by tokens that are quantized first: torch's plain ops, a product of bytes, then scales.

    For "oneDNN packed" tokens were quantized before, and all have one scale: its product alone, which none of its users
    can be faster than.
    """
    codes, scales = _int8(weight)
    copies = _rotated(codes)

    def multiply(x: Tensor, number: int) -> Tensor:
        tokens, sizes = _int8(x.float())
        return (torch._int_mm(tokens, copies[number % len(copies)].t()) * (sizes[:, None] * scales)).bfloat16()

    def prepared(x: Tensor) -> Callable[[int], object]:
        packed = [torch.ops.onednn.qlinear_prepack(codes, list(x.shape)) for _ in range(_num(codes))]
        size = x.float().abs().amax() / 127
        tokens, none = (x / size).round().to(torch.int8), torch.zeros(len(codes), dtype=torch.int32)
        multiply = torch.ops.onednn.qlinear_pointwise.tensor
        rest = scales, none, None, 1.0, 0, torch.bfloat16, "none", [], ""
        return lambda number: multiply(tokens, size, none[:1], packed[number % len(packed)], *rest)

    return {"torch packed": lambda x: lambda number: multiply(x, number), "oneDNN packed": prepared}


def _own_int4(weight: Tensor, group: int = 128) -> dict[str, Way]:
    """int4 weights by bfloat16 tokens."""
    groups = weight.view(len(weight), -1, group)
    scales = groups.abs().amax(-1).clamp(min=1e-9) / 7
    codes = (groups / scales[..., None]).round().clamp(-8, 7).view_as(weight).to(torch.int32) + 8
    numbers = torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).bfloat16().contiguous()
    copies = _rotated(torch._convert_weight_to_int4pack_for_cpu(codes, 1))
    multiply = torch._weight_int4pack_mm_for_cpu
    return {"torch packed": lambda x: lambda number: multiply(x, copies[number % len(copies)], group, numbers)}


OWN = {"bf16": _own_bf16, "int8": _own_int8, "w8a8": _own_w8a8, "int4": _own_int4}


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and a scale for each row."""
    scales = x.abs().amax(-1).clamp(min=1e-9) / 127
    return (x / scales[:, None]).round().to(torch.int8), scales


def _num(codes: Tensor) -> int:
    """Copies that are more than a cache holds."""
    return max(2, COPIES_BYTES // codes.nbytes)


def _rotated(codes: Tensor) -> list[Tensor]:
    return [codes.clone() for _ in range(_num(codes))]
