"""One step's ragged batch as plain arrays, for kernels that run all layers at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .layout import PageLayout


@dataclass(frozen=True, slots=True)
class StepArrays:
    """All int32 on the CPU. Sizes: L layers, S sequences, H kv-heads, T tokens, R rows of one layer.

    L1 is 1 where all layers share an array (pages of layer l are then ``l * H`` further on), else L. `ops.LayerTable`
    says what they mean.
    """

    pages: Tensor  # [num_pages, page_elems]
    layout: PageLayout
    rows: Tensor  # [L1, R, max_pages]
    row_of: Tensor  # [S, H]
    offset: Tensor  # [L, S, H]
    kv_lens: Tensor  # [L1, S, H]
    q_starts: Tensor  # [S + 1]
    page_ids: Tensor  # [L1, T, H] pages that the tokens are written to
    slots: Tensor  # [L1, T, H]
