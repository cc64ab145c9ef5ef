"""Stored rows into panels by the C++ extension: one pass over the bytes, `packed.lay_out` is the plain twin."""

from __future__ import annotations

import torch
from torch import Tensor

from ._optional import extension
from .packed_bytes import PANEL, bytes_of_panel

STORED = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8, "int4": torch.uint8, "int5": torch.uint8,
    "ternary": torch.uint8, "fp16": torch.float16, "fp8": torch.float8_e4m3fn, "nf4": torch.uint8,
}  # fmt: skip
"""Format of a panel -> the type of the rows that it is laid out of: the weights, signed integers, two codes a byte, six
in four bytes, four a byte.
"""
_NUMBERS = {name: number for number, name in enumerate(STORED)}  # csrc/lay_out.hpp numbers them alike


def can_lay_out(format: str, rows: Tensor) -> bool:
    """Whether ``lay_out_rows`` takes these rows as they are."""
    return (
        STORED.get(format) == rows.dtype
        and rows.is_contiguous()
        and rows.device.type == "cpu"
        and extension() is not None
    )


def lay_out_rows(format: str, rows: Tensor, panels: Tensor, num_threads: int = 1) -> bool:
    """rows ``[n, …]`` into ``panels`` uint8 ``[ceil(n / 16), blocks, 64]``, contiguous, of ``n`` rows from a panel's
    first. False, with the panels written all the same, where a number is infinite or none.

    The kernels' own threads, without the interpreter's lock: others compute meanwhile.
    """
    row_bytes = rows.nbytes // max(1, rows.shape[0])
    assert panels.nbytes == -(-rows.shape[0] // PANEL) * -(-row_bytes // 4) * PANEL * 4, "panels of another size"
    assert panels.is_contiguous()
    finite: bool = extension().lay_out(
        rows.data_ptr(), rows.shape[0], row_bytes, panels.data_ptr(), _NUMBERS[format], num_threads
    )
    return finite


def lay_out_bf12(
    rows: Tensor, panels: Tensor, num_threads: int = 1, isa: str = ""
) -> tuple[bool, Tensor, Tensor, Tensor]:
    """The same for bf12: rows bfloat16 ``[n, cols]`` contiguous into ``panels`` uint8 ``[ceil(n / 16), chunks, 192]``.

    Returns whether all are finite, and of each panel its window (int32) and how many exceptions it has (int64), and
    those of all panels, one after the other (int32): what `bf12.joined` takes. `bf12.encode` is the plain twin.
    """
    count = -(-rows.shape[0] // PANEL)
    assert panels.nbytes == bytes_of_panel("bf12", rows.shape[1]) * count, "panels of another size"
    assert rows.is_contiguous()
    assert panels.is_contiguous()
    windows, counts = torch.empty(count, dtype=torch.int32), torch.empty(count, dtype=torch.int64)
    finite, found = extension().encode_rows(
        rows.data_ptr(), rows.shape[0], rows.shape[1] * 2, panels.data_ptr(), windows.data_ptr(), counts.data_ptr(),
        num_threads, isa,
    )  # fmt: skip
    exceptions = torch.frombuffer(bytearray(found), dtype=torch.int32) if found else windows.new_empty(0)
    return finite, windows, counts, exceptions


def panel_bytes(format: str, rows: int, cols: int) -> int:
    """Bytes of the panels of a matrix, without its scales."""
    return -(-rows // PANEL) * bytes_of_panel(format, cols)
