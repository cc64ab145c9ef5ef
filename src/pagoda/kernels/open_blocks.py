"""ggml's blocks by the C++ extension, on all cores; `weights.gguf_blocks` draws them and is the plain twin."""

from __future__ import annotations

import torch
from torch import Tensor

from ._optional import extension

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")  # csrc/gguf_blocks.hpp numbers them alike
DTYPES = (torch.float32, torch.bfloat16)
Q4_0_BYTES = 18


def can_open(raw: Tensor) -> bool:
    """Whether the extension takes these bytes as they are."""
    return raw.dtype == torch.uint8 and raw.device.type == "cpu" and raw.is_contiguous() and extension() is not None


def open_rows(raw: Tensor, kind: str, block_bytes: int, cols: int, dtype: torch.dtype) -> Tensor:
    """uint8 ``[rows, bytes]``, blocks of ``block_bytes`` -> ``[rows, cols]`` in float32 or, rounded half to even,
    bfloat16.
    """
    assert raw.numel() % block_bytes == 0
    out = torch.empty(raw.shape[0], cols, dtype=dtype)
    extension().open_blocks(
        raw.data_ptr(), raw.numel() // block_bytes, KINDS.index(kind), out.data_ptr(), DTYPES.index(dtype) == 1,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def split_q4_0(raw: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 ``[rows, bytes]`` -> codes uint8 ``[rows, cols / 2]``, two a byte; scales float32 ``[rows, cols / 32]``."""
    rows, blocks = raw.shape[0], raw.shape[1] // Q4_0_BYTES
    assert raw.shape[1] == blocks * Q4_0_BYTES
    codes, scales = torch.empty(rows, blocks * 16, dtype=torch.uint8), torch.empty(rows, blocks)
    extension().split_q4_0(raw.data_ptr(), rows * blocks, codes.data_ptr(), scales.data_ptr(), torch.get_num_threads())
    return codes, scales
