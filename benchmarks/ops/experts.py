"""The experts of a mixture in one call, beside torch's linear expert by expert on bfloat16 weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pagoda.kernels.ops import grouped_linear
from pagoda.weights.filling import pack_matrix
from pagoda.weights.packed import PanelMatrix
from pagoda.weights.quantization import parse_format

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

NUM_EXPERTS, TOP, TOKENS, ROUNDS = 32, 4, (1, 8, 64, 512), 9


def rows(shape: tuple[int, int], formats: list[str], clock: str = "wall") -> Iterator[Measured]:
    """``NUM_EXPERTS`` matrices ``[outputs, inputs]``; every token goes through ``TOP`` of them."""
    outputs, inputs = shape
    dense = [torch.randn(outputs, inputs).mul_(inputs**-0.5).bfloat16() for _ in range(NUM_EXPERTS)]
    for format in formats:
        packed = [pack_matrix(parse_format(format), one.float(), torch.bfloat16) for one in dense]
        for tokens in TOKENS:
            chosen = torch.stack([torch.randperm(NUM_EXPERTS)[:TOP] for _ in range(tokens)])
            counts = torch.bincount(chosen.flatten(), minlength=NUM_EXPERTS).tolist()
            x = torch.randn(tokens * TOP, inputs).bfloat16()
            first = packed[0]
            assert isinstance(first, PanelMatrix), f"{format} has no kernel for groups"
            matrices = [one.packed for one in packed]
            ways = {
                "pagoda": lambda number, x=x, counts=counts, m=matrices, dynamic=first.dynamic: grouped_linear(
                    x, counts, m, dynamic=dynamic
                ),
                "torch": lambda number, x=x, counts=counts: torch.cat(
                    [part @ w.t() for part, w in zip(x.split(counts), dense, strict=True) if len(part)]
                ),
                REFERENCE: lambda number, x=x, counts=counts, m=matrices, dynamic=first.dynamic: plain(
                    "grouped_linear"
                )(x, counts, m, dynamic=dynamic),
            }
            read = sum(count > 0 for count in counts) * first.nbytes
            moved, ops = read + x.nbytes + x.nbytes // inputs * outputs, 2 * len(x) * outputs * inputs
            rate = "int8" if first.dynamic else "bf16"
            yield Measured({"format": format, "tokens": tokens}, in_turn(ways, ROUNDS, clock), moved, ops, rate)
