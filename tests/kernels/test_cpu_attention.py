"""The C++ body of paged attention: every instruction set of this machine, threads, bad tables."""

import dataclasses
import functools
import heapq
import itertools
import math
from collections import Counter, deque
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.kernels.case import Make, outputs
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import CASES, TOLERANCE, reference

from .isas import ISAS, cpu
from .naive import naive_attention
from .one_sequence import one_sequence


@st.composite
def batches(draw):
    num_kv_heads, group = draw(st.sampled_from([(1, 1), (2, 3), (2, 7), (1, 20), (1, 40)]))
    sequence = st.tuples(
        st.sampled_from([0, 1, 1, 1, 2, 9]), st.lists(st.integers(0, 300), min_size=2, max_size=2), st.booleans()
    )
    sequences = draw(st.lists(sequence, max_size=4))
    q_lens = [n for n, _, _ in sequences]
    kv_lens = [[n + (held[0] if even else h) for h in held[:num_kv_heads]] for n, held, even in sequences]
    make = Make(seed=draw(st.integers(0, 1000)))
    k_dim, v_dim = draw(st.sampled_from([(16, 16), (64, 64), (32, 48), (80, 0), (13, 7), (33, 50)]))
    layout = PageLayout(draw(st.sampled_from([1, 8, 16])), k_dim, v_dim, torch.float32)
    table, num_pages = layer_table(
        make, q_lens, kv_lens, page_size=layout.page_size, num_kv_heads=num_kv_heads, per_head=draw(st.booleans())
    )
    heads = num_kv_heads * group
    return {
        "q": make.normal(sum(q_lens), heads, k_dim, scale=2.0),
        "pages": make.pages(num_pages, layout),
        "layout": layout,
        "table": table,
        "scale": 0.3,
        "window": draw(st.sampled_from([0, 0, 1, 7, 150])),
        "soft_cap": draw(st.sampled_from([0.0, 0.0, 5.0])),
        "sinks": make.normal(heads) if draw(st.booleans()) else None,
        "alibi_slopes": make.normal(heads).abs() if draw(st.booleans()) else None,
        "v_dim": 48 if v_dim == 0 else None,
        "prob_sums": torch.full((*table.kv_lens.shape, table.max_kv_len), 7.0) if draw(st.booleans()) else None,
        "sum_last": draw(st.sampled_from([0, 0, 1, 4])),
        "slot_weights": _weights(make, num_kv_heads, [draw(st.sampled_from([0, 1, 33, 150, 400])) for _ in sequences])
        if draw(st.booleans())
        else None,
    }


def _weights(make, num_heads, widths):
    """Logarithms up to where slots count a few hundred times."""
    return [2.0 * make.normal(num_heads, width).abs() if width else None for width in widths]


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(arguments=batches())
def test_random_batches_against_loop(isa, arguments):
    expected, sums = naive_attention(**arguments)
    got = cpu.paged_attention(**arguments, isa=isa)
    np.testing.assert_allclose(got.numpy(), expected, atol=5e-5, rtol=1e-4)
    if arguments["prob_sums"] is not None:
        np.testing.assert_allclose(arguments["prob_sums"].numpy(), sums, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_precision_of_every_instruction_set(case, dtype, isa):
    arguments = case.make(Make(dtype))
    rtol, atol = TOLERANCE[dtype]
    (expected, *sums) = outputs(case, reference, arguments)
    (got, *own_sums) = outputs(case, functools.partial(cpu.paged_attention, isa=isa), arguments)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
    for one, other in zip(own_sums, sums, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("special", [0.0, -0.0, 6e-8, 3e-5, 6.1e-5, 65504.0, float("inf"), float("nan")], ids=str)
def test_float16_at_its_edges(special, isa):
    """One slot, so that its value is the result: in through pages, out through the rounding of results."""
    case = next(case for case in CASES if case.name == "chunk first").make(Make(torch.float16))
    layout, table = (
        case["layout"],
        dataclasses.replace(case["table"], kv_lens=torch.tensor([[1, 1]], dtype=torch.int32)),
    )
    layout.v(case["pages"])[:] = special
    got = cpu.paged_attention(**case | {"table": table}, isa=isa)
    torch.testing.assert_close(got[-1], torch.full_like(got[-1], special), rtol=0, atol=0, equal_nan=True)


def long_context(make=None):
    """Decodes whose slots are split, one of them across more parts than there are threads, beside a chunk."""
    make = make or Make(torch.float32)
    layout = PageLayout(16, 32, 32, make.dtype)
    table, num_pages = layer_table(make, [1, 40, 1, 1], [5000, 300, 1025, 7], page_size=16, num_kv_heads=2)
    return {
        "q": make.normal(43, 6, 32), "pages": make.pages(num_pages, layout), "layout": layout, "table": table,
        "scale": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"window": 2000}, {"sinks": Make().normal(6)}, {"soft_cap": 3.0}], ids=str)
