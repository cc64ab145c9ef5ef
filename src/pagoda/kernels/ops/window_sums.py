"""What slots receive from the newest queries, computed from those: all layers and heads of a sequence in one call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from .read_slots import reference as read_slots

MEAN = 0.99999  # of a query's mean probability, as in ``paged_attention``'s counts


def window_sums(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    lens: Tensor,
    positions: Tensor,
    queries: Tensor,
    num_seen: int,
    *,
    scale: float,
    soft_cap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 ``[L, H, N]`` each: attention that each slot gets from the queries, summed over them and their heads; how
    many of those gave it at least the mean over the slots that they see; and the most that it got from one token's
    queries, summed over their heads.

    rows int32 ``[L * H, W]`` page ids, as far as ``lens`` int64 ``[L, H]`` slots; positions int64 ``[L, H, N]``;
    queries ``[L, w, Hq, Dk]`` of the tokens before ``num_seen``, oldest first: each sees what is not later.
    """
    code = layout.codec_name
    key = (pages.dtype, code, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(
        key, Needs(pages.device.type, (pages.dtype,), options=frozenset({f"codec_{code}"} if code else ()))
    )
    found: tuple[Tensor, Tensor, Tensor] = run(
        pages, layout, rows, lens, positions, queries, num_seen, scale=scale, soft_cap=soft_cap
    )
    return found


def reference(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    lens: Tensor,
    positions: Tensor,
    queries: Tensor,
    num_seen: int,
    *,
    scale: float,
    soft_cap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    (layers, heads, slots), width = positions.shape, queries.shape[1]
    received, wanted, largest = torch.empty(3, layers, heads, slots, device=pages.device).unbind()
    newest = num_seen - width + torch.arange(width, device=pages.device)
    beyond = torch.arange(slots, device=pages.device) >= lens[..., None]
    for layer in range(layers):
        mine = rows[layer * heads : (layer + 1) * heads, : -(-slots // layout.page_size)]
        keys, _ = read_slots(pages, layout, mine, lens.new_zeros(heads), slots, values=False)
        asked = queries[layer].float().unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # [H, G, w, Dk]
        logits = (asked @ keys[:, None].transpose(2, 3)) * scale
        if soft_cap > 0:
            logits = soft_cap * (logits / soft_cap).tanh()
        hidden = (positions[layer, :, None] > newest[:, None]) | beyond[layer, :, None]  # [H, w, N]
        probs = logits.masked_fill(hidden[:, None], -math.inf).softmax(-1).nan_to_num(0.0)
        seen = (probs > 0).sum(-1, keepdim=True).clamp(min=1)
        received[layer] = probs.sum((1, 2))
        wanted[layer] = (probs * seen >= MEAN).sum((1, 2)).float()
        largest[layer] = probs.sum(1).amax(1)
    return received, wanted, largest


_OP = Op("window_sums", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-5, 1e-5), torch.float16: (1e-5, 1e-5)}


def _case(
    make: Make, lens: list[list[int]], dims: tuple[int, int], window: int, group: int, **options: object
) -> dict[str, object]:
    layers, heads, most = len(lens), len(lens[0]), max(map(max, lens))
    layout, width, rows = PageLayout(4, *dims, make.dtype), -(-most // 4) + 1, layers * heads
    seen, places = 2 * most + 3, torch.randperm(2 * most + 3, generator=torch.Generator().manual_seed(most))
    return {
        "pages": make.pages(rows * width, layout), "layout": layout,
        "rows": make.permutation(rows * width).view(-1, width).to(make.device),
        "lens": make.ints(lens, torch.int64),
        "positions": places[:most].sort().values.expand(layers, heads, most).contiguous().to(make.device),
        "queries": make.normal(layers, window, heads * group, dims[0], dtype=torch.float32),
        "num_seen": seen, "scale": 0.3, **options,
    }  # fmt: skip


CASES = [
    Case("heads", lambda make: _case(make, [[30, 30], [30, 30]], (16, 8), 8, 2)),
    Case("uneven", lambda make: _case(make, [[70, 7, 1], [69, 64, 33]], (12, 8), 5, 3)),
    Case("latent", lambda make: _case(make, [[18]], (20, 0), 3, 1)),
    Case("capped", lambda make: _case(make, [[21, 40]], (16, 16), 20, 1, soft_cap=2.0)),
    Case("one query", lambda make: _case(make, [[130, 130]], (64, 64), 1, 7)),
]
