"""The plain twin of the paged view: one contiguous K and V for each layer and sequence, attention written out.

Slow and simple on purpose: parity tests hold models, pages and kernels against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DenseCache:
    """K and V of all sequences, by (layer, sequence id): ``[slots, Hkv, dim]``. V is None for latent KV."""

    def __init__(self) -> None:
        self.kv: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}

    def extend(self, layer: int, seq_id: int, k: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Appends k ``[n, Hkv, k_dim]`` and v; returns everything held."""
        held = self.kv.get((layer, seq_id))
        if held is not None:
            k = torch.cat([held[0], k])
            v = None if v is None or held[1] is None else torch.cat([held[1], v])
        self.kv[layer, seq_id] = (k, v)
        return k, v

    def drop(self, seq_id: int) -> None:
        """Forgets a sequence."""
        self.kv = {key: value for key, value in self.kv.items() if key[1] != seq_id}


class DenseView:
    """The KV view over a ``DenseCache`` for one step: sequence ``seq_ids[s]`` brings ``q_lens[s]`` tokens.

    ``prob_sums[layer][s]`` float32 [Hkv, slots] is there after every ``attend``.
    """

    def __init__(self, cache: DenseCache, seq_ids: Sequence[int], q_lens: Sequence[int]) -> None:
        self._cache, self._seq_ids, self._q_lens = cache, list(seq_ids), list(q_lens)
        self.prob_sums: dict[int, dict[int, Tensor]] = {}

    def arrays(self) -> None:
        """No pages here: layers come one by one."""

    in_program = False

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        """q ``[T, Hq, Dk]``, k ``[T, Hkv, Dk]``, v ``[T, Hkv, Dv]`` -> ``[T, Hq, Dv]`` in q's dtype."""
        outs, start = [], 0
        self.prob_sums[layer] = {}
        for s, (seq_id, num) in enumerate(zip(self._seq_ids, self._q_lens, strict=True)):
            chunk = slice(start, start + num)
            keys, values = self._cache.extend(layer, seq_id, k[chunk], v[chunk])
            assert values is not None
            probs = _probabilities(q[chunk], keys, scale, window, soft_cap, sinks, alibi_slopes)
            outs.append(_mix(probs, values, q.dtype))
            self.prob_sums[layer][s] = probs.view(keys.shape[1], -1, keys.shape[0]).sum(1)
            start += num
        return torch.cat(outs)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """MLA: q ``[T, Hq, k_dim]``, latent ``[T, 1, k_dim]``, V its first ``v_dim`` columns -> ``[T, Hq, v_dim]``."""
        outs, start = [], 0
        for seq_id, num in zip(self._seq_ids, self._q_lens, strict=True):
            chunk = slice(start, start + num)
            keys, _ = self._cache.extend(layer, seq_id, latent[chunk], None)
            probs = _probabilities(q[chunk], keys, scale, 0, 0.0, None, None)
            outs.append(_mix(probs, keys[..., :v_dim], q.dtype))
            start += num
        return torch.cat(outs)


def attend_dense(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """Attention written out: q ``[n, Hq, Dk]``, the last n of keys ``[slots, Hkv, Dk]``, values -> ``[n, Hq, Dv]``."""
    return _mix(_probabilities(q, keys, scale, window, soft_cap, sinks, alibi_slopes), values, q.dtype)


def _probabilities(
    q: Tensor, keys: Tensor, scale: float, window: int, soft_cap: float, sinks: Tensor | None, slopes: Tensor | None
) -> Tensor:
    """Attention weights ``[Hq, n, slots]`` in float32 of q ``[n, Hq, Dk]``, the last n of keys ``[slots, Hkv, Dk]``."""
    num, num_q_heads = q.shape[:2]
    slots, group = keys.shape[0], num_q_heads // keys.shape[1]
    keys = keys.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    if soft_cap > 0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    query_slot = torch.arange(slots - num, slots, device=q.device)[:, None]
    key_slot = torch.arange(slots, device=q.device)[None, :]
    if slopes is not None:
        scores = scores + slopes.float()[:, None, None] * (key_slot - query_slot)
    hidden = key_slot > query_slot
    if window > 0:
        hidden = hidden | (key_slot <= query_slot - window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is None:
        return scores.softmax(-1)
    sink = sinks.float()[:, None, None].expand(-1, num, 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


def _mix(probs: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """probs ``[Hq, n, slots]`` over values ``[slots, Hkv, Dv]`` -> ``[n, Hq, Dv]``."""
    values = values.float().repeat_interleave(probs.shape[0] // values.shape[1], dim=1)
    return torch.einsum("hqk,khd->qhd", probs, values).to(dtype)
