"""What a sequence that selects pages holds in one decode step, and what is noted of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops import page_marks
from ..kernels.ops.page_marks import MarkAids
from ..kv.policies._layers import LossyLayers
from ..kv.policies._pages import PageSelection
from ..kv.storage import PageStorage
from ..kv.table import PageTable
from .selection_notes import Notes, of_heads

if TYPE_CHECKING:
    from ..kernels.ops.page_scores import PageRule

REMOTE_PAGES = 1024
"""Pages of a head whose keys are looked at together where each is noted for itself: a long prompt's need not all be in
memory at once."""


class HeldPages:
    """One sequence in one decode step: how many pages its heads hold, which they are, how many will be read."""

    def __init__(
        self,
        policy: PageSelection,
        notes: Notes,
        storage: PageStorage,
        table: PageTable,
        learned: Mapping[str, Tensor],
        num_q_heads: int,
        lossy: LossyLayers | None = None,
    ) -> None:
        self._policy, self._notes, self._storage, self._table = policy, notes, storage, table
        self._learned, self._num_q_heads, self._lossy = learned, num_q_heads, lossy

    @property
    def _rule(self) -> PageRule | None:
        return self._policy.judged_by

    @cached_property
    def _lens(self) -> np.ndarray:
        """int64 [L, H]: slots, the newest token's among them."""
        table = self._table
        held = np.broadcast_to(table.lens[:, None], (table.num_rows, table.run))
        return held.reshape(table.fmt.num_layers, -1) + 1

    @cached_property
    def _full(self) -> np.ndarray:
        """int64 [L, H]; the page that holds the newest token is read whatever it holds."""
        full: np.ndarray = (self._lens - 1) // self._table.fmt.page_size
        return full

    @cached_property
    def _is_even(self) -> bool:
        return bool((self._lens == self._lens.flat[0]).all())

    @cached_property
    def _ids(self) -> Tensor:
        return _page_ids(self._table, 0, int(self._full.max()) + 1).to(self._storage.device)

    @cached_property
    def _keep(self) -> np.ndarray:
        counts = self._policy.counts(self._full, self._learned)
        return counts if self._lossy is None else np.where(self._lossy.whole[:, None], self._full, counts)

    @cached_property
    def _whole(self) -> np.ndarray:
        """bool [L]: layers in which nothing is scored, since everything is read."""
        found = np.array([self._policy.num_pages(int(most)) == most for most in self._full.max(1)])
        return found if self._lossy is None else found | self._lossy.whole

    def _count(self, layers: slice) -> None:
        notes, full = self._notes, self._full[layers]
        notes.pages_held += int(full.sum()) + full.size
        notes.pages_read += int(self._keep[layers].sum()) + full.size

    def pages_if_all(self) -> int:
        """How many pages there are, where every head reads all of its own; else 0."""
        if not self._whole.all() or (self._keep != self._full).any():
            return 0
        return int(self._full.sum()) + self._full.size

    def _of(self, layer: int, heads: slice | np.ndarray = slice(None)) -> dict[str, Tensor]:
        return {name: of_heads(values[layer], heads) for name, values in self._learned.items()}

    # -- what is noted -------------------------------------------------------------------------------------------------

    @property
    def _by_channel(self) -> bool:
        return self._rule is not None and self._rule.marks == "columns"

    def _marks_later(self, layer: int) -> bool:
        """Whether pages that became full are noted by `page_marks`: the first look at a text is the policy's."""
        return self._policy.is_marked and self._notes.sketches[layer] is not None

    def _aids(self, layer: int) -> MarkAids:
        return self._policy.mark_aids(self._notes.memory[layer], self._of(layer))

    def _sketches(self, layer: int, full: np.ndarray, ids: Tensor) -> Tensor:
        notes, most = self._notes, int(full.max())
        known = notes.sketched[layer]
        if (full > known).any():
            start = int(known[full > known].min())
            if self._marks_later(layer):
                assert self._rule is not None
                marks = notes.room(layer, most, self._by_channel)
                page_marks(self._keys(ids[:, start:most]), self._rule, marks, start, self._aids(layer))
            else:
                made = self._looked_at(layer, start, full, ids[:, :most])
                notes.write(layer, slice(None), start, made, self._by_channel)
            notes.sketched[layer] = full
        held = notes.sketches[layer]
        assert held is not None
        return held[:, :most]

    def _looked_at(self, layer: int, start: int, full: np.ndarray, ids: Tensor) -> Tensor:
        """The policy's own sketches of the pages from ``start`` on. Heads that an eviction left with different numbers
        of pages are looked at apart: behind a head's own pages ``ids`` names somebody else's.
        """
        groups = [np.flatnonzero(full == count) for count in np.unique(full)]
        if len(groups) == 1:
            return self._look(layer, slice(None), start, ids)
        memory, made = self._notes.memory[layer], None
        parts: list[tuple[np.ndarray, dict[str, Tensor]]] = []
        for heads in groups:
            mine = {name: value[heads] for name, value in memory.items() if value.shape[:1] == full.shape}
            count = int(full[heads[0]])
            if count > start:
                found = self._look(layer, heads, start, ids[heads, :count], mine)
            else:  # what is found once has to be found of something
                found = self._policy.sketch_as(self._first_page(layer, heads, ids), mine, 0, self._of(layer, heads))
                found = found[:, :0]
            if made is None:
                made = found.new_zeros(len(full), ids.shape[1] - start, *found.shape[2:])
            made[heads, : found.shape[1]] = found
            parts.append((heads, {name: value for name, value in mine.items() if name not in memory}))
        memory |= _joined(parts)
        assert made is not None
        return made

    def _look(
        self, layer: int, heads: slice | np.ndarray, start: int, ids: Tensor, memory: dict[str, Tensor] | None = None
    ) -> Tensor:
        policy, most = self._policy, ids.shape[1]
        span = REMOTE_PAGES if policy.remote else most - start
        memory = self._notes.memory[layer] if memory is None else memory
        parts = [
            policy.sketch_as(self._keys(ids[:, at : min(most, at + span)]), memory, at, self._of(layer, heads))
            for at in range(start, most, span)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _first_page(self, layer: int, heads: np.ndarray, ids: Tensor) -> Tensor:
        """As ``_keys``, of heads that have no full page yet: the rest of it holds their last key."""
        keys = self._keys(ids[heads, :1])
        last = torch.from_numpy(np.maximum(self._lens[layer, heads], 1) - 1).to(keys.device)
        slots = torch.arange(keys.shape[2], device=keys.device).minimum(last[:, None])
        return keys.gather(2, slots[:, None, :, None].expand(keys.shape))

    def _keys(self, ids: Tensor) -> Tensor:
        """float32 [H, n, page_size, D] of these pages."""
        fmt = self._table.fmt
        return self._storage.keys(ids).view(ids.shape[0], ids.shape[1], fmt.page_size, -1)


def _joined(parts: list[tuple[np.ndarray, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """What a policy remembers of groups of heads, ``[h, …]`` each, as that of all. Where groups differ in size, the
    last of the smaller is repeated: whoever chooses the best of them chooses the same.
    """
    num_heads, joined = sum(len(heads) for heads, _ in parts), {}
    for name in parts[0][1]:
        values = [memory[name] for _, memory in parts]
        whole = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        joined[name] = values[0].new_empty(num_heads, *whole)
        for (heads, _), value in zip(parts, values, strict=True):
            for dim, size in enumerate(whole, 1):
                value = value.index_select(dim, torch.arange(size, device=value.device).clamp(max=value.shape[dim] - 1))
            joined[name][heads] = value
    return joined


def _page_ids(table: PageTable, first: int, end: int) -> Tensor:
    """int64 [L, H, end - first]: so many pages of every head."""
    fmt = table.fmt
    num_heads = fmt.num_layers * fmt.num_kv_heads
    if table.num_rows == 1:
        rows, offsets = np.zeros(num_heads, np.int64), np.arange(num_heads)
    else:
        heads = [(layer, head) for layer in range(fmt.num_layers) for head in range(fmt.num_kv_heads)]
        rows = np.array([table.row(*at) for at in heads])
        offsets = np.array([table.offset(*at) for at in heads])
    ids = table.bases[rows, first:end].astype(np.int64) + offsets[:, None]
    return torch.from_numpy(ids.reshape(fmt.num_layers, fmt.num_kv_heads, -1))
