"""Attention in bfloat16 by AMX: sixteen rows, sixteen words, thirty-two slots at a time, and what is left of each."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import pytest
import torch

from pagoda.kernels._extension import _cpu
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import kv_write
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import TOLERANCE, reference

from .isas import ISAS, cpu
from .one_sequence import one_sequence
from .threads import threads

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="no AMX on this machine, or it is not permitted")


def chunks(
    q_lens: list[int], kv_lens: list[Any], dims: tuple[int, int] = (64, 64), *, heads: tuple[int, int] = (6, 2),
    codec: str = "", page_size: int = 16, sharp: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    make = Make(torch.bfloat16)
    stored = import_module(f"pagoda.kv.codecs.{codec}").CODEC if codec else None
    layout = PageLayout(page_size, *dims, torch.uint8 if codec else torch.bfloat16, stored)
    table, num_pages = layer_table(make, q_lens, kv_lens, page_size=page_size, num_kv_heads=heads[1])
    pages = make.pages(num_pages, PageLayout(page_size, *dims, torch.bfloat16))
    if codec:
        pages = torch.zeros(num_pages, layout.page_elems, dtype=torch.uint8)
        ids = torch.arange(num_pages, dtype=torch.int32).repeat_interleave(page_size)[:, None].contiguous()
        slots = torch.arange(page_size, dtype=torch.int32).repeat(num_pages)[:, None].contiguous()
        kv_write(make.normal(len(ids), 1, dims[0]), make.normal(len(ids), 1, dims[1]), pages, layout, ids, slots)
    return {
        "q": make.normal(sum(q_lens), heads[0], dims[0], scale=sharp), "pages": pages, "layout": layout,
        "table": table, "scale": dims[0] ** -0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "dims", [(64, 64), (96, 96), (128, 128), (80, 80), (16, 16), (32, 48), (13, 7), (33, 50)], ids=str
)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"window": 37}, {"soft_cap": 5.0}, {"sinks": Make().normal(6), "alibi_slopes": Make().normal(6).abs()},
        {"window": 150, "soft_cap": 3.0},
    ],
    ids=["plain", "window", "soft cap", "sinks, alibi", "window, soft cap"],
)  # fmt: skip
def test_every_width_and_option(dims: tuple[int, int], options: dict[str, Any]) -> None:
    arguments = chunks([23, 40, 90, 1], [23, [175, 40], [300, 259], 400], dims, sharp=2.0)
    rtol, atol = TOLERANCE[torch.bfloat16]
    got = cpu.paged_attention(**arguments, **options, isa="amx")
    torch.testing.assert_close(got, reference(**arguments, **options), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("dims", "v_dim"), [((80, 0), 48), ((576, 0), 512)], ids=str)
def test_latent_pages(dims: tuple[int, int], v_dim: int) -> None:
    arguments = chunks([50], [190], dims, heads=(4, 1)) | {"v_dim": v_dim}
    rtol, atol = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(
        cpu.paged_attention(**arguments, isa="amx"), reference(**arguments), rtol=rtol, atol=atol
    )


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (128, 96)], ids=str)
@pytest.mark.parametrize("codec", ["int8", "fp8", "int4"])
def test_codes(codec: str, dims: tuple[int, int]) -> None:
    """Beside products of pairs by vectors of the same numbers: sums are rounded in another order, nothing else."""
    arguments = chunks([70, 30], [333, 30], dims, codec=codec)
    tiles, pairs = (cpu.paged_attention(**arguments, isa=isa).float() for isa in ("amx", "avx512bf16"))
    torch.testing.assert_close(tiles, pairs, rtol=1e-2, atol=2e-3)
    assert (tiles - pairs).norm() < 2e-3 * pairs.norm()


@pytest.mark.parametrize("page_size", [1, 4, 16, 32])
@pytest.mark.parametrize("window", [0, 45])
@pytest.mark.parametrize(("queries", "dims"), [(70, (80, 48)), (1, (64, 48)), (3, (96, 96))], ids=str)
def test_what_lies_behind_the_last_slot_does_not_matter(
    queries: int, dims: tuple[int, int], page_size: int, window: int
) -> None:
    """Tiles are filled up, with zeros: be it nan that lies there."""
    for slots in (97, 121, 128, 131, 136, 144, 150, 161):
        arguments = chunks([queries], [slots], dims, page_size=page_size) | {"window": window}
        clean, layout, table = arguments["pages"], arguments["layout"], arguments["table"]
        spoiled = torch.full_like(clean, torch.nan)
        for head in range(2):
            at = torch.arange(slots)
            pages = table.rows[int(table.row_of[0, head])].long()[at // page_size] + int(table.offset[0, head])
            for plane in (layout.k, layout.v):
                plane(spoiled)[pages, at % page_size] = plane(clean)[pages, at % page_size]
        got = cpu.paged_attention(**arguments | {"pages": spoiled}, isa="amx")
        assert torch.equal(got, cpu.paged_attention(**arguments, isa="amx")), slots


@pytest.mark.parametrize("window", [0, 100])
def test_batch_mates_and_later_queries_change_nothing(window: int) -> None:
    """Bit for bit: what a query yields depends neither on who else is in the batch nor on which queries follow it."""
    arguments = chunks([150, 33, 1, 90], [[410, 377], 33, 700, 601], sharp=3.0) | {"window": window}
    together = cpu.paged_attention(**arguments, isa="amx")
    for seq in range(4):
        alone, rows = one_sequence(arguments, seq)
        assert torch.equal(cpu.paged_attention(**alone, isa="amx"), together[rows])
    whole, rows = one_sequence(arguments, 0)
    for count in (23, 88, 101, 149):
        table = chunks([count], [[260 + count, 227 + count]])["table"]
        first = whole | {"q": whole["q"][:count], "table": _with_pages_of(whole["table"], table)}
        assert torch.equal(cpu.paged_attention(**first, isa="amx"), together[rows][:count]), count


def _with_pages_of(whole: Any, shorter: Any) -> Any:
    return dataclasses.replace(shorter, rows=whole.rows, row_of=whole.row_of, offset=whole.offset)


@pytest.mark.parametrize("codec", ["", "fp8", "int4"])
@pytest.mark.parametrize("page_size", [8, 16, 32])
@pytest.mark.parametrize("dims", [(64, 64), (96, 80), (128, 128), (80, 80), (576, 0)], ids=str)
def test_few_rows_have_the_bits_of_many(dims: tuple[int, int], page_size: int, codec: str) -> None:
    """Seven or fourteen rows of a sequence meet keys where they lie, those of five sequences packed ones."""
    v_dim = None if dims[1] else 512
    if codec and not dims[1]:
        pytest.skip("latent pages are bfloat16 here")
    arguments = chunks([1, 2, 1, 1, 1], [700, 713, 601, 530, 300], dims, heads=(7, 1), codec=codec, page_size=page_size)
    rows = arguments["table"].rows
    for row in arguments["table"].row_of[1:4, 0].tolist():
        rows[row, : 512 // page_size] = rows[int(arguments["table"].row_of[0, 0]), : 512 // page_size]
    arguments |= {"v_dim": v_dim}
    together = cpu.paged_attention(**arguments, isa="amx")
    assert torch.equal(cpu.paged_attention(**arguments, isa="amx", share_prefixes=False), together)
    for seq in range(5):
        alone, own = one_sequence(arguments, seq)
        assert torch.equal(cpu.paged_attention(**alone, isa="amx"), together[own])
    vectors = cpu.paged_attention(**arguments, isa="avx512bf16").float()
    assert (together.float() - vectors).norm() < 4e-3 * vectors.norm()


@pytest.mark.parametrize("options", [{}, {"window": 37}, {"soft_cap": 5.0}, {"sinks": Make().normal(14)}], ids=str)
@pytest.mark.parametrize("queries", [1, 2, 3, 9])
def test_decode_steps_and_narrow_chunks(queries: int, options: dict[str, Any]) -> None:
    arguments = chunks([queries] * 3, [queries, [queries + 30, 300], [513, 1024]], heads=(14, 2), sharp=2.0)
    rtol, atol = TOLERANCE[torch.bfloat16]
    got = cpu.paged_attention(**arguments, **options, isa="amx")
    torch.testing.assert_close(got, reference(**arguments, **options), rtol=rtol, atol=atol)


def test_products_of_bytes_are_those_of_vectors() -> None:
    arguments = chunks([1, 3, 2], [700, 40, 300], codec="int8")
    tiles, vectors = (cpu.paged_attention(**arguments, isa=isa) for isa in ("amx", "avx512bf16"))
    assert torch.equal(tiles, vectors)


def test_tiles_are_used() -> None:
    """They sum products in another order than vectors, with which decode steps of small groups stay."""
    for heads, queries, same in ((6, 100, False), (6, 1, True), (6, 20, True), (8, 1, False), (14, 3, False)):
        arguments = chunks([queries] * 8, [700] * 8, (128, 128), heads=(heads, 2), sharp=3.0)
        tiles, vectors = (cpu.paged_attention(**arguments, isa=isa).float() for isa in ("amx", "avx512bf16"))
        assert torch.equal(tiles, vectors) is same, (heads, queries)
        assert (tiles - vectors).norm() < 4e-3 * vectors.norm()


@pytest.mark.parametrize("sharp", [1.0, 4.0])
def test_a_chunk_loses_its_rounding_and_no_more(sharp: float) -> None:
    arguments = chunks([100], [320], sharp=sharp)
    layout = PageLayout(16, 64, 64, torch.float32)
    wide = {"q": arguments["q"].float(), "pages": arguments["pages"].float(), "layout": layout}
    exact = reference(**arguments | wide)
    got = cpu.paged_attention(**arguments, isa="amx").float()
    assert (got - exact).norm() < 2.5e-3 * exact.norm()


@pytest.mark.parametrize("options", [{}, {"soft_cap": 5.0}, {"alibi_slopes": Make().normal(7).abs()}], ids=str)
@pytest.mark.parametrize("codec", ["", "fp8"])
def test_parts_that_an_item_adds_up_have_the_bits_of_merged_ones(codec: str, options: dict[str, Any]) -> None:
    """Twenty sequences begin with five parts; how many of them an item takes depends on the threads."""
    lengths = [1280 + 13 * n for n in range(20)]
    arguments = chunks([1] * 20, lengths, heads=(7, 1), codec=codec, sharp=3.0) | options
    rows, row_of = arguments["table"].rows, arguments["table"].row_of[:, 0].tolist()
    for row in row_of[1:]:
        rows[row, : 1280 // 16] = rows[row_of[0], : 1280 // 16]
    together = cpu.paged_attention(**arguments, isa="amx")
    for number in (1, 2, 3, 5):
        with threads(number):
            assert torch.equal(cpu.paged_attention(**arguments, isa="amx"), together), number
    assert torch.equal(cpu.paged_attention(**arguments, isa="amx", share_prefixes=False), together)
    rtol, atol = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(together, reference(**arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize("sharp", [1.0, 2.0, 5.0])
def test_maxima_of_few_and_of_many_rows_move_at_the_same_slots(sharp: float) -> None:
    """A weight is rounded beside its row's maximum at that time: one in a hundred of these rows differed where few rows
    looked at 128 slots at a time and many at 64."""
    arguments = chunks([1] * 90, [1100] * 90, heads=(14, 1), sharp=sharp)
    rows, row_of = arguments["table"].rows, arguments["table"].row_of[:, 0].tolist()
    for row in row_of[1:]:
        rows[row, : 1024 // 16] = rows[row_of[0], : 1024 // 16]
    together = cpu.paged_attention(**arguments, isa="amx")
    apart = cpu.paged_attention(**arguments, isa="amx", share_prefixes=False)
    assert torch.equal(apart, together), f"{(apart != together).any(-1).sum()} of {14 * 90} rows"


@pytest.mark.parametrize("sharp", [1.0, 3.0])
def test_where_a_tile_of_queries_begins_moves_no_maximum(sharp: float) -> None:
    """With a window a tile's slots begin where its first query's do; how many it takes is a matter of caches."""
    arguments = chunks([700], [1400], heads=(14, 1), sharp=sharp) | {"window": 300}
    try:
        results = []
        for second in (256, 600, 2048, 16384):
            _cpu.assume_caches(48 << 10, second << 10)
            results.append(cpu.paged_attention(**arguments, isa="amx"))
    finally:
        _cpu.assume_caches(0, 0)
    for result in results[1:]:
        assert torch.equal(result, results[0]), f"{(result != results[0]).any(-1).sum()} of {14 * 700} rows"
