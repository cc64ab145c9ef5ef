"""Whole pages copied, kept slots moved up, beside torch's copy of as many bytes that lie together: memory's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pagoda.kernels.layout import PageLayout
from pagoda.kernels.memory import empty_bytes
from pagoda.kernels.ops import close_gaps, copy_pages
from pagoda.kv.codecs.base import CODECS

from .frame import Measured
from .timing import in_turn

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
        for what, way, num_bytes in (("whole pages", *_copies(pages, layout)), ("kept slots", *_gaps(pages, layout))):
            ways = {"pagoda": way, "torch": _together(num_bytes)}
            about = {"what moves": what, "pages": format, "MiB": num_bytes >> 20}
            yield Measured(about, in_turn(ways, ROUNDS, 1, clock), 2 * num_bytes)


def _copies(pages: torch.Tensor, layout: PageLayout) -> tuple[Callable[[int], object], int]:
    """One half of the pages, in no order, to the other half."""
    src, dst = torch.randperm(len(pages)).to(torch.int32).view(2, -1)
    return lambda number: copy_pages(pages, src, dst), len(src) * layout.page_bytes


def _gaps(pages: torch.Tensor, layout: PageLayout) -> tuple[Callable[[int], object], int]:
    """Heads of 4096 slots over pages in no order, of which a random half of the slots stays."""
    blocks = min(SLOTS // PAGE_SIZE, len(pages))
    table = torch.randperm(len(pages))[: len(pages) // blocks * blocks].to(torch.int32).view(-1, blocks).contiguous()
    keep = torch.rand(len(table), blocks * PAGE_SIZE) < 0.5
    return lambda number: close_gaps(pages, layout, table, keep), int(keep.sum()) * layout.page_bytes // PAGE_SIZE


def _together(num_bytes: int) -> Callable[[int], object]:
    source, target = empty_bytes((2, num_bytes), torch.device("cpu")).zero_()
    return lambda number: target.copy_(source)
