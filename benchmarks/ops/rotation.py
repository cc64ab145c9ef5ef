"""Queries and keys turned by their positions, and keys and values written into pages of each format.

torch turns halves as transformers does, and writes with ``index_copy_``, which knows no codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pagoda.kernels.layout import PageLayout
from pagoda.kernels.memory import empty_bytes
from pagoda.kernels.ops import kv_write, rotary
from pagoda.kv.codecs.base import CODECS

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

PAGE_SIZE, TOKENS, ROUNDS = 16, (1, 32, 1024), 15
POOL_BYTES = 64 << 20
FORMATS = ("bfloat16", "int8", "int4")


def rows(heads: tuple[int, int], dim: int, clock: str = "wall") -> Iterator[Measured]:
    """heads: (query heads, kv-heads)."""
    for tokens in TOKENS:
        q, k, v = (torch.randn(tokens, num, dim).bfloat16() for num in (heads[0], heads[1], heads[1]))
        cos, sin = torch.randn(2, tokens, dim // 2).bfloat16()
        ways: dict[str, Callable[[int], object]] = {
            "pagoda": lambda number, a=(q, k, cos, sin): rotary(*a),
            "torch": lambda number, a=(q, k, cos, sin): (_turned(a[0], *a[2:]), _turned(a[1], *a[2:])),
            REFERENCE: lambda number, a=(q, k, cos, sin): plain("rotary")(*a),
        }
        moved = 2 * (q.nbytes + k.nbytes) + cos.nbytes + sin.nbytes
        yield Measured({"op": "rotary", "tokens": tokens}, in_turn(ways, ROUNDS, clock), moved)
        for format in FORMATS:
            ways, written = _writes(k, v, format)
            about = {"op": f"KV write, {format}", "tokens": tokens}
            yield Measured(about, in_turn(ways, ROUNDS, clock), k.nbytes + v.nbytes + written)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (torch.cat([angles, angles], -1)[:, None] for angles in (cos, sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _writes(k: Tensor, v: Tensor, format: str) -> tuple[dict[str, Callable[[int], object]], int]:
    """Both ways, and bytes that are written: tokens of one sequence, whose pages lie anywhere."""
    tokens, heads, dim = k.shape
    codec = None if format == "bfloat16" else CODECS.get(format)
    layout = PageLayout(PAGE_SIZE, dim, dim, torch.uint8 if codec else torch.bfloat16, codec)
    pages = empty_bytes((POOL_BYTES // layout.page_bytes, layout.page_bytes), k.device).zero_().view(layout.dtype)
    runs = torch.randperm(len(pages) // heads)[: -(-tokens // PAGE_SIZE)].to(torch.int32) * heads
    at = torch.arange(tokens)
    ids = runs[at // PAGE_SIZE][:, None] + torch.arange(heads, dtype=torch.int32)
    slots = (at % PAGE_SIZE).to(torch.int32)[:, None].expand(ids.shape).contiguous()
    ways: dict[str, Callable[[int], object]] = {"pagoda": lambda number: kv_write(k, v, pages, layout, ids, slots)}
    places, both = (ids.long() * PAGE_SIZE + slots).flatten(), torch.empty(2, len(pages) * PAGE_SIZE, dim).bfloat16()

    def copied(number: int) -> None:
        both[0].index_copy_(0, places, k.flatten(0, 1))
        both[1].index_copy_(0, places, v.flatten(0, 1))

    ways["torch"] = copied
    ways[REFERENCE] = lambda number: plain("kv_write")(k, v, pages, layout, ids, slots)
    return ways, tokens * heads * layout.page_bytes // PAGE_SIZE
