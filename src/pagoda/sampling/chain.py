"""The fused chain: steps 4 to 9 (temperature, filters, draw) for a ragged batch, every row with its own parameters.

Rows are grouped by the least work that decides them:

* greedy: one argmax;
* full: temperature and min_p only, no ranking, a draw over the vocabulary;
* ranked: top_k, top_p or typical. The likeliest `WIDTHS[0]` candidates are tried first. A candidate set is *complete*
  when the filters cut inside it, so that no token outside could have been kept; rows that are not complete are drawn
  again among more candidates, at last among all. The result never depends on the width: it is exact, only cheaper.

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

from .draws import draw_full, draw_narrow, wide_dtype
from .params import SamplingParams
from .state import SampleState
from .uniform import uniform

WIDTHS = (64, 1024)
"""Candidate counts tried before the whole vocabulary."""
NO_TOKEN = -1
"""Code of a row in which no token is possible: every logit is -inf, or one is NaN or +inf."""
_AGAIN = -2


@dataclass(frozen=True)
class _Group:
    """Rows that take the same way: ``way`` greedy, full or ranked, ``width`` candidates, ``has_k`` if with top_k."""

    way: str
    width: int = 0
    has_k: bool = False


def choose(logits: Tensor, states: Sequence[SampleState]) -> list[int]:
    """logits [N, V] float32 after the edits (read only) -> N token ids, or NO_TOKEN where none is possible."""
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
                todo[_Group("ranked", _next_width(group.width, vocab_size), group.has_k)].append(row)
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
    if params.typical_p < 1.0:  # alone it may keep rare tokens and drop likely ones: only the whole vocabulary decides
        return _Group("ranked", vocab_size)
    return _Group("full")


def _next_width(more_than: int, vocab_size: int) -> int:
    """The first width above ``more_than``; the whole vocabulary when the widths are used up or not well below it."""
    return next((width for width in WIDTHS if more_than < width < vocab_size // 4), vocab_size)


def _run(group: _Group, rows: list[int], logits: Tensor, states: Sequence[SampleState]) -> Tensor:
    """One group's ids or codes, int64 [len(rows)] on the device."""
    everything = len(rows) == len(logits)
    x = logits if everything else logits[torch.tensor(rows, device=logits.device)]
    if group.way == "greedy":
        best, ids = x.max(dim=-1)  # the first of equal maxima
    else:
        knobs = _Knobs([states[row] for row in rows], x)
        best = x.amax(-1)
        ids = _ranked(x, best, knobs, group) if group.way == "ranked" else _full(x, best, knobs)
    return torch.where(best.isfinite(), ids, NO_TOKEN)


class _Knobs:
    """The rows' parameters as columns [n, 1] on the device, in which 'off' is a value that cuts nothing."""

    def __init__(self, states: Sequence[SampleState], like: Tensor) -> None:
        params = [state.params for state in states]
        device, wide = like.device, wide_dtype(like.device)

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device)[:, None]

        self.temperature = column([p.temperature for p in params], torch.float32)
        self.top_k = column([p.top_k for p in params], torch.int64)
        self.has_top_p = any(p.top_p < 1.0 for p in params)
        self.top_p = column([p.top_p if p.top_p < 1.0 else math.inf for p in params], wide)
        self.has_min_p = any(p.min_p > 0.0 for p in params)
        self.log_min_p = column([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params], torch.float32)
        self.has_typical = any(p.typical_p < 1.0 for p in params)
        self.typical_p = column([p.typical_p if p.typical_p < 1.0 else math.inf for p in params], wide)
        self.u = column([uniform(s.seed, s.index, s.num_output) for s in states], wide)[:, 0]


def _full(x: Tensor, best: Tensor, knobs: _Knobs) -> Tensor:
    """Rows without ranking: x [n, V], best [n] -> drawn ids [n]."""
    scaled = (x - best[:, None]).div_(knobs.temperature)
    if knobs.has_min_p:
        scaled.masked_fill_(scaled < knobs.log_min_p, -math.inf)
    return draw_full(scaled.softmax(-1), knobs.u)


def _ranked(x: Tensor, best: Tensor, knobs: _Knobs, group: _Group) -> Tensor:
    """Rows that rank tokens: x [n, V], best [n] -> drawn ids [n], _AGAIN where the candidates are not complete."""
    values, ids = x.topk(group.width) if group.width < x.shape[1] else x.sort(descending=True)
    scaled = (values - best[:, None]) / knobs.temperature
    weights = scaled.to(wide_dtype(x.device)).exp()  # [n, K] relative to the likeliest token's 1.0
    keep, complete = _filter(x, best, values, scaled, weights, knobs, group)
    if knobs.has_typical:
        keep &= _typical(scaled, weights * keep, knobs.typical_p)
    weights = weights * keep
    if group.width == x.shape[1]:
        return draw_full(torch.zeros_like(x).scatter_(1, ids, weights.to(x.dtype)), knobs.u)
    ids, order = ids.sort(-1)
    drawn = ids.gather(1, draw_narrow(weights.gather(1, order), knobs.u)[:, None])[:, 0]
    return torch.where(complete, drawn, _AGAIN)


def _filter(
    x: Tensor, best: Tensor, values: Tensor, scaled: Tensor, weights: Tensor, knobs: _Knobs, group: _Group
) -> tuple[Tensor, Tensor]:
    """top_k, top_p and min_p over candidates [n, K] in descending order -> keep [n, K], complete [n] bool."""
    last = values[:, -1:]
    complete = last == -math.inf  # all outside are forbidden
    if group.has_k:
        kth = values.gather(1, knobs.top_k - 1)
        keep = values >= kth
        complete |= last < kth
        total = (weights * keep).sum(-1, keepdim=True)
    else:
        keep = torch.ones_like(values, dtype=torch.bool)
        total = _full_mass(x, best, knobs) if knobs.has_top_p else weights
    if knobs.has_top_p:
        kept = weights * keep
        inside = keep & (kept.cumsum(-1) - kept < knobs.top_p * total)
        edge = values.gather(1, (inside.sum(-1, keepdim=True) - 1).clamp(min=0))
        keep &= values >= edge
        if not group.has_k:  # with top_k, its own cut must lie inside: the mass that top_p is a part of hangs on it
            complete |= last < edge
    if knobs.has_min_p:
        keep &= scaled >= knobs.log_min_p
        if not group.has_k:
            complete |= scaled[:, -1:] < knobs.log_min_p
    return keep, complete[:, 0]


def _full_mass(x: Tensor, best: Tensor, knobs: _Knobs) -> Tensor:
    """Sum over the vocabulary of the weights relative to the likeliest token, [n, 1] wide.

    Read off a softmax, which torch vectorizes better than exp and sum: 2.9 ms against 6.0 ms (32 x 151936, one core).
    """
    probs = (x - best[:, None]).div_(knobs.temperature).softmax(-1)
    return 1.0 / probs.amax(-1, keepdim=True).to(wide_dtype(x.device))


def _typical(scaled: Tensor, weights: Tensor, mass: Tensor) -> Tensor:
    """Which candidates [n, K] are locally typical; ``weights`` are 0 for those already dropped."""
    total = weights.sum(-1, keepdim=True)
    surprise = total.log() - scaled
    entropy = (weights / total * surprise).nansum(-1, keepdim=True)
    distance = (surprise - entropy).abs().masked_fill(weights == 0, math.inf)
    ranked, order = distance.sort(-1)
    probs = weights.gather(1, order) / total
    num_inside = (probs.cumsum(-1) - probs < mass).sum(-1, keepdim=True).clamp(min=1)
    return distance <= ranked.gather(1, num_inside - 1)
