"""Paged attention against a per-query numpy loop, on every case and on random ragged batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.core.errors import ConfigError
from pagoda.kernels import dispatch
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import LayerTable, paged_attention
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import CASES

from .naive import naive_attention


@pytest.fixture(params=["reference", "chosen"], autouse=True, scope="module")
def implementation(request):
    """Everything here holds for the reference and for whatever is chosen over it."""
    with dispatch.restricted("reference" if request.param == "reference" else ""):
        yield request.param


def check(arguments, atol=2e-5):
    expected, sums = naive_attention(**arguments)
    got = paged_attention(**arguments)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.numpy(), expected, atol=atol, rtol=1e-4)
    if arguments.get("prob_sums") is not None:
        np.testing.assert_allclose(arguments["prob_sums"].numpy(), sums, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_against_loop(case):
    check(case.make(Make()))


@st.composite
def batches(draw):
    """A ragged batch: sequences of any chunk and any per-head lengths, eviction included."""
    num_kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3), (3, 2)]))
    sequence = st.tuples(
        st.sampled_from([0, 1, 1, 1, 2, 5, 20]), st.lists(st.integers(0, 60), min_size=3, max_size=3), st.booleans()
    )
    sequences = draw(st.lists(sequence, max_size=5))
    q_lens = [n for n, _, _ in sequences]
    kv_lens = [[n + (held[0] if even else h) for h in held[:num_kv_heads]] for n, held, even in sequences]
    make = Make(seed=draw(st.integers(0, 1000)))
    v_dim = draw(st.sampled_from([8, 12, 0]))
    layout = PageLayout(draw(st.sampled_from([1, 4, 16])), 12, v_dim, torch.float32)
    table, num_pages = layer_table(
        make, q_lens, kv_lens, page_size=layout.page_size, num_kv_heads=num_kv_heads, per_head=draw(st.booleans())
    )
    heads = num_kv_heads * group
    return {
        "q": make.normal(sum(q_lens), heads, 12),
        "pages": make.pages(num_pages, layout),
        "layout": layout,
        "table": table,
        "scale": 0.4,
        "window": draw(st.sampled_from([0, 0, 1, 7, 40])),
        "soft_cap": draw(st.sampled_from([0.0, 0.0, 2.0])),
        "sinks": make.normal(heads) if draw(st.booleans()) else None,
        "alibi_slopes": make.normal(heads).abs() if draw(st.booleans()) else None,
        "v_dim": 7 if v_dim == 0 else None,
        "prob_sums": torch.ones(*table.kv_lens.shape, table.max_kv_len) if draw(st.booleans()) else None,
        "sum_last": draw(st.sampled_from([0, 0, 1, 4])),
    }


@settings(max_examples=150, deadline=None)
@given(batches())
def test_random_batches_against_loop(arguments):
    check(arguments)


def one_sequence(table: LayerTable, seq: int) -> LayerTable:
    """The same sequence alone."""
    start, stop = table.q_starts_cpu[seq : seq + 2]
    lens = table.kv_lens[seq : seq + 1]
    return LayerTable(
        table.rows, table.row_of[seq : seq + 1], table.offset[seq : seq + 1], lens,
        torch.tensor([0, stop - start], dtype=torch.int32), [0, stop - start], stop - start, int(lens.max()),
    )  # fmt: skip


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("name", ["decode ragged", "mixed", "mixed evicted", "decode, lengths far apart"])
def test_result_does_not_depend_on_batch_mates(name, window):
    arguments = next(case for case in CASES if case.name == name).make(Make()) | {"window": window}
    table, q = arguments["table"], arguments["q"]
    together = paged_attention(**arguments)
    for seq in range(len(table.kv_lens)):
        tokens = slice(*table.q_starts_cpu[seq : seq + 2])
        alone = paged_attention(**{**arguments, "q": q[tokens], "table": one_sequence(table, seq)})
        torch.testing.assert_close(alone, together[tokens], rtol=1e-5, atol=1e-6)


def test_chunks_equal_the_whole():
    """A prompt in chunks of 7 gives what it gives at once: only lengths matter to the causal mask."""
    make, layout, n = Make(), PageLayout(4, 16, 16, torch.float32), 40
    table, num_pages = layer_table(make, [n], [n], page_size=4, num_kv_heads=2)
    pages, q = make.pages(num_pages, layout), make.normal(n, 4, 16)
    whole = paged_attention(q, pages, layout, table, scale=0.25)
    for start in range(0, n, 7):
        stop = min(start + 7, n)
        starts = [0, stop - start]
        part = LayerTable(
            table.rows, table.row_of, table.offset, torch.full((1, 2), stop, dtype=torch.int32),
            torch.tensor(starts, dtype=torch.int32), starts, stop - start, stop, [[stop, stop]],
        )  # fmt: skip
        torch.testing.assert_close(
            paged_attention(q[start:stop], pages, layout, part, scale=0.25), whole[start:stop], rtol=1e-5, atol=1e-6
        )


def test_large_gathers_are_split(monkeypatch):
    """The bound on scratch memory changes what is gathered together, not the result."""
    arguments = next(case for case in CASES if case.name == "mixed evicted").make(Make())
    expected = paged_attention(**arguments)
    monkeypatch.setattr("pagoda.kernels.ops._paged.GATHER_BYTES", 1)
    monkeypatch.setattr("pagoda.kernels.ops._attention_reference.QUERY_TILE", 2)
    torch.testing.assert_close(paged_attention(**arguments), expected, rtol=1e-5, atol=1e-6)


def test_refusals_name_the_numbers():
    arguments = next(case for case in CASES if case.name == "decode one").make(Make())
    with pytest.raises(ConfigError, match="3 query heads over 2 kv-heads"):
        paged_attention(**{**arguments, "q": torch.zeros(1, 3, 16)})
    with pytest.raises(ConfigError, match="v_dim=8 with pages of v_dim 16"):
        paged_attention(**{**arguments, "v_dim": 8})
