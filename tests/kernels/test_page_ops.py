"""Writing, moving and copying inside pages, against dictionaries of slots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.core.errors import ConfigError
from pagoda.kernels import dispatch
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import close_gaps, copy_pages, kv_compact, kv_write, paged_attention
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.close_gaps import reference
from pagoda.kv.codecs.base import CODECS

PAGE_SIZE, NUM_PAGES = 4, 8
SLOTS = PAGE_SIZE * NUM_PAGES
LAYOUTS = st.sampled_from([(6, 6), (6, 4), (5, 0)]).map(lambda dims: PageLayout(PAGE_SIZE, *dims, torch.float32))
ID_DTYPES = st.sampled_from([torch.int32, torch.int64])


@pytest.fixture(params=["reference", "chosen"], autouse=True, scope="module")
def implementation(request):
    """Everything here holds for the reference and for whatever is chosen over it."""
    with dispatch.restricted("reference" if request.param == "reference" else ""):
        yield request.param


def slots_of(pages, layout):
    """Every slot's K followed by its V: [num_pages * page_size, k_dim + v_dim]."""
    return torch.cat((layout.k(pages), layout.v(pages)), dim=-1).reshape(len(pages) * layout.page_size, -1)


def test_layout_draws_the_page():
    layout = PageLayout(2, 3, 1, torch.bfloat16)
    pages = torch.arange(16, dtype=torch.bfloat16).view(2, 8)
    assert (layout.planes, layout.page_elems, layout.page_bytes) == ([(0, 3), (6, 1)], 8, 16)
    assert layout.k(pages).tolist() == [[[0, 1, 2], [3, 4, 5]], [[8, 9, 10], [11, 12, 13]]]
    assert layout.v(pages).tolist() == [[[6], [7]], [[14], [15]]]
    layout.v(pages)[1, 1] = 99
    assert pages[1, 7] == 99
    assert layout.new_pages(3).shape == (3, 8)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, ID_DTYPES, st.permutations(range(SLOTS)), st.integers(0, SLOTS // 2), st.booleans())
def test_kv_write(layout, id_dtype, places, tokens, strided):
    make = Make()
    pages = make.pages(NUM_PAGES, layout)
    expected = slots_of(pages, layout).clone()
    where = torch.tensor(places[: 2 * tokens], dtype=id_dtype).view(tokens, 2)
    width = layout.k_dim + layout.v_dim
    fused = make.normal(tokens, 2, width)  # k and v as the slices that a fused projection leaves
    k, v = fused[..., : layout.k_dim], fused[..., layout.k_dim :]
    if not strided:
        k, v = k.contiguous(), v.contiguous()
    kv_write(k, v if layout.v_dim else None, pages, layout, where // PAGE_SIZE, where % PAGE_SIZE)
    expected[where.reshape(-1).long()] = fused.reshape(-1, width)
    assert torch.equal(slots_of(pages, layout), expected)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, ID_DTYPES, st.permutations(range(SLOTS)), st.lists(st.integers(0, SLOTS - 1), max_size=SLOTS))
def test_kv_compact_reads_before_it_writes(layout, id_dtype, targets, sources):
    pages = Make().pages(NUM_PAGES, layout)
    before = slots_of(pages, layout).clone()
    src, dst = torch.tensor(sources, dtype=id_dtype), torch.tensor(targets[: len(sources)], dtype=id_dtype)
    kv_compact(pages, layout, src // PAGE_SIZE, src % PAGE_SIZE, dst // PAGE_SIZE, dst % PAGE_SIZE)
    expected = before.clone()
    for source, target in zip(sources, targets[: len(sources)], strict=True):
        expected[target] = before[source]
    assert torch.equal(slots_of(pages, layout), expected)


@settings(max_examples=60, deadline=None)
@given(ID_DTYPES, st.permutations(range(NUM_PAGES)), st.lists(st.integers(0, NUM_PAGES - 1), max_size=NUM_PAGES))
def test_copy_pages_reads_before_it_writes(id_dtype, targets, sources):
    pages = Make().pages(NUM_PAGES, PageLayout(PAGE_SIZE, 6, 6, torch.float32))
    before = pages.clone()
    targets = targets[: len(sources)]
    copy_pages(pages, torch.tensor(sources, dtype=id_dtype), torch.tensor(targets, dtype=id_dtype))
    expected = before.clone()
    for source, target in zip(sources, targets, strict=True):
        expected[target] = before[source]
    assert torch.equal(pages, expected)


@pytest.mark.parametrize("num_pages", [40, 4000])
def test_overlaps_are_found_among_few_pages_and_many(num_pages):
    """However sources are looked up: a chain of copies moves every page one on, and pages apart are copied all."""
    pages = torch.arange(num_pages, dtype=torch.float32)[:, None].repeat(1, 32)
    chain = torch.arange(10, dtype=torch.int32)
    copy_pages(pages, chain, chain + 1)
    assert pages[:12, 0].tolist() == [0, *range(10), 11]
    copy_pages(pages, chain + 20, chain)
    assert pages[:10, 31].tolist() == list(range(20, 30))


def test_tensors_of_another_device_are_refused_before_a_body_reads_their_addresses():
    """Keys on a GPU and pages on the CPU once crashed the process; "meta" stands for any other device here."""
    layout = PageLayout(PAGE_SIZE, 16, 16, torch.float32)
    pages, ids = torch.zeros(NUM_PAGES, layout.page_elems), torch.tensor([[0], [1]], dtype=torch.int32)
    here, there = torch.zeros(2, 1, 16), torch.zeros(2, 1, 16, device="meta")
    kv_write(here, here, pages, layout, ids, ids)
    with pytest.raises(ConfigError, match="kv_write: k on meta, pages on cpu, page_ids on cpu; accepted: all on one"):
        kv_write(there, there, pages, layout, ids, ids)
    table, num_pages = layer_table(Make(), [1], [3], page_size=PAGE_SIZE, num_kv_heads=1)
    q = torch.zeros(1, 1, 16, device="meta")
    with pytest.raises(ConfigError, match="paged_attention: q on meta, pages on cpu, table on cpu"):
        paged_attention(q, torch.zeros(num_pages, layout.page_elems), layout, table, scale=1.0)


@pytest.mark.parametrize("page_bytes", [2112, 2048 + 36])
def test_many_pages_are_copied_past_the_caches_and_are_the_same(page_bytes) -> None:
    """8 MiB: beyond `kStreamBytes`; one of the sizes is no multiple of a cache line."""
    count = (8 << 20) // page_bytes
    pages = torch.randint(0, 256, (2 * count, page_bytes), dtype=torch.uint8)
    src, dst = torch.randperm(2 * count).view(2, -1)
    expected = pages.clone()
    expected[dst] = expected[src]
    copy_pages(pages, src, dst)
    assert torch.equal(pages, expected)


@pytest.mark.parametrize("codec", [None, "int8", "int4", "fp8"])
@pytest.mark.parametrize("dims", [(8, 8), (64, 64), (96, 40), (40, 0)])
def test_closed_gaps_touch_nothing_before_the_first_and_behind_the_last_slot(codec, dims) -> None:
    """Those pages may be others': the plain moves write no byte of them, and neither do the kernels."""
    layout = PageLayout(8, *dims, torch.uint8 if codec else torch.bfloat16, CODECS.get(codec) if codec else None)
    rng = torch.Generator().manual_seed(sum(dims))
    for _ in range(40):
        rows, slots = (int(torch.randint(1, most, (), generator=rng)) for most in (4, 90))
        columns = -(-slots // 8)
        pages = torch.randint(0, 256, (rows * columns + 3, layout.page_bytes), generator=rng, dtype=torch.uint8)
        table = torch.randperm(len(pages), generator=rng)[: rows * columns].to(torch.int32).view(rows, columns)
        keep = torch.rand(rows, slots, generator=rng) < torch.rand((), generator=rng)
        keep[:, : int(torch.randint(0, slots, (), generator=rng))] |= torch.rand((), generator=rng) < 0.5
        ours, plain = pages.view(layout.dtype).clone(), pages.view(layout.dtype).clone()
        close_gaps(ours, layout, table, keep)
        reference(plain, layout, table, keep)
        assert torch.equal(ours.view(torch.uint8), plain.view(torch.uint8))


def test_slots_do_not_move_to_a_page_that_is_not_there() -> None:
    """Nothing of the first page stays, so that nobody reads it; what is behind it goes there."""
    layout = PageLayout(8, 16, 16, torch.float32)
    pages = torch.zeros(3, layout.page_elems)
    keep = torch.arange(16)[None] >= 8
    with pytest.raises(IndexError):
        close_gaps(pages, layout, torch.tensor([[7, 1]], dtype=torch.int32), keep)
