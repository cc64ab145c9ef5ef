"""Upper bounds of query times key over boxes around keys: how page selections judge a page without reading its keys.

A box holds the channel-wise largest and smallest of some keys; the product of a query with any key inside is at most
``max(q, 0) . largest + min(q, 0) . smallest``.

Papers: Quest (arXiv:2406.10774, section 3.3), LServe (arXiv:2502.14866, section 3.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def box_scores(queries: Tensor, boxes: Tensor) -> Tensor:
    """queries float32 ``[H, G, D]``, boxes float32 ``[H, P, B, 2 D]`` (largest, then smallest) -> float32 ``[H, P]``:

    the largest bound over the page's B boxes and the G query heads. P may be 0.
    """
    key = (queries.dtype, boxes.dtype, queries.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(queries.device.type, (queries.dtype, boxes.dtype)))
    out: Tensor = run(queries, boxes)
    return out


def reference(queries: Tensor, boxes: Tensor) -> Tensor:
    split = torch.cat([queries.clamp(min=0), queries.clamp(max=0)], -1)
    bounds = split[:, None] @ boxes.transpose(2, 3)  # [H, P, G, B]
    return bounds.amax((2, 3))


_OP = Op("box_scores", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-5)}


def _case(make: Make, heads: int, group: int, pages: int, parts: int, dim: int, room: int = 0) -> dict[str, object]:
    one, other = make.normal(heads, pages + room, parts, dim), make.normal(heads, pages + room, parts, dim, scale=0.5)
    boxes = torch.cat([torch.maximum(one, other), torch.minimum(one, other)], -1)
    return {"queries": make.normal(heads, group, dim), "boxes": boxes[:, :pages]}


CASES = cross(
    "boxes", _case,
    {"heads": 2, "group": 7, "pages": 9, "parts": 1, "dim": 64},
    {"heads": 1, "group": 1, "pages": 3, "parts": 4, "dim": 20},
    {"heads": 3, "group": 9, "pages": 5, "parts": 2, "dim": 13, "room": 4},
    {"heads": 2, "group": 16, "pages": 0, "parts": 1, "dim": 8},
)  # fmt: skip
