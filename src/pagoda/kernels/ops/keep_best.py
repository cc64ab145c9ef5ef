"""Which slots of every head stay: some whatever they are worth, the rest by score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def keep_best(
    scores: Tensor,
    lens: Tensor,
    budgets: Tensor,
    *,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
) -> Tensor:
    """bool ``[..., N]``: of each row the ``budgets`` best slots; of equals the newest. -inf never stays.

    scores float32 ``[..., N]``; lens and budgets int64 ``[...]``: slots that the row holds, and that stay at most. The
    first ``sinks`` and the newest ``recent`` slots come before all others, which need a score of ``least``. With
    ``pool`` (odd) a slot's score is the mean over that many neighbours, where what is beyond the ends counts 0.
    """
    key = (scores.dtype, scores.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(scores.device.type, (scores.dtype,)))
    keep: Tensor = run(scores, lens, budgets, sinks=sinks, recent=recent, least=least, pool=pool)
    return keep


def reference(
    scores: Tensor,
    lens: Tensor,
    budgets: Tensor,
    *,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
) -> Tensor:
    slots = scores.shape[-1]
    if pool > 1:
        scores = torch.nn.functional.avg_pool1d(scores.flatten(0, -2)[:, None], pool, 1, pool // 2).view(scores.shape)
    at = torch.arange(slots, device=scores.device)
    sure = (at < sinks) | (at >= lens[..., None] - recent)
    scores = scores.masked_fill(scores < least, -math.inf).masked_fill(sure, math.inf)
    scores = scores.masked_fill(at >= lens[..., None], -math.inf)
    order = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    chosen = at < budgets[..., None]
    keep = chosen.new_zeros(chosen.shape).scatter(-1, slots - 1 - order, chosen)
    kept: Tensor = keep & (scores > -math.inf)
    return kept


_OP = Op("keep_best", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(
    make: Make, shape: tuple[int, ...], lens: list[int], budgets: list[int], steps: int = 0, **options: object
) -> dict[str, object]:
    """``steps``: scores are rounded to that many parts of one, so that many are equal."""
    scores = make.normal(*shape)
    scores = (scores * steps).round() / steps if steps else scores
    rows = shape[:-1]
    return {
        "scores": scores if "pool" in options else scores.masked_fill(scores < -1.5, -math.inf),
        "lens": make.ints(lens, torch.int64).view(rows),
        "budgets": make.ints(budgets, torch.int64).view(rows),
        **options,
    }


CASES = cross(
    "best", _case,
    {"shape": (2, 3, 40), "lens": [40, 31, 7, 40, 0, 1], "budgets": [12, 12, 12, 40, 3, 0]},
    {"shape": (4, 33), "lens": [33, 20, 5, 33], "budgets": [9, 9, 9, 2], "steps": 2, "sinks": 2, "recent": 4},
    {"shape": (2, 17), "lens": [17, 12], "budgets": [8, 8], "steps": 2, "recent": 3, "least": 0.0},
    {"shape": (2, 3, 20), "lens": [20, 20, 9, 20, 1, 20], "budgets": [9, 9, 9, 9, 9, 9], "recent": 3, "pool": 5},
    {"shape": (1, 0), "lens": [0], "budgets": [4]},
)  # fmt: skip