def test_split_contexts(options):
    arguments = long_context() | options
    torch.testing.assert_close(cpu.paged_attention(**arguments), reference(**arguments), rtol=1e-4, atol=1e-5)


def test_threads_change_nothing():
    """Parts and tiles are cut by length alone, so any number of threads gives the same bits."""
    threads, arguments = torch.get_num_threads(), long_context()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(cpu.paged_attention(**arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_batch_mates_change_nothing():
    """Bit for bit: a sequence alone, and in a batch."""
    arguments = long_context()
    together = cpu.paged_attention(**arguments)
    for seq in range(4):
        alone, rows = one_sequence(arguments, seq)
        assert torch.equal(cpu.paged_attention(**alone), together[rows])


@pytest.mark.parametrize("options", [{}, {"window": 50}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_queries_change_nothing(dtype, options):
    """Bit for bit: the first queries of a chunk, and a chunk that ends with them, at a register's end and elsewhere."""
    make, layout = Make(dtype), PageLayout(16, 64, 64, dtype)
    table, num_pages = layer_table(make, [150], [190], page_size=16, num_kv_heads=2)
    q, pages = make.normal(150, 6, 64, scale=3.0), make.pages(num_pages, layout)
    whole = cpu.paged_attention(q, pages, layout, table, scale=0.11, **options)
    for count in (88, 100, 120):
        lens = torch.full_like(table.kv_lens, 40 + count)
        starts = torch.tensor([0, count], dtype=torch.int32)
        first = dataclasses.replace(table, kv_lens=lens, q_starts=starts, q_starts_cpu=[0, count])
        assert torch.equal(cpu.paged_attention(q[:count], pages, layout, first, scale=0.11, **options), whole[:count])


def test_strided_queries():
    """A slice of a fused projection is read where it lies."""
    arguments = long_context()
    fused = torch.zeros(43, 10, 32)
    fused[:, 2:8] = arguments["q"]
    assert torch.equal(cpu.paged_attention(**arguments | {"q": fused[:, 2:8]}), cpu.paged_attention(**arguments))


def test_bad_tables_are_refused_before_memory_is_touched():
    arguments = long_context()
    table, num_pages = arguments["table"], len(arguments["pages"])
    rows = table.rows.clone()
    rows[0, 3] = num_pages
    for change, message in [
        ({"rows": rows}, f"page {num_pages} of {num_pages}"),
        ({"row_of": table.row_of + 100}, "row 100 of 8"),
        ({"kv_lens": table.kv_lens + 9999}, "length 14999 in a row of 313 pages"),
    ]:
        with pytest.raises(IndexError, match=message):
            cpu.paged_attention(**arguments | {"table": dataclasses.replace(table, **change)})
    with pytest.raises(ValueError, match="unknown instruction set 'sse'"):
        cpu.paged_attention(**arguments, isa="sse")


def prefix_tree(q_lens=(1, 1, 2, 1, 1), dtype=torch.float32, dim=32):
    """Five sequences over pages of 16: the first four begin with the same 704 slots, the first two with 1104, the last
    shares nothing."""
    make, layout = Make(dtype), PageLayout(16, dim, dim, dtype)
    lens = [1300, 1290, 900, 760, 800]
    table, num_pages = layer_table(make, q_lens, lens, page_size=16, num_kv_heads=2, per_head=False)
    rows = table.rows.clone()
    rows[1:4, :44] = rows[0, :44]
    rows[1, 44:69] = rows[0, 44:69]
    return {
        "q": make.normal(sum(q_lens), 6, dim), "pages": make.pages(num_pages, layout), "layout": layout,
        "table": dataclasses.replace(table, rows=rows), "scale": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"sinks": Make().normal(6)}, {"soft_cap": 3.0}, {"alibi_slopes": torch.ones(6)}], ids=str
)
def test_shared_prefixes_change_no_bit(options, dtype):
    arguments = prefix_tree(dtype=dtype) | options
    rtol, atol = TOLERANCE[dtype]
    shared = cpu.paged_attention(**arguments)
    assert torch.equal(shared, cpu.paged_attention(**arguments, share_prefixes=False))
    torch.testing.assert_close(shared, reference(**arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dim", [48, 80, 96, 40])
def test_few_rows_have_the_bits_of_many(dim):
    """Three rows of a sequence read slots where they lie, those of four sequences together read packed ones: the widths
    whose last columns fill half a register, and one that is always packed."""
    arguments = prefix_tree(dtype=torch.bfloat16, dim=dim)
    shared = cpu.paged_attention(**arguments)
    assert torch.equal(shared, cpu.paged_attention(**arguments, share_prefixes=False))
    rtol, atol = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(shared, reference(**arguments), rtol=rtol, atol=atol)


def attention_items(*args):
    from pagoda.kernels.cpu_attention import plan

    return plan(*args)


def test_shared_pages_are_found_in_the_table():
    """Items of the plan, without the caller's help: what is common is attended once, at every level of the tree."""
    arguments = prefix_tree()
    alone, shared = (
        sorted(attention_items(arguments["table"], arguments["layout"], 6, share)[0]) for share in (False, True)
    )
    assert all(len(sequences) == 1 for sequences, *_ in alone)
    joined = Counter()
    for seqs, head, begin, end in shared:
        joined[seqs] += end - begin if head == 0 else 0
    assert {seqs: slots for seqs, slots in joined.items() if len(seqs) > 1} == {(0, 1, 2, 3): 512, (0, 1): 512}
    for items in (alone, shared):
        slots = [sum(end - begin for seqs, head, begin, end in items if head and seq in seqs) for seq in range(5)]
        assert slots == [1300, 1290, 900, 760, 800]


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_a_chunk_in_bfloat16_loses_its_rounding_and_no_more(sharpness):
    """Weights are 2^x within 1e-4 before they are rounded: they and the result are, and nothing else shows."""
    make, slots, queries = Make(torch.bfloat16), 320, 100
    table, num_pages = layer_table(make, [queries], [slots], page_size=16, num_kv_heads=2)
    layout, wide = (PageLayout(16, 64, 64, dtype) for dtype in (torch.bfloat16, torch.float32))
    pages, q = make.pages(num_pages, layout), make.normal(queries, 6, 64, scale=sharpness)
    exact = reference(q.float(), pages.float(), wide, table, scale=0.125)
    got = cpu.paged_attention(q, pages, layout, table, scale=0.125).float()
    assert (got - exact).norm() < 2.5e-3 * exact.norm()


def last_end(work: list[int], starts: list[int], speeds: list[float]) -> float:
    """When threads of these speeds are done: each goes through its own items from the front, then takes what others
    have left from the back (`csrc/stretches.hpp`).
    """
    left = [deque(range(begin, end)) for begin, end in pairwise(starts)]
    free = [(0.0, thread) for thread in range(len(speeds))]
    last = 0.0
    while free:
        time, thread = heapq.heappop(free)
        others = (left[(thread + turn) % len(left)] for turn in range(1, len(left)))
        queue = left[thread] or next((other for other in others if other), None)
        if queue is None:
            last = max(last, time)
            continue
        item = queue.popleft() if queue is left[thread] else queue.pop()
        heapq.heappush(free, (time + work[item] / speeds[thread], thread))
    return last


@pytest.mark.parametrize("threads", [2, 4, 8])
@pytest.mark.parametrize(("num_seqs", "slots", "shared"), [(1, 4112, 0), (16, 2112, 2048), (3, 4112, 0)])
def test_threads_end_together(num_seqs, slots, shared, threads):
    """A thread's stretch is its share of the work, a shared prefix counted once."""
    make, layout = Make(), PageLayout(16, 64, 64, torch.float32)
    table, _ = layer_table(make, [1] * num_seqs, [slots] * num_seqs, page_size=16, num_kv_heads=2, per_head=False)
    table.rows[:, : shared // 16] = table.rows[0, : shared // 16]
    items, starts = attention_items(table, layout, 14, True, 0, threads)
    work = [(end - begin) * (32 + 7 * len(seqs)) for seqs, _, begin, end in items]
    shares = [sum(work[begin:end]) for begin, end in pairwise(starts)]
    assert len(shares) == threads
    assert sum(shares) == sum(work)
    part = max(min(end - begin, 256) * (32 + 7 * len(seqs)) for seqs, _, begin, end in items)
    assert max(shares) <= sum(work) / threads + part  # half of one at either end
    assert last_end(work, starts, [1.0] * threads) <= sum(work) / threads + part
    # Where the system gives one of them half of a core, it is late by one of its items and no more.
    speeds = [0.5] + [1.0] * (threads - 1)
    assert last_end(work, starts, speeds) <= sum(work) / sum(speeds) + max(work) / 0.5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("slots", [4096, 5000, 700])
def test_items_are_whole_sums(slots, threads):
    """An item adds up the first parts of a sum of eight, so most items begin where sums do."""
    make, layout = Make(), PageLayout(16, 64, 64, torch.float32)
    table, _ = layer_table(make, [1], [slots], page_size=16, num_kv_heads=2, per_head=False)
    items, _ = attention_items(table, layout, 14, True, 0, threads)
    begins = {head: [begin for _, of, begin, _ in items if of == head] for head in (0, 1)}
    assert begins[0] == begins[1]
    assert all(begin % 256 == 0 for begin in begins[0])
    within = [begin for begin in begins[0] if begin % 2048]
    assert len(within) <= 2 * threads


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_common_parts_come_first_then_heads_side_by_side(threads):
    """What several sequences share is multiplied first; then a sequence's own slots, kv-head beside kv-head."""
    make, layout = Make(), PageLayout(16, 64, 64, torch.float32)
    table, _ = layer_table(make, [1] * 6, [700] * 6, page_size=16, num_kv_heads=4, per_head=False)
    table.rows[:, :32] = table.rows[0, :32]
    items, starts = attention_items(table, layout, 8, True, 0, threads)
    assert {(len(seqs) > 1, end <= 512) for seqs, _, _, end in items} == {(True, True), (False, False)}
    for first, end in pairwise(starts):
        common = [len(seqs) > 1 for seqs, *_ in items[first:end]]
        assert common == sorted(common, reverse=True)
        own = [(seqs[0], begin, head) for seqs, head, begin, _ in items[first:end] if len(seqs) == 1]
        assert own == sorted(own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 3])
def test_sums_begin_anew(dtype, window):
    """Sums of many rows are not cleared before their first block: what another call left there is in no result.

    Nor is it where rows see nothing of that block (a window).
    """
    arguments = prefix_tree((1, 1, 70, 1, 1), dtype) | {"window": window}
    for _ in range(3):
        broken = arguments | {"pages": torch.full_like(arguments["pages"], torch.nan)}
        assert cpu.paged_attention(**broken).isnan().any()
        rtol, atol = TOLERANCE[dtype]
        got = cpu.paged_attention(**arguments)
        torch.testing.assert_close(got, reference(**arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("window", "latent"), [(0, False), (37, False), (0, True)])
@pytest.mark.parametrize("page_size", [4, 8, 16, 32])
def test_decode_reads_no_slot_that_is_none(page_size, window, latent):
    """Slots are read by eights where pages allow: what lies behind the last slot must not matter, be it nan."""
    make, layout = Make(torch.bfloat16), PageLayout(page_size, 80, 0 if latent else 48, torch.bfloat16)
    lengths = [[1, 8], [9, 15], [16, 17], [127, 129], [300, 255]]
    table, num_pages = layer_table(
        make, [1] * 5, lengths, page_size=page_size, num_kv_heads=2, per_head=True, shared_blocks=0
    )
    clean = make.pages(num_pages, layout)
    arguments = {
        "q": make.normal(5, 14, 80), "layout": layout, "table": table, "scale": 0.11, "window": window, "v_dim": 48,
    }  # fmt: skip
    spoiled = clean.clone()
    planes = (layout.k,) if latent else (layout.k, layout.v)
    for plane in planes:
        plane(spoiled)[:] = torch.nan
    for (seq, head), length in np.ndenumerate(table.kv_lens.numpy()):
        slots = torch.arange(int(length))
        pages = table.rows[int(table.row_of[seq, head])].long()[slots // page_size] + int(table.offset[seq, head])
        for plane in planes:
            plane(spoiled)[pages, slots % page_size] = plane(clean)[pages, slots % page_size]
    got = cpu.paged_attention(pages=spoiled, **arguments)
    rtol, atol = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(got, reference(pages=clean, **arguments), rtol=rtol, atol=atol)
    assert torch.equal(got, cpu.paged_attention(pages=clean, **arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_a_slot_of_weight_n_counts_as_n_slots(isa, dtype):
    """A sequence that holds a slot five times gets what one gets that holds it once with that weight."""
    make, layout, times = Make(dtype), PageLayout(16, 64, 64, dtype), 5
    kinds = torch.tensor([0] * times + list(range(1, 300)))
    table, num_pages = layer_table(make, [1, 1], [len(kinds), 300], page_size=16, num_kv_heads=2, per_head=True)
    slots = [make.normal(2, 300, 64) for _ in range(2)]
    pages = make.pages(num_pages, layout)
    for seq, which in ((0, kinds), (1, torch.arange(300))):
        for head, at in itertools.product(range(2), range(len(which))):
            page = int(table.rows[int(table.row_of[seq, head]), at // 16])
            for part, side in zip(slots, (layout.k(pages), layout.v(pages)), strict=True):
                side[page, at % 16] = part[head, which[at]]
    q = make.normal(1, 14, 64).expand(2, -1, -1).contiguous()
    logs = torch.zeros(2, 3)
    logs[:, 0] = math.log(times)
    out = cpu.paged_attention(q, pages, layout, table, scale=0.125, slot_weights=[None, logs], isa=isa)
    torch.testing.assert_close(out[1], out[0], **dict(zip(("rtol", "atol"), TOLERANCE[dtype], strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_weights_change_no_bit_of_others(dtype, shared):
    """Sequences without weights beside one that has some, whose pages they may share; weights of 1 are no weights."""
    make, layout, lens = Make(dtype), PageLayout(16, 64, 64, dtype), [600, 601, 602, 40]
    table, num_pages = layer_table(
        make, [1, 1, 1, 1], lens, page_size=16, num_kv_heads=2, per_head=False, shared_blocks=2 if not shared else 35
    )
    arguments = {
        "q": make.normal(4, 14, 64), "pages": make.pages(num_pages, layout), "layout": layout, "table": table,
        "scale": 0.125,
    }  # fmt: skip
    plain = cpu.paged_attention(**arguments)
    weights = [None, make.normal(2, 200, dtype=torch.float32).abs(), None, None]
    some = cpu.paged_attention(**arguments, slot_weights=weights)
    assert torch.equal(some[[0, 2, 3]], plain[[0, 2, 3]])
    assert not torch.equal(some[1], plain[1])
    alone, rows = one_sequence(arguments | {"slot_weights": weights}, 1)
    assert torch.equal(cpu.paged_attention(**alone), some[rows])
    once = cpu.paged_attention(**arguments, slot_weights=[torch.zeros(2, 0)] * 4)
    assert torch.equal(once, plain)
