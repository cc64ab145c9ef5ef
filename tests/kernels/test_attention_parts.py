"""Parts of 256 slots are added up eight at a time: by the item that computes them, or where all parts are merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.ops.attention import TOLERANCE, reference

from .isas import ISAS, cpu
from .one_sequence import one_sequence
from .test_attention_tiles import chunks
from .threads import threads


@pytest.mark.parametrize("options", [{}, {"window": 3000}, {"sinks": Make().normal(14)}], ids=str)
@pytest.mark.parametrize("codec", ["", "int8", "int4", "fp8"])
@pytest.mark.parametrize("isa", ISAS)
def test_long_contexts_have_the_same_bits_however_they_are_cut(isa: str, codec: str, options: dict[str, Any]) -> None:
    """Groups of seven query heads, beside others and alone, on one to five threads: items begin and end elsewhere."""
    arguments = chunks([1, 2, 1], [5000, 2313, [4096, 1800]], heads=(14, 2), codec=codec, sharp=4.0) | options
    together = cpu.paged_attention(**arguments, isa=isa)
    rtol, atol = TOLERANCE[torch.bfloat16]
    if codec in ("", "fp8"):  # beside the others queries are rounded
        torch.testing.assert_close(together, reference(**arguments), rtol=rtol, atol=atol)
    for number in (1, 2, 3, 5):
        with threads(number):
            assert torch.equal(cpu.paged_attention(**arguments, isa=isa), together), number
            for seq in range(3):
                alone, rows = one_sequence(arguments, seq)
                assert torch.equal(cpu.paged_attention(**alone, isa=isa), together[rows]), (number, seq)


@pytest.mark.parametrize("codec", ["", "int8", "int4"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_shared_beginning_of_several_sums_has_the_bits_of_each_alone(isa: str, codec: str) -> None:
    arguments = chunks([1] * 5, [4600, 4371, 4352, 5000, 4400], heads=(7, 1), codec=codec, sharp=4.0)
    rows, row_of = arguments["table"].rows, arguments["table"].row_of[:, 0].tolist()
    for row in row_of[1:]:
        rows[row, : 4352 // 16] = rows[row_of[0], : 4352 // 16]
    together = cpu.paged_attention(**arguments, isa=isa)
    for number in (1, 2, 3):
        with threads(number):
            assert torch.equal(cpu.paged_attention(**arguments, isa=isa), together), number
            assert torch.equal(cpu.paged_attention(**arguments, isa=isa, share_prefixes=False), together), number
