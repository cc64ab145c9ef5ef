"""The layers of a program share a plan of attention where their tables say the same, with the bits of calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops._table import LayerTable
from pagoda.kernels.quantize import pack
from pagoda.kernels.step import QueryRings, StepArrays, StepWeights

cpu = pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")

LAYERS, HEADS, GROUP, DIM, PAGE = 4, 2, 7, 16, 16
FUSED, HIDDEN = (GROUP + 2) * HEADS * DIM, GROUP * HEADS * DIM
LENGTHS = (700, 620, 40, 257)


def step_of(own: bool, dtype: torch.dtype = torch.float32) -> StepArrays:
    """Sequences of one token; the first two begin with the same 512 slots. ``own``: rows and lengths for each layer."""
    seqs, blocks = len(LENGTHS), -(-max(LENGTHS) // PAGE) + 1
    copies = LAYERS if own else 1
    ids = Make().permutation(copies * seqs * blocks).view(copies, seqs, blocks)
    rows = (ids * (1 if own else LAYERS) * HEADS).contiguous()
    rows[:, 1, :32] = rows[:, 0, :32]
    lens = torch.tensor(LENGTHS, dtype=torch.int32)[None, :, None].expand(copies, seqs, HEADS).clone()
    lens += torch.arange(copies, dtype=torch.int32)[:, None, None]
    head = torch.arange(HEADS, dtype=torch.int32)
    layer = torch.arange(LAYERS, dtype=torch.int32) * (0 if own else HEADS)
    offset = (layer[:, None, None] + head).expand(LAYERS, seqs, HEADS).contiguous()
    last = lens - 1
    page_ids = torch.stack([rows[c, s, last[c, s, 0] // PAGE] + head for c in range(copies) for s in range(seqs)])
    num_pages = copies * seqs * blocks * HEADS * (1 if own else LAYERS)
    layout = PageLayout(PAGE, DIM, DIM, dtype)
    return StepArrays(
        Make(dtype).pages(num_pages, layout), layout, rows,
        torch.arange(seqs, dtype=torch.int32)[:, None].expand(seqs, HEADS).contiguous(), offset, lens,
        torch.arange(seqs + 1, dtype=torch.int32), page_ids.view(copies, seqs, HEADS).contiguous(),
        (last % PAGE).contiguous(),
    )  # fmt: skip


def programmed(step: StepArrays, x: torch.Tensor, windows: tuple[int, ...], threads: int) -> torch.Tensor:
    from pagoda.kernels.program import Program

    program = Program(x.dtype, [FUSED, HIDDEN])
    for layer in range(LAYERS):
        program.attend(
            0, 1, layer, (GROUP * HEADS, HEADS), DIM, scale=0.3, soft_cap=0.0, window=windows[layer % len(windows)],
            sinks=None, alibi_slopes=None,
        )  # fmt: skip
        program.linear(1, 0, product(x.dtype), None, dynamic=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return program.run(
            x.clone(), torch.zeros(len(x), dtype=torch.int64), [], replace(step, pages=step.pages.clone())
        )
    finally:
        torch.set_num_threads(before)


def product(dtype: torch.dtype):
    weight = Make(torch.float32).normal(FUSED, HIDDEN, scale=HIDDEN**-0.5)
    return pack(weight, "fp32" if dtype == torch.float32 else "bf16")


def by_calls(
    step: StepArrays,
    x: torch.Tensor,
    windows: tuple[int, ...],
    weights: list[list[torch.Tensor | None]] | None = None,
) -> torch.Tensor:
    pages, own = step.pages.clone(), len(step.rows) > 1
    for layer in range(LAYERS):
        q, k, v = x.view(len(x), -1, DIM).split([GROUP * HEADS, HEADS, HEADS], 1)
        at = layer if own else 0
        further = 0 if own else layer * HEADS
        cpu.kv_write(k, v, pages, step.layout, step.page_ids[at] + further, step.slots[at])
        lens = step.kv_lens[at]
        table = LayerTable(
            step.rows[at], step.row_of, step.offset[layer], lens, step.q_starts, step.q_starts.tolist(),
            1, int(lens.max()),
        )  # fmt: skip
        out = cpu.paged_attention(
            q, pages, step.layout, table, scale=0.3, window=windows[layer % len(windows)],
            slot_weights=None if weights is None else weights[layer],
        )  # fmt: skip
        x = cpu.packed_linear(out.reshape(len(x), -1), product(x.dtype))
    return x


def uneven(step: StepArrays) -> StepArrays:
    """In the second layer the heads of one sequence are exchanged, in the third those of all, in the fourth none."""
    offset = step.offset.clone()
    offset[1, 0] = offset[1, 0].flip(0)
    offset[2] = offset[2].flip(1)
    return replace(step, offset=offset)


def alike(step: StepArrays, tables: str) -> None:
    """Layers with pages of their own and the lengths of the first, whose sequences share none; the third layer's are
    shorter, or begin with the same pages.
    """
    rows, free = step.rows, Make().permutation(step.rows.numel()).view(step.rows.shape)
    rows.copy_(free * HEADS)
    step.kv_lens.copy_(step.kv_lens[:1].expand_as(step.kv_lens).clone())
    if tables == "alike but once":
        step.kv_lens[2] -= 3
    if tables == "shared later":
        rows[2, 1, :32] = rows[2, 0, :32]
    last = step.kv_lens - 1
    for c, s in np.ndindex(*step.kv_lens.shape[:2]):
        step.page_ids[c, s] = rows[c, s, last[c, s, 0] // PAGE] + torch.arange(HEADS)
    step.slots.copy_(last % PAGE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tables", ["further", "uneven", "own", "alike", "alike but once", "shared later", "windows"])
def test_every_layer_attends_as_a_call_of_its_own(tables: str, threads: int, dtype: torch.dtype) -> None:
    step = step_of(tables in ("own", "alike", "alike but once", "shared later"), dtype=dtype)
    if tables == "uneven":
        step = uneven(step)
    if tables.startswith(("alike", "shared")):
        alike(step, tables)
    windows = (0, 300) if tables == "windows" else (0,)
    x = Make(dtype).normal(len(LENGTHS), FUSED)
    expected = by_calls(step, x, windows)
    assert expected.abs().max() > 0
    for _ in range(5):
        assert torch.equal(programmed(step, x, windows, threads), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_every_layer_has_its_own_weights(own: bool, threads: int) -> None:
    """Of two sequences, one of which has none in the second layer; the others count every slot once."""
    step, x, widths = step_of(own), Make().normal(len(LENGTHS), FUSED), (300, 0, 0, 9)
    weights: list[list[torch.Tensor | None]] = [
        [Make(seed=layer).normal(HEADS, n).abs() if n and (layer, n) != (1, 300) else None for n in widths]
        for layer in range(LAYERS)
    ]
    logs = np.array([[0 if w is None else w.data_ptr() for w in one] for one in weights], np.int64)
    step.weights = StepWeights(logs, np.array(widths, np.int64))
    got = programmed(step, x, (0,), threads)
    assert torch.equal(got, by_calls(step, x, (0,), weights))
    assert not torch.equal(got, by_calls(step, x, (0,)))


def test_a_page_that_only_a_later_layer_lacks_is_refused() -> None:
    """The plan of the first layer is good for pages that exist, however far the next layers' lie."""
    step = step_of(own=False)
    highest = max(int(step.rows[0, seq, : -(-length // PAGE)].max()) for seq, length in enumerate(LENGTHS))
    x, written = Make().normal(len(LENGTHS), FUSED), torch.zeros_like(step.page_ids)
    for missing in (0, 1):
        pages = step.pages[: highest + LAYERS * HEADS - missing]
        some = replace(step, pages=pages, page_ids=written)
        if not missing:
            programmed(some, x, (0,), 2)
            continue
        with pytest.raises(IndexError, match=f"page {len(pages)} of {len(pages)}"):
            programmed(some, x, (0,), 2)


def test_a_page_that_only_a_later_layer_of_its_own_pages_lacks_is_refused() -> None:
    step = step_of(own=True)
    alike(step, "alike")
    x = Make().normal(len(LENGTHS), FUSED)
    programmed(step, x, (0,), 2)
    step.rows[2, 3, 5] = missing = len(step.pages)
    with pytest.raises(IndexError, match=f"page {missing} of {missing}"):
        programmed(step, x, (0,), 2)


@pytest.mark.parametrize(
    ("num", "first", "width", "told"),
    [(2, 0, 3, "2 queries from place 0 of 3 on, of 1 tokens"), (1, 3, 3, "1 queries from place 3 of 3 on"),
     (-1, 0, 3, "-1 queries"), (1, 1, 3, "")],
)  # fmt: skip
def test_queries_go_to_places_that_are_there(num: int, first: int, width: int, told: str) -> None:
    step, x = step_of(own=False), Make().normal(len(LENGTHS), FUSED)
    ring = torch.full((LAYERS, width, GROUP * HEADS, DIM), 7.0)
    places = np.zeros((4, len(LENGTHS)), np.int64)
    places[:, 2] = ring.data_ptr(), width, first, num
    step.queries = QueryRings(*places)
    if told:
        with pytest.raises(ValueError, match=told):
            programmed(step, x, (0,), 1)
        assert (ring == 7).all()
        return
    programmed(step, x, (0,), 1)
    assert torch.equal(ring[0, first].flatten(), x[2, : GROUP * HEADS * DIM])
    assert (ring[:, [0, 2]] == 7).all()
    assert (ring[1:, first] != 7).any(-1).all()
