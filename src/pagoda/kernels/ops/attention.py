"""Attention over head pages: decode and prefill chunks of a ragged batch in one call.

Shapes (T tokens of S sequences, Hq query heads over Hkv kv-heads, G = Hq / Hkv)::

    q        [T, Hq, k_dim]      query head h reads kv-head h // G
    pages    [num_pages, page_elems] of layout.dtype
    returns  [T, Hq, v_dim]      in q's dtype; softmax and its sums are float32

Query i (0-based) of a chunk of n sees slots ``0 .. kv_len - n + i``. Slots, not positions: after eviction a head's kept
tokens lie close together, and each (sequence, kv-head) has its own length. A query that sees no slot yields zeros.
Slots beyond a head's length are never read into the result, whatever bytes they hold.

Papers: PagedAttention (arXiv:2309.06180), online softmax (arXiv:1805.02867), FlashAttention (arXiv:2205.14135),
grouped queries (arXiv:2305.13245), sinks (arXiv:2309.17453), ALiBi (arXiv:2108.12409), latent KV (arXiv:2405.04434).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..dispatch import Needs, Op
from ..layout import PageLayout
from . import _attention_reference


@dataclass(frozen=True, slots=True)
class LayerTable:
    """One layer's view of the ragged batch; tensors are int32 on the pages' device.

    Page id of slot block j of (s, h): ``rows[row_of[s, h], j] + offset[s, h]``.
    The host copies exist so that no op waits for the device.
    """

    rows: Tensor  # [R, max_pages]  run bases (page ids); unused cells 0
    row_of: Tensor  # [S, Hkv]      row of each (sequence, kv-head)
    offset: Tensor  # [S, Hkv]      added to the run base
    kv_lens: Tensor  # [S, Hkv]     slots to attend, the chunk's own tokens included (they are the last q_len)
    q_starts: Tensor  # [S + 1]     tokens of sequence s are q_starts[s]:q_starts[s + 1]
    q_starts_cpu: list[int]
    max_q_len: int
    max_kv_len: int
    kv_lens_cpu: list[list[int]] | None = None  # kv_lens on the host; without it the reference reads the tensor


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

    Raises ConfigError for latent pages without ``v_dim`` or query heads that do not divide among the kv-heads.
    """
    key = (
        q.dtype, pages.device.type, layout, window > 0, soft_cap > 0.0, sinks is None, alibi_slopes is None,
        v_dim, prob_sums is None, q.shape[1], table.row_of.shape[1],
    )  # fmt: skip
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(q, pages, layout, table, *key[3:9]))
    return run(
        q, pages, layout, table, scale=scale, window=window, soft_cap=soft_cap, sinks=sinks,
        alibi_slopes=alibi_slopes, v_dim=v_dim, prob_sums=prob_sums,
    )  # fmt: skip


def _needs(
    q: Tensor, pages: Tensor, layout: PageLayout, table: LayerTable,
    window: bool, soft_cap: bool, no_sinks: bool, no_alibi: bool, v_dim: int | None, no_sums: bool,
) -> Needs:  # fmt: skip
    """What this call asks for; a call that no implementation could serve is refused here, once per kind of call."""
    num_q_heads, num_kv_heads = q.shape[1], table.row_of.shape[1]
    if num_q_heads % num_kv_heads:
        raise ConfigError(f"{num_q_heads} query heads over {num_kv_heads} kv-heads; must be a multiple")
    if (layout.v_dim == 0) != (v_dim is not None):
        raise ConfigError(f"v_dim={v_dim} with pages of v_dim {layout.v_dim}: give v_dim for latent pages, only there")
    used = {
        "window": window, "soft_cap": soft_cap, "sinks": not no_sinks, "alibi": not no_alibi,
        "latent": v_dim is not None, "prob_sums": not no_sums,
    }  # fmt: skip
    options = frozenset(name for name, on in used.items() if on)
    return Needs(pages.device.type, (q.dtype, layout.dtype), (layout.k_dim, layout.v_dim), options)


reference = _attention_reference.paged_attention
_OP = Op("paged_attention", reference)

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float16: (2e-3, 2e-3)}
