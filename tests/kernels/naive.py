"""Paged attention one query at a time in float64 numpy: slow, obvious, and independent of torch."""

import numpy as np


def naive_attention(
    q, pages, layout, table, *, scale, window=0, soft_cap=0.0, sinks=None, alibi_slopes=None, v_dim=None,
    prob_sums=None, prob_counts=None, sum_last=0, slot_weights=None,
):  # fmt: skip
    """Returns the result and the probability sums, whether asked for or not."""
    num_tokens, num_q_heads, _ = q.shape
    num_seqs, num_kv_heads = table.kv_lens.shape
    group = num_q_heads // num_kv_heads
    keys, values = (x.double().cpu().numpy() for x in (layout.k(pages), layout.v(pages)))
    if v_dim is not None:
        values = keys[..., :v_dim]
    q = q.double().cpu().numpy()
    out = np.zeros((num_tokens, num_q_heads, values.shape[-1]))
    sums = np.zeros((num_seqs, num_kv_heads, table.max_kv_len))
    for seq in range(num_seqs):
        start, stop = table.q_starts_cpu[seq : seq + 2]
        for head in range(num_q_heads):
            kv_head = head // group
            length = int(table.kv_lens[seq, kv_head])
            row = table.rows[int(table.row_of[seq, kv_head])].cpu().numpy() + int(table.offset[seq, kv_head])
            for i in range(stop - start):
                last = length - (stop - start) + i
                slots = np.arange(max(0, last - window + 1) if window else 0, last + 1)
                if len(slots) == 0:
                    continue
                where = row[slots // layout.page_size], slots % layout.page_size
                scores = keys[where] @ q[start + i, head] * scale
                if soft_cap:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                if alibi_slopes is not None:
                    scores = scores + float(alibi_slopes[head]) * (slots - last)
                if slot_weights is not None and slot_weights[seq] is not None:
                    logs = slot_weights[seq][kv_head].double().cpu().numpy()
                    scores = scores + np.where(slots < len(logs), logs[np.minimum(slots, len(logs) - 1)], 0.0)
                top = scores.max()
                total = np.exp(scores - top).sum()
                if sinks is not None:
                    total += np.exp(float(sinks[head]) - top)
                probs = np.exp(scores - top) / total
                out[start + i, head] = probs @ values[where]
                summed = sum_last if isinstance(sum_last, int) else sum_last[seq]
                if not summed or i >= stop - start - summed:
                    sums[seq, kv_head, slots] += probs
    return out, sums
