"""Chunks that are computed as prompts are, or as answers, whatever their length: a token's bits depend on no more."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import kv_write
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import TOLERANCE, reference
from pagoda.kv.codecs.base import CODECS

from .isas import cpu

NUM = 90  # queries of a chunk, of a sequence that has more before


def chunk(dtype, codec=None, *, heads=(14, 2), held=430, window=0, mate=None):
    """The last ``NUM`` tokens of a sequence, beside a ``mate`` that has as many and the same pages before."""
    make = Make(dtype)
    layout = PageLayout(16, 64, 64, dtype if codec is None else torch.uint8, CODECS.get(codec) if codec else None)
    nums = [NUM] if mate is None else [NUM, mate]
    table, num_pages = layer_table(
        make, nums, [held + num for num in nums], page_size=16, num_kv_heads=heads[1], per_head=mate is None,
        shared_blocks=16 if mate else 0,
    )  # fmt: skip
    pages = torch.zeros(num_pages, layout.page_elems, dtype=layout.dtype)
    ids = torch.arange(num_pages, dtype=torch.int32).repeat_interleave(16)[:, None].contiguous()
    slots = torch.arange(16, dtype=torch.int32).repeat(num_pages)[:, None].contiguous()
    kv_write(make.normal(len(ids), 1, 64), make.normal(len(ids), 1, 64), pages, layout, ids, slots)
    return {
        "q": make.normal(sum(nums), heads[0], 64, scale=2.0), "pages": pages, "layout": layout, "table": table,
        "scale": 0.11, "window": window,
    }  # fmt: skip


def of_kind(arguments, *wide):
    return arguments | {"table": dataclasses.replace(arguments["table"], wide=torch.tensor(wide, dtype=torch.uint8))}


def piece(arguments, first, last):
    """Queries ``first`` … ``last - 1`` of the first sequence, as a chunk of their own."""
    table = arguments["table"]
    alone = dataclasses.replace(
        table, row_of=table.row_of[:1], offset=table.offset[:1], kv_lens=table.kv_lens[:1] - NUM + last,
        q_starts=torch.tensor([0, last - first], dtype=torch.int32), q_starts_cpu=[0, last - first],
        wide=None if table.wide is None else table.wide[:1],
    )  # fmt: skip
    return arguments | {"q": arguments["q"][first:last], "table": alone}


KINDS = [
    (torch.float32, None), (torch.float32, "int4"), (torch.bfloat16, None), (torch.bfloat16, "int8"),
    (torch.bfloat16, "int4"), (torch.bfloat16, "fp8"),
]  # fmt: skip
every_kind = pytest.mark.parametrize(("dtype", "codec"), KINDS)
every_shape = pytest.mark.parametrize(("heads", "window"), [((14, 2), 0), ((4, 2), 0), ((4, 1), 70)])


@every_kind
@every_shape
@pytest.mark.parametrize("mate", [None, 3, 40])
def test_many_tokens_of_an_answer_have_the_bits_of_each(dtype, codec, heads, window, mate):
    arguments = chunk(dtype, codec, heads=heads, window=window, mate=mate)
    whole = cpu.paged_attention(**of_kind(arguments, *[0] * (1 if mate is None else 2)))[:NUM]
    each = [cpu.paged_attention(**piece(arguments, at, at + 1)) for at in range(NUM)]
    assert torch.equal(whole, torch.cat(each))


@pytest.mark.parametrize(("dtype", "codec"), KINDS[:4])
def test_and_behind_a_window_of_more_slots_than_are_added_up_at_first(dtype, codec):
    """Two tokens may see the same parts but for the first, and so add up others together."""
    arguments = chunk(dtype, codec, heads=(4, 1), held=4200, window=2200)
    whole = cpu.paged_attention(**of_kind(arguments, 0))
    each = [cpu.paged_attention(**piece(arguments, at, at + 1)) for at in range(NUM)]
    assert torch.equal(whole, torch.cat(each))


@every_kind
@every_shape
def test_a_prompt_has_the_same_bits_in_any_pieces(dtype, codec, heads, window):
    arguments = of_kind(chunk(dtype, codec, heads=heads, window=window), 1)
    whole = cpu.paged_attention(**arguments)
    cuts = [0, 1, 6, 7, 30, 78, NUM]
    parts = [cpu.paged_attention(**piece(arguments, first, last)) for first, last in pairwise(cuts)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize("sum_last", [0, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_slots_receive_is_added_up_once(dtype, sum_last, wide):
    arguments = chunk(dtype)
    found, wanted = (torch.zeros(1, 2, 430 + NUM) for _ in range(2))
    rtol, atol = TOLERANCE[dtype]
    got = cpu.paged_attention(**of_kind(arguments, wide), prob_sums=found, sum_last=sum_last)
    whole = reference(**arguments, prob_sums=wanted, sum_last=sum_last)
    torch.testing.assert_close(got, whole, rtol=rtol, atol=atol)
    torch.testing.assert_close(found, wanted, rtol=10 * rtol, atol=10 * atol)
