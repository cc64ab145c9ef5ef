"""The fused chain: steps 6 to 11 (temperature, filters, draw) for a ragged batch, every row with its own parameters.

Rows are grouped by the least work that decides them:

* greedy: one argmax;
* full: temperature and min_p only: no ranking, a draw over the vocabulary;
* ranked: top_k, top_p. The likeliest `WIDTHS[0]` candidates are tried first. A candidate set is *complete* when the
  filters cut inside it, so that no token outside could have been kept; rows whose set is not complete are drawn again
  among more candidates, at last among all. The result does not depend on the width: it is exact, only cheaper;
* typical: typical_p alone, likewise, with the most typical tokens as candidates.

Row codes travel in the id tensor itself, so that a step reads the device back once (again only for incomplete rows).
`pagoda.sampling.plain` is the plain twin.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.ops import greedy, likeliest
from .draws import draw_full, draw_narrow, wide_dtype
from .knobs import Knobs
from .params import SamplingParams
from .scratch import slices
from .state import SampleState

WIDTHS = (64, 1024, 16384)
"""Candidate counts tried before the whole vocabulary: 3, 9, 42 and 412 ms to rank (32 x 151936 on one core)."""
KERNEL_WIDTH = 1024
"""So many are found by `ops.likeliest`, in 40 to 280 us a row of 151936."""
NO_TOKEN = -1
"""Code of a row in which no token is possible: every logit is -inf, or one is NaN or +inf."""
_AGAIN = -2


@dataclass(frozen=True)
class _Group:
    """Rows that take the same way: greedy, full, ranked or typical, among ``width`` candidates."""

    way: str
    width: int = 0
    has_k: bool = False

    def bytes_per_row(self, vocab_size: int) -> int:
        """Working memory of a row, a copy of its logits included; generous (a test measures it)."""
        per_logit = {"greedy": 4, "full": 20, "ranked": 20, "typical": 40}[self.way]
        if self.way == "ranked" and self.has_k and self.width <= KERNEL_WIDTH and 64 * self.width < vocab_size:
            per_logit = 4  # the kernel keeps few of the logits; of a smaller vocabulary all, with their ids
        return per_logit * vocab_size + 60 * self.width


def choose(logits: Tensor, states: Sequence[SampleState]) -> list[int]:
    """logits [N, V] float32 after the edits (read only) -> N token ids, or NO_TOKEN where none is possible."""
    if all(state.params.is_greedy for state in states):
        return greedy(logits).tolist()
    vocab_size = logits.shape[1]
    chosen = [NO_TOKEN] * len(states)
    todo: dict[_Group, list[int]] = defaultdict(list)
    for row, state in enumerate(states):
        todo[_group_of(state.params, vocab_size)].append(row)
    while todo:
        ids = torch.cat([_run(group, rows, logits, states) for group, rows in todo.items()]).tolist()
        order = [(group, row) for group, rows in todo.items() for row in rows]
        todo = defaultdict(list)
        for (group, row), token_id in zip(order, ids, strict=True):
            if token_id == _AGAIN:
                wider = _Group(group.way, _next_width(group.width, vocab_size), group.has_k)
                todo[wider].append(row)
            else:
                chosen[row] = token_id
    return chosen


def _group_of(params: SamplingParams, vocab_size: int) -> _Group:
    if params.is_greedy:
        return _Group("greedy")
    if 0 < params.top_k < vocab_size:
        return _Group("ranked", _next_width(params.top_k, vocab_size), has_k=True)
    if params.top_p < 1.0 or (params.typical_p < 1.0 and params.min_p > 0.0):
        return _Group("ranked", _next_width(0, vocab_size))
    if params.typical_p < 1.0:
        return _Group("typical", _next_width(0, vocab_size))
    return _Group("full")


def _next_width(more_than: int, vocab_size: int) -> int:
    """The first width above ``more_than``; the whole vocabulary when the widths are used up or not well below it."""
    return next((width for width in WIDTHS if more_than < width < vocab_size // 4), vocab_size)


def _run(group: _Group, rows: list[int], logits: Tensor, states: Sequence[SampleState]) -> Tensor:
    """One group's ids or codes, int64 [len(rows)] on the device."""
    if group.way == "greedy" and len(rows) == len(logits):
        return greedy(logits)
    parts = slices(rows, group.bytes_per_row(logits.shape[1]), logits.device.type)
    return torch.cat([_run_slice(group, part, logits, states) for part in parts])


def _run_slice(group: _Group, rows: Sequence[int], logits: Tensor, states: Sequence[SampleState]) -> Tensor:
    x = logits[rows[0] : rows[0] + len(rows)]  # a view, in the common case that the rows are neighbours
    if rows[-1] - rows[0] != len(rows) - 1:
        x = logits[torch.tensor(rows, device=logits.device)]
    if group.way == "greedy":
        return greedy(x)
    knobs = Knobs.of([states[row] for row in rows], x)
    if group.way == "ranked":
        return _ranked(x, knobs, group)
    best = x.amax(-1, keepdim=True)
    ids = _full(x, best, knobs) if group.way == "full" else _typical(x, best, knobs, group)
    return torch.where(best.isfinite()[:, 0], ids, NO_TOKEN)


def _full(x: Tensor, best: Tensor, knobs: Knobs) -> Tensor:
    """Rows without ranking: x [n, V], best [n, 1] -> drawn ids [n]."""
    scaled = (x - best).div_(knobs.temperature)
    if knobs.has_min_p:
        scaled.masked_fill_(scaled < knobs.log_min_p, -math.inf)
    return draw_full(scaled.softmax(-1), knobs.u)


