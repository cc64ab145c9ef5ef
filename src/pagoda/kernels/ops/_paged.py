"""Reading pages back into plain arrays: the part that every paged op's reference shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..layout import PageLayout

# Transient bytes that one gather may take: a bound on the reference's scratch, whatever the context length.
GATHER_BYTES = 32 << 20


def gather(
    pages: Tensor, layout: PageLayout, ids: Tensor, dtype: torch.dtype, values: bool = True
) -> tuple[Tensor, Tensor | None]:
    """K and V of runs of pages, as contiguous slots.

    ids ``[N, B]`` int; returns k ``[N, B*page_size, k_dim]`` and v ``[N, B*page_size, v_dim]`` (None for latent pages,
    and without ``values``), decoded where there is a codec and cast to ``dtype``. Two index_selects over half pages:
    7 us a page list of 16, where advanced indexing takes 19.
    """
    num, blocks = ids.shape
    flat, shape = ids.reshape(-1), (num, blocks * layout.page_size)
    dims = (layout.k_dim, layout.v_dim)[: 2 if layout.v_dim else 1]

    def plane(index: int) -> Tensor:
        at, width = layout.planes[index]
        return pages[:, at : at + layout.page_size * width].index_select(0, flat).view(*shape, width)

    def numbers(index: int) -> Tensor:
        if layout.codec is None:
            return plane(index).to(dtype)
        return layout.codec.decode(plane(index), plane(len(dims) + index), dims[index]).to(dtype)

    return numbers(0), numbers(1) if values and layout.v_dim else None


def pairs_by_length(lens: Sequence[int], bytes_per_slot: int) -> Iterator[list[int]]:
    """Splits pairs into groups to be gathered together: alike in length, and under GATHER_BYTES when padded.

    One group holds lengths within a factor of two of its longest (plus 256 slots), so padding at most doubles the work.
    """
    order = sorted(range(len(lens)), key=lens.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        longest = max(lens[order[start]], 1)
        room = max(1, GATHER_BYTES // (longest * bytes_per_slot))
        stop = start + 1
        while stop < len(order) and stop - start < room and lens[order[stop]] * 2 + 256 >= longest:
            stop += 1
        yield sorted(order[start:stop])
        start = stop
