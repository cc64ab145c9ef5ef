"""The definition of paged attention in plain torch, on any device.

Everything is written over *pairs* (sequence, kv-head): a pair has its own page list and its own length, and the G query
heads of its group read it together (K and V are never repeated). Two ways through:

* decode: all sequences with one query, gathered into ``[pairs, slots, dim]`` and attended in one call;
* chunk: one sequence at a time, its heads together (per length, when eviction made them differ), tiled over queries.

Softmax is float32 always: through `scaled_dot_product_attention`, which keeps float32 scores, or written out where an
option needs the scores themselves (soft cap, sinks, alibi, probability sums).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..layout import PageLayout
from ._paged import gather, pairs_by_length

if TYPE_CHECKING:
    from ._table import LayerTable

QUERY_TILE = 256  # queries of a chunk attended together: the mask of a tile over 8k slots is 4 MiB in bfloat16
MEAN = 0.99999  # of a query's mean probability: what is equal but for rounding counts as the mean
SCORE_ELEMS = 1 << 21  # float32 scores alive at once in the written-out path (8 MiB)


@dataclass(slots=True)
class _Call:
    """The arguments that stay the same through one call."""

    pages: Tensor
    layout: PageLayout
    table: LayerTable
    scale: float
    window: int
    soft_cap: float
    sinks: Tensor | None
    slopes: Tensor | None
    v_dim: int  # columns of the result
    prob_sums: Tensor | None
    prob_counts: Tensor | None
    sum_last: int | Sequence[int]
    weights: Tensor | None  # [S * Hkv, max_kv_len]
    group: int  # query heads per kv-head
    dtype: torch.dtype  # of K and V once gathered

    @property
    def written_out(self) -> bool:
        """Whether an option needs the scores, so that the fused attention of torch cannot serve."""
        options = (self.sinks, self.slopes, self.prob_sums, self.weights)
        return self.soft_cap > 0 or any(option is not None for option in options)

    @property
    def slot_bytes(self) -> int:
        return (self.layout.k_dim + self.layout.v_dim) * self.dtype.itemsize


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
    num_tokens, num_q_heads, _ = q.shape
    num_seqs, num_kv_heads = table.kv_lens.shape
    dtype = q.dtype if layout.codec is not None else torch.promote_types(q.dtype, pages.dtype)
    call = _Call(
        pages, layout, table, scale, window, soft_cap, sinks, alibi_slopes,
        layout.v_dim if v_dim is None else v_dim, prob_sums, prob_counts, sum_last,
        None if slot_weights is None else _side_by_side(slot_weights, table),
        num_q_heads // num_kv_heads, dtype,
    )  # fmt: skip
    for numbers in (prob_sums, prob_counts):
        if numbers is not None:
            numbers.zero_()
    lens = table.kv_lens_cpu if table.kv_lens_cpu is not None else table.kv_lens.tolist()
    q_lens = [stop - start for start, stop in pairwise(table.q_starts_cpu)]
    decode = [s for s, n in enumerate(q_lens) if n == 1]
    if len(decode) == num_seqs:  # a pure decode step: no token is moved
        return _decode(call, q.to(dtype), decode, lens).to(q.dtype)
    out = q.new_zeros(num_tokens, num_q_heads, call.v_dim)
    if decode:
        tokens = torch.tensor([table.q_starts_cpu[s] for s in decode], device=q.device)
        out.index_copy_(0, tokens, _decode(call, q.index_select(0, tokens).to(dtype), decode, lens).to(q.dtype))
    for s, n in enumerate(q_lens):
        if n > 1:
            start = table.q_starts_cpu[s]
            _chunk(call, q[start : start + n].to(dtype), s, lens[s], out[start : start + n])
    return out


# ---- decode: one query a sequence, all of them at once ------------------------------------------------------------


def _decode(call: _Call, q: Tensor, seqs: list[int], lens: list[list[int]]) -> Tensor:
    """q ``[S', Hq, k_dim]`` of the sequences ``seqs`` -> ``[S', Hq, v_dim]``."""
    num_seqs, num_q_heads, k_dim = q.shape
    num_kv_heads = num_q_heads // call.group
    grouped = q.reshape(num_seqs * num_kv_heads, call.group, k_dim)
    pair_lens = [length for s in seqs for length in lens[s]]
    everyone = len(seqs) == len(lens)
    groups = list(pairs_by_length(pair_lens, call.slot_bytes))
    if len(groups) == 1 and everyone:
        out = _decode_pairs(call, grouped, None, pair_lens)
        return out.view(num_seqs, num_q_heads, call.v_dim)
    out = grouped.new_empty(num_seqs * num_kv_heads, call.group, call.v_dim)
    for members in groups:
        rows = torch.tensor(members, device=q.device)
        pairs = torch.tensor(
            [seqs[m // num_kv_heads] * num_kv_heads + m % num_kv_heads for m in members], device=q.device
        )
        out[rows] = _decode_pairs(call, grouped[rows], pairs, [pair_lens[m] for m in members])
    return out.view(num_seqs, num_q_heads, call.v_dim)


def _decode_pairs(call: _Call, q: Tensor, pairs: Tensor | None, pair_lens: list[int]) -> Tensor:
    """q ``[N, G, k_dim]``; ``pairs [N]`` flat (sequence, head) numbers, None for all; -> ``[N, G, v_dim]``."""
    longest, shortest = max(pair_lens, default=0), min(pair_lens, default=0)
    if longest == 0:
        return q.new_zeros(*q.shape[:2], call.v_dim)
    if longest == shortest:  # no mask: the slots that count are a plain slice
        first, visible = max(0, longest - call.window) if call.window else 0, None
        k, v = _gather_range(call, pairs, first, longest)
        slots = torch.arange(first, longest, device=q.device)[None]
    else:
        k, v, slots, visible = _gather_ragged(call, pairs, longest)
    if call.written_out:
        return _decode_written_out(call, q, k, v, pairs, slots, visible)
    out = _fused(call, q[:, None], k[:, None], v if v is None else v[:, None], visible)
    if visible is not None and (q.device.type != "cpu" or not math.isfinite(out.sum(dtype=torch.float32).item())):
        # A masked slot may hold anything, and 0 * inf is nan: hide the slots themselves. On a CPU this happens only
        # after the result was seen to be bad (the check costs 5 us, hiding always would cost a pass over K and V).
        k, v = _hide(k, visible), v if v is None else _hide(v, visible)
        out = _fused(call, q[:, None], k[:, None], v if v is None else v[:, None], visible)
        if shortest == 0 or q.device.type != "cpu":
            out = out.masked_fill(~visible.any(-1)[:, None, None, None], 0)
    return out[:, 0]


def _gather_range(call: _Call, pairs: Tensor | None, first: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """Slots ``first:stop`` of each pair: k ``[N, stop-first, k_dim]`` and v."""
    size = call.layout.page_size
    block = first // size
    row_of, offset = _of_pairs(call.table.row_of, pairs), _of_pairs(call.table.offset, pairs)
    ids = call.table.rows[:, block : -(-stop // size)].index_select(0, row_of) + offset[:, None]
    k, v = gather(call.pages, call.layout, ids, call.dtype)
    inside = slice(first - block * size, stop - block * size)
    return k[:, inside], None if v is None else v[:, inside]


def _gather_ragged(call: _Call, pairs: Tensor | None, longest: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """k, v, slot numbers ``[N, L]`` and which are visible ``[N, L]``, for pairs of different lengths."""
    table, size, device = call.table, call.layout.page_size, call.pages.device
    lens = _of_pairs(table.kv_lens, pairs)[:, None]
    row_of, offset = _of_pairs(table.row_of, pairs), _of_pairs(table.offset, pairs)
    num_blocks = -(-longest // size)
    if call.window:  # pages before a window need not be there
        span = min((call.window + size - 2) // size + 1, num_blocks)
        block = (lens - call.window).clamp_min(0) // size
        blocks = block + torch.arange(span, dtype=torch.int32, device=device)
        ids = table.rows[row_of.long()[:, None], blocks.clamp_max(num_blocks - 1).long()] + offset[:, None]
        slots = block * size + torch.arange(span * size, dtype=torch.int32, device=device)
    else:
        ids = table.rows[:, :num_blocks].index_select(0, row_of) + offset[:, None]
        slots = torch.arange(num_blocks * size, dtype=torch.int32, device=device)[None]
    visible = slots < lens
    if call.window:
        visible &= slots >= lens - call.window
    return *gather(call.pages, call.layout, ids, call.dtype), slots, visible


def _decode_written_out(
    call: _Call, q: Tensor, k: Tensor, v: Tensor | None, pairs: Tensor | None, slots: Tensor, visible: Tensor | None
) -> Tensor:
    num_pairs, num_kv_heads = q.shape[0], call.table.kv_lens.shape[1]
    flat = torch.arange(num_pairs, device=q.device) if pairs is None else pairs
    heads = flat % num_kv_heads
    bias = None
    if call.slopes is not None:
        last = _of_pairs(call.table.kv_lens, pairs)[:, None] - 1
        bias = _per_group(call.slopes, heads, call.group)[:, :, None] * (slots - last)[:, None, :]
    if call.weights is not None:
        width = call.weights.shape[1]
        logs = call.weights[flat[:, None], slots.clamp_max(width - 1).long()].masked_fill(slots >= width, 0)[:, None]
        bias = logs if bias is None else bias + logs
    sinks = None if call.sinks is None else _per_group(call.sinks, heads, call.group)
    hidden = None
    if visible is not None:
        hidden = ~visible[:, None, :]
        v = None if v is None else _hide(v, visible)
        k = _hide(k, visible)
    out, probs = _attend(call, q, k, v, hidden, bias, sinks)
    if call.prob_sums is not None:
        rows = call.prob_sums.view(-1, call.prob_sums.shape[-1])
        columns = slots.clamp_max(rows.shape[1] - 1).long().expand(num_pairs, -1)
        rows.index_put_((flat[:, None], columns), probs.sum(1), accumulate=True)
        if call.prob_counts is not None:
            seen = slots.shape[1] if visible is None else visible.sum(1)[:, None, None]
            wanted = probs * seen >= MEAN
            rows = call.prob_counts.view(-1, rows.shape[-1])
            rows.index_put_((flat[:, None], columns), wanted.sum(1).float(), accumulate=True)
    return out


# ---- chunk: many queries of one sequence --------------------------------------------------------------------------


def _chunk(call: _Call, q: Tensor, seq: int, head_lens: list[int], out: Tensor) -> None:
    """q ``[n, Hq, k_dim]`` of one sequence; writes out ``[n, Hq, v_dim]`` (zeros on entry)."""
    num_kv_heads = len(head_lens)
    grouped = q.view(len(q), num_kv_heads, call.group, -1).permute(1, 2, 0, 3)  # [Hkv, G, n, k_dim]
    result = out.view(len(out), num_kv_heads, call.group, -1).permute(1, 2, 0, 3)  # a view of out
    for length in sorted(set(head_lens)):
        same = [h for h, other in enumerate(head_lens) if other == length]
        for members in pairs_by_length([length] * len(same), call.slot_bytes):
            heads = [same[m] for m in members]
            if heads == list(range(heads[0], heads[-1] + 1)):
                span = slice(heads[0], heads[-1] + 1)
                _chunk_heads(call, grouped[span], seq, heads, length, result[span])
            else:
                part = result[heads]
                _chunk_heads(call, grouped[heads], seq, heads, length, part)
                result[heads] = part


def _chunk_heads(call: _Call, q: Tensor, seq: int, heads: list[int], length: int, out: Tensor) -> None:
    """q ``[H', G, n, k_dim]``, all these heads of one length; writes out ``[H', G, n, v_dim]``."""
    skip = max(0, q.shape[2] - length)  # queries that see no slot at all keep their zeros
    q, out = q[:, :, skip:], out[:, :, skip:]
    num_queries = q.shape[2]
    if num_queries == 0:
        return
    before = length - num_queries  # slots that even the first query sees, besides its own
    low = max(0, before - call.window + 1) if call.window else 0
    pairs = torch.tensor([seq * call.table.kv_lens.shape[1] + h for h in heads], device=q.device)
    k, v = _gather_range(call, pairs, low, length)
    if not call.written_out and before == 0 and (call.window == 0 or call.window >= length):
        out.copy_(_fused(call, q, _spread(k, q), None if v is None else _spread(v, q), None, causal=True))
        return
    tile = QUERY_TILE
    if call.written_out:
        tile = max(1, min(tile, SCORE_ELEMS // (q.shape[0] * call.group * k.shape[1])))
    hidden = _hidden(tile, length - low, call.window, q.device)
    mask = None if call.written_out else torch.zeros_like(hidden, dtype=q.dtype).masked_fill_(hidden, -math.inf)
    for start in range(0, num_queries, tile):
        stop = min(start + tile, num_queries)
        left = max(low, before + start - call.window + 1) if call.window else 0
        right = before + stop  # slots left:right matter to queries start:stop
        kt, vt = k[:, left - low : right - low], None if v is None else v[:, left - low : right - low]
        corner = (slice(tile - (stop - start), None), slice(hidden.shape[1] - (right - left), None))
        if mask is None:
            last = call.sum_last if isinstance(call.sum_last, int) else call.sum_last[seq]
            summed = max(0, num_queries - last - start) if last else 0
            place = (seq, heads, left, right, summed)
            part = _chunk_written_out(call, q[:, :, start:stop], kt, vt, hidden[corner], place)
        else:
            part = _fused(
                call, q[:, :, start:stop], _spread(kt, q), None if vt is None else _spread(vt, q), mask[corner]
            )
        out[:, :, start:stop] = part


def _hidden(queries: int, slots: int, window: int, device: torch.device) -> Tensor:
    """Which slots a query does not see ``[queries, slots]``, aligned at the corner: the last query's own slot is last.

    Every tile of a chunk is the lower right corner of this one matrix.
    """
    ahead = torch.arange(slots, device=device)[None] - torch.arange(slots - queries, slots, device=device)[:, None]
    hidden = ahead > 0
    return hidden | (ahead <= -window) if window else hidden


def _chunk_written_out(
    call: _Call, q: Tensor, k: Tensor, v: Tensor | None, hidden: Tensor, place: tuple[int, list[int], int, int, int]
) -> Tensor:
    """place: sequence, heads, slots left:right, and from which query on probabilities are summed."""
    seq, heads, left, right, summed = place
    num_heads, group, num_queries, k_dim = q.shape
    index = torch.tensor(heads, device=q.device)
    bias = sinks = None
    if call.slopes is not None:
        query_slots = torch.arange(right - num_queries, right, device=q.device)
        distance = torch.arange(left, right, device=q.device)[None] - query_slots[:, None]
        bias = _per_group(call.slopes, index, group)[:, :, None, None] * distance
        bias = bias.reshape(num_heads, group * num_queries, -1)
    if call.weights is not None:
        logs = call.weights[seq * call.table.kv_lens.shape[1] + index, left:right][:, None]
        bias = logs if bias is None else bias + logs
    if call.sinks is not None:
        sinks = _per_group(call.sinks, index, group)[:, :, None].expand(-1, -1, num_queries).reshape(num_heads, -1)
    rows = q.reshape(num_heads, group * num_queries, k_dim)
    out, probs = _attend(call, rows, k, v, hidden.repeat(group, 1)[None], bias, sinks)
    if call.prob_sums is not None:
        probs = probs.view(num_heads, group, num_queries, -1)[:, :, summed:]
        call.prob_sums[seq, index, left:right] += probs.sum((1, 2))
        if call.prob_counts is not None:
            wanted = probs * (~hidden[summed:]).sum(-1)[:, None] >= MEAN
            call.prob_counts[seq, index, left:right] += wanted.sum((1, 2))
    return out.view(num_heads, group, num_queries, -1)


# ---- the two softmaxes --------------------------------------------------------------------------------------------


def _fused(call: _Call, q: Tensor, k: Tensor, v: Tensor | None, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """q ``[N, G, M, D]``, k and v ``[N, G, L, D]``, mask broadcast over them or visible slots ``[N, L]``."""
    v = k if v is None else v
    if mask is not None and mask.dtype == torch.bool:
        mask = mask[:, None, None, :]
    width = max(k.shape[-1], v.shape[-1])  # torch's fused CPU kernel wants one head size: pad the narrower with zeros
    q, k, v = (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale)[..., : call.v_dim]


def _attend(
    call: _Call,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    hidden: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The formula, in float32: q ``[N, M, D]``, k ``[N, L, D]``; bias, hidden -> ``[N, M, L]``; sinks ``[N, M]``.

    Returns the result ``[N, M, v_dim]`` in q's dtype and the probabilities ``[N, M, L]``.
    """
    keys = k.float()
    scores = torch.matmul(q.float() * call.scale, keys.transpose(1, 2))
    if call.soft_cap > 0:
        scores = call.soft_cap * torch.tanh(scores / call.soft_cap)
    if bias is not None:
        scores += bias
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    top = scores.amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.float()[..., None])
    top = top.masked_fill(top == -math.inf, 0)  # a row that sees nothing: all its weights are 0
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.float()[..., None] - top)
    probs = weights / total.clamp_min(torch.finfo(torch.float32).tiny)
    values = (keys if v is None else v.float())[..., : call.v_dim]
    return torch.matmul(probs, values).to(q.dtype), probs


