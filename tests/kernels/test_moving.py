"""Copies by one thread: of any dtype, from and to parts of tensors."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.moving import copy_of, put


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16, torch.uint8, torch.int64])
def test_parts_are_copied_bit_for_bit(dtype: torch.dtype) -> None:
    whole = (torch.randn(7, 6, 4) * 9).to(dtype)
    part = whole[2:5, 1:3]
    made = copy_of(part)
    assert made.is_contiguous()
    assert torch.equal(made, part)
    to = torch.zeros(7, 6, 4, dtype=dtype)
    put(to[2:5, 1:3], part)
    assert torch.equal(to[2:5, 1:3], part)
    assert not to[:2].any()
    made.zero_()
    assert whole[2:5, 1:3].any(), "a copy of its own"


def test_another_dtype_is_cast() -> None:
    to = torch.zeros(3, dtype=torch.bfloat16)
    put(to, torch.tensor([1.0, 2.5, -3.0]))
    assert to.tolist() == [1.0, 2.5, -3.0]
