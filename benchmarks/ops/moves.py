"""Whole pages copied, kept slots moved up, beside torch's copy of as many bytes that lie together: memory's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pagoda.kernels.layout import PageLayout
from pagoda.kernels.memory import empty_bytes
from pagoda.kernels.ops import close_gaps, copy_pages
from pagoda.kv.codecs.base import CODECS

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

NUM_BYTES = 128 << 20  # of pages: many times the caches
FORMATS = ("bfloat16", "int8", "int4")
PAGE_SIZE, SLOTS, ROUNDS = 16, 4096, 15


def rows(dim: int, clock: str = "wall") -> Iterator[Measured]:
    """Times of "pagoda" and "torch" for each format, in both ways of moving; what moves is read and written."""
    for format in FORMATS:
        codec = None if format == "bfloat16" else CODECS.get(format)
        layout = PageLayout(PAGE_SIZE, dim, dim, torch.uint8 if codec else torch.bfloat16, codec)
        shape = max(2, NUM_BYTES // layout.page_bytes) // 2 * 2, layout.page_bytes
        pages = empty_bytes(shape, torch.device("cpu")).zero_().view(layout.dtype)  # on huge pages, as a large pool is
        for what, move in (("whole pages", _copies), ("kept slots", _gaps)):
            way, reference, num_bytes = move(pages, layout)
            ways = {"pagoda": way, "torch": _together(num_bytes), REFERENCE: reference}
            about = {"what moves": what, "pages": format, "MiB": num_bytes >> 20}
            yield Measured(about, in_turn(ways, ROUNDS, clock), 2 * num_bytes)


Way = Callable[[int], object]


def _copies(pages: torch.Tensor, layout: PageLayout) -> tuple[Way, Way, int]:
    """One half of the pages, in no order, to the other half."""
    src, dst = torch.randperm(len(pages)).to(torch.int32).view(2, -1)
    ways = (lambda number: copy_pages(pages, src, dst), lambda number: plain("copy_pages")(pages, src, dst))
    return *ways, len(src) * layout.page_bytes


def _gaps(pages: torch.Tensor, layout: PageLayout) -> tuple[Way, Way, int]:
    """Heads of 4096 slots over pages in no order, of which a random half of the slots stays."""
    blocks = min(SLOTS // PAGE_SIZE, len(pages))
    table = torch.randperm(len(pages))[: len(pages) // blocks * blocks].to(torch.int32).view(-1, blocks).contiguous()
    keep = torch.rand(len(table), blocks * PAGE_SIZE) < 0.5
    given = pages, layout, table, keep
    ways = (lambda number: close_gaps(*given), lambda number: plain("close_gaps")(*given))
    return *ways, int(keep.sum()) * layout.page_bytes // PAGE_SIZE


def _together(num_bytes: int) -> Way:
    source, target = empty_bytes((2, num_bytes), torch.device("cpu")).zero_()
    return lambda number: target.copy_(source)
