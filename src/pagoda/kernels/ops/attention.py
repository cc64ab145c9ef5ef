"""Attention over head pages: decode and prefill chunks of a ragged batch in one call.

Shapes (T tokens of S sequences, Hq query heads over Hkv kv-heads, G = Hq / Hkv)::

    q        [T, Hq, k_dim]      query head h reads kv-head h // G
    pages    [num_pages, page_elems] of layout.dtype, numbers or a codec's bytes
    returns  [T, Hq, v_dim]      in q's dtype; softmax and its sums are float32

Query i (0-based) of a chunk of n sees slots ``0 .. kv_len - n + i``. Slots, not positions: after eviction a head's kept
tokens lie close together, and each (sequence, kv-head) has its own length. A query that sees no slot yields zeros.
Slots beyond a head's length are never read into the result, whatever bytes they hold.

Papers: PagedAttention (arXiv:2309.06180), online softmax (arXiv:1805.02867), FlashAttention (arXiv:2205.14135),
grouped queries (arXiv:2305.13245), sinks (arXiv:2309.17453), ALiBi (arXiv:2108.12409), latent KV (arXiv:2405.04434).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..case import Case, Make
from ..dispatch import Needs, Op, one_device
from ..layout import PageLayout
from . import _attention_reference
from ._table import LayerTable, layer_table

__all__ = ["LayerTable", "paged_attention"]


def paged_attention(
    q: Tensor,
    pages: Tensor,
    layout: PageLayout,
    table: LayerTable,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    v_dim: int | None = None,
    prob_sums: Tensor | None = None,
    prob_counts: Tensor | None = None,
    sum_last: int | Sequence[int] = 0,
    slot_weights: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Attention of every query over its sequence's pages (shapes above).

    scale         multiplies q·k.
    window        w > 0: a query sees only the last w of its slots, its own included.
    soft_cap      c > 0: scores become ``c * tanh(scores / c)``.
    sinks         [Hq]: one more logit in the softmax's denominator (gpt_oss).
    alibi_slopes  [Hq]: adds ``slope * (k_slot - q_slot)``.
    v_dim         latent pages (``layout.v_dim == 0``): V is ``K[..., :v_dim]``.
    prob_sums     float32 [S, Hkv, max_kv_len], overwritten: probabilities summed over the chunk's queries and the
                  group's query heads; 0 beyond a head's length.
    prob_counts   beside them, of the same shape: how many of these queries and heads gave the slot at least the mean,
                  1/n of the n slots that they see.
    sum_last      w > 0: only the last w queries of a chunk are summed (what snapkv needs at a prompt's end); the same
                  for all sequences, or [S].
    slot_weights  [S] of contiguous float32 [Hkv, W] or None: logarithms of how often slots count in the softmax, added
                  to their scores after the soft cap; slots from W on, and all of None, count once.

    Raises ConfigError for latent pages without ``v_dim``, query heads that do not divide among the kv-heads, tensors on
    several devices.
    """
    used = (
        window > 0,
        soft_cap > 0.0,
        sinks is None,
        alibi_slopes is None,
        v_dim,
        prob_sums is None,
        slot_weights is None,
    )
    key = (
        used,
        q.dtype,
        pages.dtype,
        layout.codec_name,
        pages.device.type,
        q.device.type,
        table.rows.device.type,
        layout.k_dim,
        layout.v_dim,
        q.shape[1],
        table.row_of.shape[1],
    )
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(q, pages, layout, table, *used))
    out: Tensor = run(
        q, pages, layout, table, scale=scale, window=window, soft_cap=soft_cap, sinks=sinks,
        alibi_slopes=alibi_slopes, v_dim=v_dim, prob_sums=prob_sums,
        prob_counts=prob_counts, sum_last=sum_last, slot_weights=slot_weights,
    )  # fmt: skip
    return out


