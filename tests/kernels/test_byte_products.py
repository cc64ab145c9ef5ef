"""int8 and int4 pages times queries and weights rounded to bytes: what that loses, when it is done, and that it is the
same bits in every batch.
"""

import os
import subprocess
import sys

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import kv_write
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import reference
from pagoda.kv.codecs.base import CODECS

from .isas import ISAS, cpu
from .one_sequence import one_sequence

BYTES = "avx512bf16"  # the instruction set that has them
needs_bytes = pytest.mark.skipif(BYTES not in ISAS, reason="no products of bytes on this machine")


def batch(q_lens, kv_lens, *, heads=(14, 2), dims=(64, 64), sharp=1.0, shared_blocks=0, codec="int8"):
    make, layout = Make(torch.bfloat16), PageLayout(16, *dims, torch.uint8, CODECS.get(codec))
    table, num_pages = layer_table(
        make, q_lens, kv_lens, page_size=16, num_kv_heads=heads[1], per_head=not shared_blocks,
        shared_blocks=shared_blocks,
    )  # fmt: skip
    pages = torch.zeros(num_pages, layout.page_elems, dtype=torch.uint8)
    ids = torch.arange(num_pages, dtype=torch.int32).repeat_interleave(16)[:, None].contiguous()
    slots = torch.arange(16, dtype=torch.int32).repeat(num_pages)[:, None].contiguous()
    kv_write(
        make.normal(len(ids), 1, dims[0]), make.normal(len(ids), 1, dims[1] + 64)[..., 64:], pages, layout, ids, slots
    )
    return {
        "q": make.normal(sum(q_lens), heads[0], dims[0], scale=sharp), "pages": pages, "layout": layout,
        "table": table, "scale": dims[0] ** -0.5,
    }  # fmt: skip


@needs_bytes
@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize(
    ("shape", "options", "loss"),
    [
        (((1, 2, 1), (1, 300, 700), {}), {}, 0.004),
        (((1, 2, 1), (1, 300, 700), {"sharp": 4.0}), {}, 0.015),
        (((1, 9, 1), (17, 129, 513), {"heads": (4, 1), "dims": (128, 128)}), {"window": 100}, 0.015),
        (((1, 1), (64, 1000), {"heads": (9, 1), "dims": (64, 128), "sharp": 2.0}), {"soft_cap": 3.0}, 0.015),
        (((1, 1), (70, 333), {"heads": (16, 2), "dims": (192, 64)}), {}, 0.015),
        (
            ((1, 1), ([0, 5], [31, 400]), {}),
            {"sinks": Make().normal(14), "alibi_slopes": Make().normal(14).abs()},
            0.015,
        ),
        (
            ((1, 2, 1), (1, 300, 700), {}),
            {"slot_weights": [None, *(Make().normal(2, n).abs() for n in (90, 700))]},
            0.015,
        ),
    ],
    ids=["flat", "sharp", "window", "soft cap", "six groups", "sinks, alibi, a head kept nothing", "weights"],
)
def test_the_loss_is_small_beside_the_result(shape, options, loss, codec):
    """Root mean squares: of the difference to the same codes multiplied as numbers, and of the result."""
    q_lens, kv_lens, more = shape
    arguments = batch(q_lens, kv_lens, **more, codec=codec)
    exact = cpu.paged_attention(**arguments, **options, byte_products=False).float()
    got = cpu.paged_attention(**arguments, **options).float()
    wide = reference(**arguments | {"q": arguments["q"].float()}, **options)
    size = wide.square().mean().sqrt()
    assert 0 < (got - exact).square().mean().sqrt() < loss * size
    assert (got - wide).square().mean().sqrt() < loss * size + 0.004 * size, "rounding of the result included"


@needs_bytes
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_many_small_weights_beside_a_large_one(codec):
    """A sink takes half and 127 slots share the rest: the worst for weights in units of a block's largest."""
    arguments = batch([1], [128], heads=(7, 1), codec=codec)
    pages, layout, table = arguments["pages"], arguments["layout"], arguments["table"]
    keys = torch.zeros(128, 1, 64, dtype=torch.bfloat16)
    keys[0, 0, 0] = 38.75  # e^(38.75 / 8) = 127: as much as the others together
    values = Make(torch.bfloat16).normal(128, 1, 64).abs()
    ids = table.rows[0, :8].repeat_interleave(16)[:, None].contiguous()
    slots = torch.arange(16, dtype=torch.int32).repeat(8)[:, None].contiguous()
    kv_write(keys, values, pages, layout, ids, slots)
    q = torch.zeros(1, 7, 64, dtype=torch.bfloat16)
    q[..., 0] = 1.0
    arguments |= {"q": q}
    exact, got = (cpu.paged_attention(**arguments, byte_products=on).float() for on in (False, True))
    torch.testing.assert_close(got, exact, rtol=0.1, atol=0.02)


