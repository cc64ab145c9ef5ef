"""Small integers in 32-bit words, as GPTQ, AWQ and compressed-tensors store them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IN_ORDER = tuple(range(8))


def unpack_words(words: Tensor, bits: int, order: tuple[int, ...] = ()) -> Tensor:
    """int32 ``[rows, n]`` -> uint8 ``[rows, n * 32 / bits]``, the lowest bits first; ``order``: place of each field."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    if order:
        shifts = shifts[torch.tensor(order)]
    fields = (words[..., None] >> shifts) & (2**bits - 1)
    return fields.to(torch.uint8).flatten(-2)
