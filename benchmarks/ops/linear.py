"""Products with packed weights beside torch's, over the number of tokens: where does which win?

Weights are taken in turn from some 128 MiB of copies, since a decode step finds none of its weights in a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pagoda.kernels.memory import empty_bytes
from pagoda.kernels.ops import packed_linear
from pagoda.kernels.packed import PackedWeight
from pagoda.kernels.quantize import pack

from .timing import Times, in_turn

COPIES_BYTES = 128 << 20
FORMATS = {
    "fp32": "fp32", "bf16": "bf16", "int8": "int8", "w8a8": "int8", "int5": "int5", "int4": "int4", "w4a8": "int4",
}  # fmt: skip
ROUNDS = 15


def rows(
    shape: tuple[int, int], format: str, tokens: list[int], clock: str = "wall"
) -> Iterator[tuple[int, dict[str, Times], int]]:
    """(tokens, times of "pagoda" and "torch", bytes of the packed weight) for each number of tokens.

    torch multiplies bfloat16 by bfloat16 (float32 for fp32), whatever the format: what one would use without ours.
    """
    outputs, inputs = shape
    dtype = torch.float32 if format == "fp32" else torch.bfloat16
    weight = torch.randn(outputs, inputs) * inputs**-0.5
    packed = pack(weight, FORMATS[format], group={"int4": 64, "int5": 96}.get(FORMATS[format], 0))
    copies = [_copy(packed) for _ in range(max(2, COPIES_BYTES // packed.nbytes))]
    plain = [weight.to(dtype, copy=True) for _ in range(max(2, COPIES_BYTES // (weight.numel() * dtype.itemsize)))]
    for count in tokens:
        x = torch.randn(count, inputs).to(dtype)
        dynamic = format in ("w8a8", "w4a8")
        ways = {"pagoda": _ours(x, copies, dynamic), "torch": _torch(x, plain)}
        yield count, in_turn(ways, ROUNDS, 2, clock), packed.nbytes


def _copy(packed: PackedWeight) -> PackedWeight:
    data = empty_bytes(tuple(packed.data.shape), torch.device("cpu"))
    return replace(packed, data=data.copy_(packed.data))


def _ours(x: Tensor, copies: list[PackedWeight], dynamic: bool) -> Callable[[int], object]:
    return lambda number: packed_linear(x, copies[number % len(copies)], dynamic=dynamic)


def _torch(x: Tensor, copies: list[Tensor]) -> Callable[[int], object]:
    return lambda number: torch.nn.functional.linear(x, copies[number % len(copies)])