def _side_by_side(slot_weights: Sequence[Tensor | None], table: LayerTable) -> Tensor:
    """The logarithms of all pairs, float32 ``[S * Hkv, max_kv_len]``, 0 where none are given."""
    num_heads, num_slots = table.kv_lens.shape[1], max(1, table.max_kv_len)
    logs = torch.zeros(len(slot_weights), num_heads, num_slots, device=table.kv_lens.device)
    for of_seq, given in zip(logs, slot_weights, strict=True):
        if given is not None:
            width = min(num_slots, given.shape[1])
            of_seq[:, :width] = given[:, :width]
    return logs.flatten(0, 1)


def _of_pairs(tensor: Tensor, pairs: Tensor | None) -> Tensor:
    """A ``[S, Hkv]`` tensor at these flat pair numbers (all when None)."""
    flat = tensor.reshape(-1)
    return flat if pairs is None else flat.index_select(0, pairs)


def _per_group(per_q_head: Tensor, kv_heads: Tensor, group: int) -> Tensor:
    """``[Hq]`` -> float32 ``[N, G]``: the values of each kv-head's query heads."""
    return per_q_head.float().view(-1, group)[kv_heads]


def _hide(x: Tensor, visible: Tensor) -> Tensor:
    """x ``[N, L, D]`` with zeros where a slot does not count."""
    return x.masked_fill(~visible[..., None], 0)


def _spread(x: Tensor, q: Tensor) -> Tensor:
    """``[H', L, D]`` seen by every query head of the group ``[H', G, L, D]``, without copying."""
    return x[:, None].expand(-1, q.shape[1], -1, -1)