@needs_bytes
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_batch_mates_shared_prefixes_and_threads_change_nothing(codec):
    arguments = batch([1, 2, 1, 1, 9], [300, 301, 290, 40, 700], shared_blocks=17, codec=codec)
    together = cpu.paged_attention(**arguments)
    assert torch.equal(cpu.paged_attention(**arguments, share_prefixes=False), together)
    for seq in range(5):
        alone, rows = one_sequence(arguments, seq)
        assert torch.equal(cpu.paged_attention(**alone), together[rows])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(cpu.paged_attention(**arguments), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif("amx" not in ISAS, reason="no tiles on this machine")
@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 64), (64, 192)], ids=str)
@pytest.mark.parametrize("heads", [(14, 2), (9, 1), (17, 1)], ids=str)
@pytest.mark.parametrize("window", [0, 100])
def test_tiles_have_the_bits_of_vectors(codec, dims, heads, window):
    """Chunks of three queries, and sequences whose beginnings are shared, lengths that end anywhere."""
    for lengths in ([1, 17, 65], [300, 129, 290], [256, 272, 1000]):
        shared = 8 if min(lengths) > 128 else 0
        arguments = batch(
            [1, 3, 2], [n + 3 for n in lengths], heads=heads, dims=dims, codec=codec, shared_blocks=shared
        )
        tiles, vectors = (cpu.paged_attention(**arguments, window=window, isa=isa) for isa in ("amx", BYTES))
        assert torch.equal(tiles, vectors)


@pytest.mark.skipif("amx" not in ISAS, reason="no tiles on this machine")
@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 64), (64, 192)], ids=str)
@pytest.mark.parametrize("heads", [(14, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"soft_cap": 20.0}], ids=str)
def test_a_shared_beginning_of_several_parts_has_the_bits_of_vectors(codec, dims, heads, options):
    """Sixteen rows at a time (attention_byte_many.hpp), the parts of an item added up where they are made."""
    arguments = batch([1, 1, 2, 1], [800, 790, 900, 1041], heads=heads, dims=dims, codec=codec, shared_blocks=48)
    tiles, vectors = (cpu.paged_attention(**arguments, **options, isa=isa) for isa in ("amx", BYTES))
    assert torch.equal(tiles, vectors)
    assert torch.equal(cpu.paged_attention(**arguments, **options, isa="amx", share_prefixes=False), tiles)


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize(
    ("queries", "dims", "options"),
    [
        (20, (64, 64), {}),
        (1, (32, 32), {}),
        (1, (64, 64), {"isa": "base"}),
        (1, (64, 64), {"prob_sums": torch.zeros(1, 2, 300)}),
    ],
    ids=["a chunk", "heads of 32 columns", "another instruction set", "probability sums"],
)
def test_elsewhere_nothing_is_rounded(queries, dims, options, codec):
    arguments = batch([queries], [300], dims=dims, codec=codec)
    results = [cpu.paged_attention(**arguments, **options, byte_products=on) for on in (False, True)]
    assert torch.equal(*results)


@needs_bytes
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_values_that_are_no_numbers_make_results_that_are_none(codec):
    arguments = batch([1, 1], [40, 40], codec=codec)
    table, layout = arguments["table"], arguments["layout"]
    page = int(table.rows[table.row_of[0, 0], 1] + table.offset[0, 0])
    at = layout.page_bytes - 16 * layout.codec.scale_bytes(64)  # V's scales are the last plane
    arguments["pages"][page, at : at + 2] = torch.tensor([0xC0, 0x7F], dtype=torch.uint8)  # nan, little end first
    got = cpu.paged_attention(**arguments)
    broken = slice(0, 32 if codec == "int4" else 64)  # whose scale it is
    assert got[0, :7, broken].isnan().all()
    assert not got[0, :7, broken.stop :].isnan().any()
    assert not got[0, 7:].isnan().any()
    assert not got[1].isnan().any()


@needs_bytes
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_what_was_there_before_is_in_no_result(codec):
    """Windows begin within a page, so blocks end within a register: its last lanes are zeros, and not what another call
    left in them.
    """
    broken = batch([1] * 8, [300] * 8, codec=codec)
    layout = broken["layout"]
    broken["pages"][:, layout.page_bytes - 32 :] = torch.tensor([0xC0, 0x7F], dtype=torch.uint8).repeat(16)  # nan
    for length in range(90, 130):
        cpu.paged_attention(**broken)
        arguments = batch([1, 3], [length, length + 9], codec=codec)
        got = cpu.paged_attention(**arguments, window=21)
        exact = cpu.paged_attention(**arguments, window=21, byte_products=False)
        assert (got - exact).abs().max() < 0.05, length


def test_an_unknown_way_is_refused_by_name():
    code = "import tests.kernels.test_byte_products as t; t.cpu.paged_attention(**t.batch([1], [3]))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PAGODA_KV_PRODUCTS": "words"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "PAGODA_KV_PRODUCTS=words; accepted: bytes" in run.stderr
