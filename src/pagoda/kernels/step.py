"""One step's ragged batch as plain arrays, for kernels that run all layers at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .layout import PageLayout


@dataclass(frozen=True, slots=True)
class PageChoice:
    """Sequences of one token that read only some of their pages: those whose boxes around keys promise most
    (`ops.box_scores`), the newest full page, and the page under way. C sequences choose.

    Addresses are those of contiguous float32 tensors, which must outlive the step.
    """

    seqs: npt.NDArray[np.int32]  # [C] of the batch
    boxes: npt.NDArray[np.int32]  # [C] boxes of a page
    sketches: npt.NDArray[np.int64]  # [L, C] addresses of [H, room, boxes, 2 * k_dim]
    room: npt.NDArray[np.int64]  # [L, C]
    full: npt.NDArray[np.int32]  # [L, C, H] full pages
    keep: npt.NDArray[np.int32]  # [L, C, H] how many of them are read; nothing is scored where all are
    scores: npt.NDArray[np.int64]  # [L, C] addresses of [H, known] where scores are kept, else 0
    known: npt.NDArray[np.int32]  # [L, C] pages of kept scores; later pages count 0
    fresh: npt.NDArray[np.int32]  # [L, C] whether to score in this step, and to keep it


@dataclass(frozen=True, slots=True)
class SlotSums:
    """What slots receive in the step is added where each of the S sequences remembers it: addresses of contiguous
    float32 ``[L, H, width]`` that must outlive the step, 0 where nobody asks. See ``ops.paged_attention``.
    """

    sums: npt.NDArray[np.int64]  # [S] attention over the step's queries and the heads of the group
    counts: npt.NDArray[np.int64]  # [S] how many of those gave the slot at least their mean
    widths: npt.NDArray[np.int64]  # [S]
    count_widths: npt.NDArray[np.int64]  # [S]


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
    choice: PageChoice | None = None
    sums: SlotSums | None = None
