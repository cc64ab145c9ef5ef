"""Codes that products open where they lie: every instruction set against unpack-then-multiply, batch mates, threads."""

import pytest
import torch

from pagoda.kernels.ops.packed_linear import reference
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.quantization import parse_format

from .isas import ISAS, cpu

TEXTS = [
    "int3",
    "int3(group=32, rank=0)",
    "int2(group=128, rank=5)",
    "dgq(group=32)",
    "bitstack",
    "bitstack(blocks=2, rank=3)",
]
# Inputs that end inside a byte, a word, a group, a piece; outputs that end inside a panel.
SHAPES = [(1, 1), (33, 64), (20, 131), (70, 300)]
TOLERANCE = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (8e-3, 1e-3)}


def coded(text: str, rows: int, cols: int) -> CodedMatrix:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) * cols**-0.5
    found = parse_format(text)
    return CodedMatrix(found, found.quantize(weight), cols, torch.float32)


def tokens(count: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, cols, generator=torch.Generator().manual_seed(cols)).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_every_instruction_set(isa: str, text: str, dtype: torch.dtype) -> None:
    """Equal to the reference; and a token's bits are its own whoever shares the call."""
    rtol, atol = TOLERANCE[dtype]
    for shape in SHAPES:
        matrix, x = coded(text, *shape), tokens(30, shape[1], dtype)
        assert matrix.packed is not None
        bias = torch.arange(shape[0]).to(dtype)
        together = cpu.packed_linear(x, matrix.packed, bias, isa=isa)
        torch.testing.assert_close(together, reference(x, matrix.packed, bias), rtol=rtol, atol=atol)
        for count in (1, 2, 3, 4, 7, 13):
            assert torch.equal(cpu.packed_linear(x[:count], matrix.packed, bias, isa=isa), together[:count]), (
                shape,
                count,
            )


@pytest.mark.parametrize("isa", ISAS[-1:])
@pytest.mark.parametrize("text", TEXTS[::2])
def test_many_tokens_and_several_threads(isa: str, text: str) -> None:
    """More tokens than are summed at once, with inputs in several pieces."""
    matrix, x = coded(text, 300, 1100), tokens(301, 1100, torch.bfloat16)
    rtol, atol = TOLERANCE[torch.bfloat16]
    got = cpu.packed_linear(x, matrix.packed, isa=isa)
    torch.testing.assert_close(got, reference(x, matrix.packed), rtol=rtol, atol=atol)
    assert torch.equal(cpu.packed_linear(x[300:], matrix.packed, isa=isa), got[300:])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(cpu.packed_linear(x, matrix.packed, isa=isa), got)
    finally:
        torch.set_num_threads(threads)


def test_blocks_that_come_and_go_are_seen_where_they_are_looked_for() -> None:
    """The table is written in place: what took its address goes on with the blocks that are there."""
    matrix, x = coded("bitstack(blocks=3)", 40, 96), tokens(2, 96, torch.float32)
    packed = matrix.packed
    whole = matrix.linear(x)
    dropped = {name: matrix.codes.pop(name) for name in ("sign2", "left2", "right2")}
    matrix.changed()
    assert matrix.packed is packed
    torch.testing.assert_close(matrix.linear(x), x @ matrix.dense().T, rtol=1e-4, atol=1e-5)
    assert not torch.equal(matrix.linear(x), whole)
    matrix.codes.update(dropped)
    matrix.changed()
    assert torch.equal(matrix.linear(x), whole)


def test_codes_that_no_kernel_opens() -> None:
    matrix = coded("int3", 20, 64)
    assert (
        CodedMatrix(matrix.format, {n: t.T.contiguous().T for n, t in matrix.codes.items()}, 64, torch.float32).packed
        is None
    )
    assert CodedMatrix(matrix.format, matrix.codes, 64, torch.float16).packed is None
    with pytest.raises(ValueError, match="in panels"):
        cpu.grouped_linear(torch.zeros(1, 64), [1], [matrix.packed])