def _needs(
    q: Tensor, pages: Tensor, layout: PageLayout, table: LayerTable,
    window: bool, soft_cap: bool, no_sinks: bool, no_alibi: bool, v_dim: int | None, no_sums: bool,
    no_weights: bool,
) -> Needs:  # fmt: skip
    """What this call asks for; a call that no implementation could serve is refused here, once per kind of call."""
    num_q_heads, num_kv_heads = q.shape[1], table.row_of.shape[1]
    if num_q_heads % num_kv_heads:
        raise ConfigError(f"{num_q_heads} query heads over {num_kv_heads} kv-heads; must be a multiple")
    if (layout.v_dim == 0) != (v_dim is not None):
        raise ConfigError(f"v_dim={v_dim} with pages of v_dim {layout.v_dim}: give v_dim for latent pages, only there")
    used = {
        "window": window, "soft_cap": soft_cap, "sinks": not no_sinks, "alibi": not no_alibi,
        "latent": v_dim is not None, "prob_sums": not no_sums, "slot_weights": not no_weights,
    }  # fmt: skip
    options = frozenset(name for name, on in used.items() if on)
    device = one_device("paged_attention", q=q, pages=pages, table=table.rows)
    if layout.codec is not None:
        return Needs(device, (q.dtype,), (layout.k_dim, layout.v_dim), options | {f"codec_{layout.codec.name}"})
    return Needs(device, (q.dtype, layout.dtype), (layout.k_dim, layout.v_dim), options)


reference = _attention_reference.paged_attention
_OP = Op("paged_attention", reference)

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float16: (2e-3, 2e-3)}


def _case(
    make: Make, q_lens: list[int], kv_lens: list[int] | list[list[int]], *, heads: tuple[int, int] = (4, 2),
    dims: tuple[int, int] = (16, 16), page_size: int = 4, per_head: bool = True, shared_blocks: int = 0,
    pages_dtype: torch.dtype | None = None, sinks: bool = False, alibi: bool = False, garbage: bool = False,
    prob_sums: bool = False, prob_counts: bool = False, weighted: Sequence[int] = (), **options: object,
) -> dict[str, object]:  # fmt: skip
    layout = PageLayout(page_size, *dims, pages_dtype or make.dtype)
    table, num_pages = layer_table(
        make, q_lens, kv_lens, page_size=page_size, num_kv_heads=heads[1], per_head=per_head,
        shared_blocks=shared_blocks,
    )  # fmt: skip
    pages = make.pages(num_pages, layout)
    if garbage:
        _spoil_unused(pages, layout, table)
    sums, counts = (
        torch.full((*table.kv_lens.shape, table.max_kv_len), 7.0, device=make.device) if asked else None
        for asked in (prob_sums, prob_counts)
    )
    return {
        "q": make.normal(sum(q_lens), heads[0], dims[0]),
        "pages": pages,
        "layout": layout,
        "table": table,
        "scale": dims[0] ** -0.5,
        "sinks": make.normal(heads[0]) if sinks else None,
        "alibi_slopes": make.normal(heads[0], dtype=torch.float32).abs() if alibi else None,
        "prob_sums": sums,
        "prob_counts": counts,
        "slot_weights": [_weights(make, heads[1], width) for width in weighted] or None,
        **options,
    }


def _weights(make: Make, num_heads: int, width: int) -> Tensor | None:
    """Of slots that count up to a hundred times; None for 0."""
    return 2 * make.normal(num_heads, width, dtype=torch.float32).abs() if width else None


