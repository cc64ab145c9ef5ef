"""Page selection in decode steps: which pages each head reads, as a table that attention takes like any other.

A head's slots lie in pages; reading only some of them is a table over those pages, since order and position of slots do
not matter to a decode query: the chosen full pages come first, the page under way last::

    held     │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6.. │        6 full pages and one under way
    read     │ 1 │ 4 │ 5 │ 6.. │                     kv_len = 3 * page_size + slots of the last

``choice`` hands it all to the kernels (`selection_program`), ``choose`` answers layer by layer (`selection_layers`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..kv.choices import Choice
from .selection_layers import ByLayer
from .selection_program import ByProgram


class PageChooser(ByProgram, ByLayer):
    """One sequence in one decode step."""

    # -- where the policy broke: all that is held, without asking it ---------------------------------------------------

    def choice_of_all(self) -> Choice:
        """In place of ``choice``."""
        full = self._full
        none, zeros = np.zeros(len(full), np.int64), np.zeros(len(full), np.int32)
        return Choice(
            rules=np.zeros(8, np.int32), alike=0.0, persist=-1.0, marks=none, room=none, given=none, num_given=zeros,
            turn=none, outliers=zeros, full=full.astype(np.int32), keep=full.astype(np.int32),
            scores=np.zeros(full.shape, np.int64), fresh=np.zeros(full.shape, np.uint8), turns=none, query=none,
            noted=none, weights=none, metric=none, freq=none,
        )  # fmt: skip

    def all_pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """In place of ``choose``."""
        return self._ids[layer, :, : int(self._full[layer].max()) + 1].to(torch.int32), self._slots(self._lens[layer])

    def copies_of_all(self, layer: int) -> tuple[Tensor, Tensor, int]:
        """In place of ``copies``."""
        ids, lens = self.all_pages(layer)
        return *self._copied(ids.long()), int(lens[0])
