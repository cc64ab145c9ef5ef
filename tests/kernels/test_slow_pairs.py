"""Processors that multiply pairs of bfloat16 slowly: what they multiply as floats, and that a token has one way."""

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.weights.filling import pack_matrix
from pagoda.weights.quantization import parse_format

from .isas import ISAS, cpu
from .test_wide_chunks import chunk, of_kind, piece

SLOW, PAIRS, FLOATS = "avx512bf16slow", "avx512bf16", "avx512vnni"
pytestmark = pytest.mark.skipif(SLOW not in ISAS, reason="this machine multiplies pairs fast, or not at all")

COUNTS = [1, 2, 5, 11, 12, 13, 32, 65, 300]


def products(name, isa, counts, wide=False):
    """Of the first tokens of the same ones; 2400 inputs come in pieces, some rows are no whole panel."""
    make = Make(torch.bfloat16)
    packed = pack_matrix(parse_format(name), make.normal(84, 2400, dtype=torch.float32), torch.bfloat16).packed
    x, bias = make.normal(max(counts), 2400), make.normal(84)
    return [cpu.packed_linear(x[:count], packed, bias, wide=wide, isa=isa) for count in counts]


@pytest.mark.parametrize("name", ["bf16", "bf12", "int8"])
def test_weights_are_multiplied_as_floats(name):
    for slow, floats in zip(products(name, SLOW, COUNTS), products(name, FLOATS, COUNTS), strict=True):
        assert torch.equal(slow, floats)
    [slow], [pairs] = (products(name, isa, [300], wide=True) for isa in (SLOW, PAIRS))
    assert not torch.equal(slow, pairs), "nothing could be told apart"


@pytest.mark.parametrize("name", ["bf16", "bf12", "int8"])
def test_a_token_has_the_same_bits_among_any_number(name):
    *fewer, all_of_them = products(name, SLOW, COUNTS, wide=True)
    for some in fewer:
        assert torch.equal(some, all_of_them[: len(some)])


@pytest.mark.parametrize("name", ["int4(group=64)", "fp8", "ternary"])
def test_other_codes_are_opened_into_pairs(name):
    for slow, pairs in zip(products(name, SLOW, [3, 70]), products(name, PAIRS, [3, 70]), strict=True):
        assert torch.equal(slow, pairs)


@pytest.mark.parametrize("window", [0, 70])
def test_prompts_attend_by_floats_and_answers_by_pairs(window):
    arguments = chunk(torch.bfloat16, window=window)
    for wide, like, other in ((1, FLOATS, PAIRS), (0, PAIRS, FLOATS)):
        found, same, not_same = (
            cpu.paged_attention(**of_kind(arguments, wide), isa=isa) for isa in (SLOW, like, other)
        )
        assert torch.equal(found, same)
        assert not torch.equal(found, not_same)


def test_each_whatever_the_other_is():
    """A prompt and an answer in one step, on the same pages before."""
    arguments = chunk(torch.bfloat16, mate=40)
    for wide in (0, 1):
        both = cpu.paged_attention(**of_kind(arguments, wide, 1 - wide), isa=SLOW)
        alone = cpu.paged_attention(**piece(of_kind(arguments, wide, 1 - wide), 0, 90), isa=SLOW)
        assert torch.equal(both[:90], alone)


@pytest.mark.parametrize("sum_last", [0, 20])
def test_probability_sums_are_of_the_same_products(sum_last):
    """Those of a prompt are what they are where everything is float32 arithmetic."""
    sums = {isa: torch.zeros(1, 2, 520) for isa in (SLOW, FLOATS)}
    for isa, found in sums.items():
        cpu.paged_attention(**of_kind(chunk(torch.bfloat16), 1), prob_sums=found, sum_last=sum_last, isa=isa)
    assert torch.equal(sums[SLOW], sums[FLOATS])