def _ranked(x: Tensor, knobs: Knobs, group: _Group) -> Tensor:
    """Rows that rank tokens by likelihood: x [n, V] -> drawn ids [n], _AGAIN or NO_TOKEN."""
    values, ids = _first(x, group.width, largest=True)
    best = values[:, :1]
    scaled = (values - best) / knobs.temperature
    weights = scaled.to(wide_dtype(x.device)).exp()  # [n, K] relative to the likeliest token's 1.0
    total = _full_mass(x, best, knobs) if knobs.has_top_p and not group.has_k else None
    keep, complete = _cut(values, scaled, weights, total, knobs, group.has_k)
    weights = weights * keep
    if knobs.has_typical:
        weights *= _most_typical(scaled, weights, knobs.typical_p)
    return torch.where(best.isfinite()[:, 0], _draw_candidates(x, ids, weights, complete, knobs.u), NO_TOKEN)


def _cut(
    values: Tensor, scaled: Tensor, weights: Tensor, total: Tensor | None, knobs: Knobs, has_k: bool
) -> tuple[Tensor, Tensor]:
    """top_k, top_p and min_p over candidates [n, K] in falling order -> keep [n, K], complete [n, 1].

    ``total`` [n, 1] is the mass of the whole row; needed for top_p without top_k. With top_k only its own cut can make
    the set complete, for top_p's share is one of what top_k kept.
    """
    last = values[:, -1:]
    complete = last == -math.inf  # all outside are forbidden
    keep = torch.ones_like(values, dtype=torch.bool)
    if has_k:
        kth = values.gather(1, knobs.top_k - 1)
        keep, complete = values >= kth, complete | (last < kth)
        total = (weights * keep).sum(-1, keepdim=True)
    if knobs.has_top_p and total is not None:
        kept = weights * keep
        inside = keep & (kept.cumsum(-1) - kept < knobs.top_p * total)
        edge = values.gather(1, (inside.sum(-1, keepdim=True) - 1).clamp(min=0))
        keep = keep & (values >= edge)
        complete = complete | ((last < edge) & (not has_k))
    if knobs.has_min_p:
        keep = keep & (scaled >= knobs.log_min_p)
        complete = complete | ((scaled[:, -1:] < knobs.log_min_p) & (not has_k))
    return keep, complete


def _most_typical(scaled: Tensor, weights: Tensor, mass: Tensor) -> Tensor:
    """Which candidates [n, K] are locally typical; ``weights`` are 0 for those already dropped."""
    total = weights.sum(-1, keepdim=True)
    surprise = total.log() - scaled
    entropy = (weights / total * surprise).nansum(-1, keepdim=True)
    distance = (surprise - entropy).abs().masked_fill(weights == 0, math.inf)
    ranked, order = distance.sort(-1)
    probs = weights.gather(1, order) / total
    return distance <= _typical_edge(ranked, probs, mass)


def _typical(x: Tensor, best: Tensor, knobs: Knobs, group: _Group) -> Tensor:
    """Rows with typical_p alone, ranked by |surprise - entropy|: x [n, V], best [n, 1] -> drawn ids [n], or _AGAIN."""
    log_probs = (x - best).div_(knobs.temperature).log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(-1, keepdim=True)
    distance, ids = _first(log_probs.add_(entropy).abs_(), group.width, largest=False)
    weights = probs.gather(1, ids).to(wide_dtype(x.device))
    edge = _typical_edge(distance, weights, knobs.typical_p)
    return _draw_candidates(x, ids, weights * (distance <= edge), edge < distance[:, -1:], knobs.u)


def _typical_edge(distance: Tensor, probs: Tensor, mass: Tensor) -> Tensor:
    """Distance [n, 1] of the last token kept, of tokens in rising distance [n, K] with their probabilities."""
    num_inside = (probs.cumsum(-1) - probs < mass).sum(-1, keepdim=True).clamp(min=1)
    return distance.gather(1, num_inside - 1)


def _first(keys: Tensor, width: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The ``width`` largest or smallest of each row in order, and their ids."""
    if largest and width <= KERNEL_WIDTH and width < keys.shape[1]:
        return likeliest(keys, width)
    if width < keys.shape[1]:
        return torch.topk(keys, width, largest=largest)
    return torch.sort(keys, descending=largest)


def _full_mass(x: Tensor, best: Tensor, knobs: Knobs) -> Tensor:
    """Sum over the vocabulary of the weights relative to the likeliest token, [n, 1] wide.

    Read off a softmax, which torch vectorizes better than exp and sum: 2.9 ms against 6.0 ms (32 x 151936, one core).
    """
    probs = (x - best).div_(knobs.temperature).softmax(-1)
    return 1.0 / probs.amax(-1, keepdim=True).to(wide_dtype(x.device))


def _draw_candidates(x: Tensor, ids: Tensor, weights: Tensor, complete: Tensor, u: Tensor) -> Tensor:
    """ids, weights [n, K] and complete [n, 1] -> drawn ids [n]; _AGAIN where tokens outside might have been kept."""
    if ids.shape[1] == x.shape[1]:
        return draw_full(torch.zeros_like(x).scatter_(1, ids, weights.to(x.dtype)), u)
    ids, order = ids.sort(-1)
    drawn = ids.gather(1, draw_narrow(weights.gather(1, order), u)[:, None])
    return torch.where(complete, drawn, _AGAIN)[:, 0]
