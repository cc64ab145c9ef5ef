"""One step's ragged batch as plain arrays, for kernels that run all layers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .layout import PageLayout


@dataclass(frozen=True, slots=True)
class PageChoice:
    """Sequences of one token that read only some of their pages: those whose scores (`ops.page_scores`) are best, the
    newest full page, and the page under way. C sequences choose, L layers, H kv-heads.

    Addresses are those of contiguous tensors, float32 but for marks, which must outlive the step. The order of the
    fields is csrc/choice.hpp's.
    """

    seqs: npt.NDArray[np.int32]  # [C] of the batch
    rules: npt.NDArray[np.int32]  # [C, 8] `PageRule.numbers`
    alike: npt.NDArray[np.float32]  # [C] cosine above which a layer's query keeps the last one's scores; 0: never
    persist: npt.NDArray[np.float32]  # [C] share of the last votes that counts; below 0: heads choose for themselves
    marks: npt.NDArray[np.int64]  # [L, C] addresses of [H, room] pages' marks
    room: npt.NDArray[np.int64]  # [L, C]
    given: npt.NDArray[np.int64]  # [L, C] addresses of what the rule is given, or 0
    num_given: npt.NDArray[np.int32]  # [L, C] codewords of it
    turn: npt.NDArray[np.int64]  # [L, C] addresses of [D], or 0
    outliers: npt.NDArray[np.int32]  # [L, C]
    full: npt.NDArray[np.int32]  # [L, C, H] full pages
    keep: npt.NDArray[np.int32]  # [L, C, H] how many of them are read
    scores: npt.NDArray[np.int64]  # [L, C, H] addresses of numbers for all full pages where scores are kept, else 0
    fresh: npt.NDArray[np.uint8]  # [L, C, H] whether to score in this step, and to keep it
    turns: npt.NDArray[np.int64]  # [L, C] addresses of [pages, D], turns by so many pages, where keys move; or 0
    query: npt.NDArray[np.int64]  # [L, C] addresses of [Hq, D], the query that last scored, where `alike`
    noted: npt.NDArray[np.int64]  # [L, C] addresses of int64 [H], pages with marks; others are noted first; or 0
    weights: npt.NDArray[np.int64]  # [L, C] addresses of the `ops.page_marks.MarkAids` of these names, or 0
    metric: npt.NDArray[np.int64]
    freq: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotSums:
    """What slots receive in the step is added where each of the S sequences remembers it: addresses of contiguous
    float32 ``[L, H, width]`` that must outlive the step, 0 where nobody asks. See ``ops.paged_attention``.
    """

    sums: npt.NDArray[np.int64]  # [S] attention over the step's queries and the heads of the group
    counts: npt.NDArray[np.int64]  # [S] how many of those gave the slot at least their mean
    widths: npt.NDArray[np.int64]  # [S]
    count_widths: npt.NDArray[np.int64]  # [S]
    last: npt.NDArray[np.int64]  # [S] w > 0: only the last w queries of its chunk


@dataclass(frozen=True, slots=True)
class QueryRings:
    """The newest queries of the step go where each of the S sequences remembers them: contiguous rings ``[L, width, Hq,
    Dk]`` of the model's dtype, which must outlive the step.
    """

    rings: npt.NDArray[np.int64]  # [S] addresses, 0 where nobody asks
    widths: npt.NDArray[np.int64]  # [S]
    firsts: npt.NDArray[np.int64]  # [S] place of the first of them; the others follow, around
    nums: npt.NDArray[np.int64]  # [S] how many of the last tokens of its chunk, up to the width


@dataclass(frozen=True, slots=True)
class StepWeights:
    """How often slots count in the softmax, of sequences some of whose slots count more than once: addresses of
    contiguous float32 ``[H, width]`` that must outlive the step, see ``slot_weights`` of ``ops.paged_attention``.
    """

    logs: npt.NDArray[np.int64]  # [L, S], 0 where every slot counts once
    widths: npt.NDArray[np.int64]  # [S]


@dataclass(frozen=True, slots=True)
class CodedStep:
    """Pages of a step that were encoded whole, and where the newest slots of each of the S sequences lie raw beside
    them: contiguous ``[L, H, room, dim]`` of the model's dtype, which must outlive the step; it writes its own there.
    A sequence of the model may be several here, one after the other: where some of its tokens read what others' are
    encoded to.
    """

    sides: Any  # how the pages of all layers are read: ``native`` of `cpu_page_numbers.LayerSides`
    k: npt.NDArray[np.int64]  # [S] addresses
    v: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]  # [S] the first raw slot, a multiple of the page size
    room: npt.NDArray[np.int64]  # [S] from one head to the next
    encoded: npt.NDArray[np.int64]  # [S] whole pages' slots from the first on are encoded before anything is attended


@dataclass(slots=True, eq=False)
class StepArrays:
    """All int32 on the CPU. Sizes: L layers, S sequences, H kv-heads, T tokens, R rows of one layer.

    L1 is 1 where all layers share an array (pages of layer l are then ``l * H`` further on), else L. `ops.LayerTable`
    says what they mean. Not to be changed: what is made of their addresses is kept in ``native``, so that a step which
    goes on with the arrays of the last one, other numbers at the same places, asks no tensor for anything.
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
    queries: QueryRings | None = None
    weights: StepWeights | None = None
    coded: CodedStep | None = None  # then ``layout`` is that of the numbers, and the pages are bytes
    wide: Tensor | None = None  # uint8 [S]
    native: Any = field(default=None, init=False, repr=False)