def _spoil_unused(pages: Tensor, layout: PageLayout, table: LayerTable) -> None:
    """Fills every slot that no sequence holds with nan and inf."""
    used = torch.zeros(len(pages), layout.page_size, dtype=torch.bool)
    for (seq, head), length in [(place, int(table.kv_lens[place])) for place in _places(table)]:
        slots = torch.arange(length)
        row = table.rows[int(table.row_of[seq, head])].cpu().long() + int(table.offset[seq, head])
        used[row[slots // layout.page_size], slots % layout.page_size] = True
    hidden = ~used.to(pages.device)[..., None]
    layout.k(pages).masked_fill_(hidden, torch.nan)
    layout.v(pages).masked_fill_(hidden, torch.inf)


def _places(table: LayerTable) -> list[tuple[int, int]]:
    num_seqs, num_heads = table.kv_lens.shape
    return [(s, h) for s in range(num_seqs) for h in range(num_heads)]


_DECODE = ([1, 1, 1, 1], [9, 1, 33, 16])
_EVICTED = ([1, 1, 3, 1], [[5, 40], [1, 2], [3, 21], [17, 17]])
_MIXED = ([1, 7, 0, 1, 12], [30, 7, 5, 4, 25])
_ROWS: dict[str, tuple[tuple[list[int], Any], dict[str, Any]]] = {
    "decode one": (([1], [21]), {}),
    "decode equal": (([1, 1], [12, 12]), {}),
    "decode ragged": (_DECODE, {}),
    "decode, lengths far apart": (([1, 1, 1], [3, 700, 5]), {}),
    "decode by runs": (_DECODE, {"per_head": False}),
    "decode shared prefix": (([1, 1, 1], [13, 20, 9]), {"per_head": False, "shared_blocks": 2}),
    "decode evicted": (([1, 1], [[5, 40], [1, 17]]), {}),
    "decode, a head kept nothing": (([1, 1], [[0, 4], [3, 0]]), {}),
    "decode among garbage": (_DECODE, {"garbage": True}),
    "decode among garbage, a head kept nothing": (([1, 1], [[0, 4], [3, 0]]), {"garbage": True}),
    "decode window": (_DECODE, {"window": 6}),
    "decode window, equal": (([1, 1], [19, 19]), {"window": 6}),
    "decode window, long": (([1, 1], [61, 30]), {"window": 5, "garbage": True}),
    "decode soft cap": (_DECODE, {"soft_cap": 3.0}),
    "decode sinks": (_DECODE, {"sinks": True, "garbage": True}),
    "decode alibi": (_DECODE, {"alibi": True}),
    "decode weights": (_DECODE, {"weighted": [9, 0, 40, 5], "garbage": True}),
    "decode weights, evicted": (([1, 1], [[5, 40], [1, 17]]), {"weighted": [7, 17]}),
    "decode weights, shared prefix": (
        ([1, 1], [600, 580]),
        {"per_head": False, "shared_blocks": 140, "weighted": [0, 9]},
    ),
    "decode weights, window, soft cap": (_DECODE, {"weighted": [9, 0, 40, 5], "window": 6, "soft_cap": 3.0}),
    "decode weights, sinks, alibi": (_DECODE, {"weighted": [9, 0, 40, 5], "sinks": True, "alibi": True}),
    "decode weights, sums": (_DECODE, {"weighted": [9, 0, 40, 5], "prob_sums": True, "prob_counts": True}),
    "decode weights, GQA 14:2": (_DECODE, {"weighted": [3, 0, 33, 9], "heads": (14, 2), "dims": (64, 64)}),
    "decode weights, long": (([1], [700]), {"weighted": [300], "heads": (14, 2), "dims": (64, 64), "page_size": 16}),
    "decode sums": (_DECODE, {"prob_sums": True, "garbage": True}),
    "decode sums, evicted, window": (_EVICTED, {"prob_sums": True, "window": 6}),
    "decode counts": (_DECODE, {"prob_sums": True, "prob_counts": True, "garbage": True}),
    "decode odd width": (_DECODE, {"dims": (20, 12)}),
    "decode MHA": (_DECODE, {"heads": (3, 3)}),
    "decode MQA": (_DECODE, {"heads": (5, 1)}),
    "decode GQA 14:2": (_DECODE, {"heads": (14, 2), "dims": (64, 64), "page_size": 16}),
    "decode k wider": (_DECODE, {"dims": (32, 16)}),
    "decode v wider": (_DECODE, {"dims": (16, 32)}),
    "decode latent": (_DECODE, {"heads": (4, 1), "dims": (32, 0), "v_dim": 16}),
    "decode bfloat16 pages": (_DECODE, {"pages_dtype": torch.bfloat16}),
    "chunk first": (([9], [9]), {}),
    "chunk first, long": (([300], [300]), {}),
    "chunk later": (([9], [30]), {}),
    "chunk later, tiled": (([270], [301]), {}),
    "chunk window": (([40], [61]), {"window": 7}),
    "chunk window, tiled": (([270], [270]), {"window": 33}),
    "chunk window wider than all": (([9], [9]), {"window": 50}),
    "chunk longer than its slots": (([5, 3], [[2, 5], [0, 3]]), {}),
    "chunk evicted": (([6, 2], [[6, 19], [11, 2]]), {"garbage": True}),
    "chunk interleaved lengths": (([4], [[9, 5, 9, 5]]), {"heads": (8, 4)}),
    "chunk soft cap": (([9], [30]), {"soft_cap": 3.0}),
    "chunk sinks": (([9, 4], [9, 30]), {"sinks": True}),
    "chunk sinks, window": (([40], [61]), {"sinks": True, "window": 7}),
    "chunk alibi": (([9, 4], [9, 30]), {"alibi": True}),
    "chunk weights": (([9, 4], [9, 30]), {"weighted": [0, 28], "garbage": True}),
    "chunk weights, evicted": (([6, 2], [[6, 19], [11, 2]]), {"weighted": [13, 9]}),
    "chunk weights, tiled": (([270], [301]), {"weighted": [31]}),
    "chunk weights, tiled, wide": (
        ([70], [301]),
        {"weighted": [200], "heads": (14, 2), "dims": (64, 64), "page_size": 16},
    ),
    "chunk weights, window, alibi": (([40], [61]), {"weighted": [50], "window": 7, "alibi": True}),
    "chunk weights, sums": (([9, 4], [9, 30]), {"weighted": [0, 28], "prob_sums": True}),
    "chunk sums": (([9, 4], [9, 30]), {"prob_sums": True}),
    "chunk sums of the last": (([9, 4, 1], [9, 30, 12]), {"prob_sums": True, "sum_last": 5}),
    "chunk sums of the last, each its own": (([9, 4, 1], [9, 30, 12]), {"prob_sums": True, "sum_last": [5, 0, 1]}),
    "chunk sums of the last, tiled": (([270], [301]), {"prob_sums": True, "sum_last": 32, "window": 100}),
    "chunk counts of the last": (
        ([270, 5], [301, [40, 5]]),
        {"prob_sums": True, "prob_counts": True, "sum_last": 32, "window": 100},
    ),
    "chunk latent": (([9, 4], [9, 30]), {"heads": (4, 1), "dims": (32, 0), "v_dim": 16}),
    "chunk k wider": (([9, 4], [9, 30]), {"dims": (32, 16)}),
    "mixed": (_MIXED, {}),
    "mixed evicted": (_EVICTED, {"garbage": True}),
    "mixed everything": (
        _MIXED,
        {"window": 6, "soft_cap": 3.0, "sinks": True, "alibi": True, "prob_sums": True, "sum_last": 3},
    ),
    "no queries": (([0, 0], [4, 9]), {}),
    "no sequences": (([], []), {}),
}


def _row(name: str, lens: tuple[list[int], Any], options: dict[str, Any]) -> Case:
    writes = tuple(numbers for numbers in ("prob_sums", "prob_counts") if numbers in options)
    return Case(name, lambda make: _case(make, *lens, **options), writes)


CASES = [_row(name, lens, options) for name, (lens, options) in _ROWS.items()]
