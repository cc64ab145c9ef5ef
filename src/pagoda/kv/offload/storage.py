"""The bytes behind the page ids of offloaded KV: a home in a lower tier, and a window where attention finds them.

    window │ buffer │ buffer │ spill │ hot pages, a share for each layer │

The two buffers take turns: while the heads in one are attended, those that come next are read into the other. Chosen
pages (``quest+offload``) come one by one, and stay as hot pages; ``spill`` has those that find no place there. Each of
the three parts holds one head of the longest sequence at least, so that whatever comes can be attended head by head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import PagodaError
from ...core.types import KVFormat
from ...kernels.ops._paged import gather
from ..storage import PageStorage
from ..table import SlotMoves
from .hot import HotPages
from .tier_file import Failures, Int64s, TierFile, runs_of

PARTS = 3
"""Buffers and spill."""
LEAST_HEADS = PARTS
"""Heads of the longest sequence that a window must hold."""


class TierError(PagodaError):
    """Pages could not be read: whose they are ends with this."""


@dataclass(slots=True)
class OffloadCounters:
    """``pages_asked``: those that selections chose, of which ``hits`` were in the window; ``waits``: buffers that were
    not there yet when their heads' turn came, and how long the step stood still for them.
    """

    pages_asked: int = 0
    hits: int = 0
    buffers: int = 0
    waits: int = 0
    wait_seconds: float = 0.0


class OffloadedStorage(PageStorage):
    """``pages`` is the window: page ids of tables mean places in ``tier``, not in it."""

    def __init__(self, fmt: KVFormat, tier: TierFile, window_bytes: int, longest: int) -> None:
        """``longest``: tokens of the longest sequence."""
        head_pages = fmt.blocks_for(longest)
        num_pages = window_bytes // fmt.page_bytes
        assert num_pages >= LEAST_HEADS * head_pages, "checked when the window was sized"
        super().__init__(fmt, -(-num_pages // fmt.pages_per_block))
        self.tier, self.counters = tier, OffloadCounters()
        self.part_pages = max(head_pages, num_pages // 8)
        self.buffers = [self.pages[i * self.part_pages : (i + 1) * self.part_pages] for i in range(2)]
        hot = num_pages - PARTS * self.part_pages
        self.hot = HotPages(
            tier.num_blocks * fmt.pages_per_block,
            fmt.num_layers,
            PARTS * self.part_pages,
            max(0, hot) // fmt.num_layers,
            2 * self.part_pages,
            self.part_pages,
        )
        self.lost: set[int] = set()
        """Blocks whose content did not come through: a copy that failed."""
        self.pending: list[Future[Failures]] = []

    def addresses(self, places: np.ndarray) -> Int64s:
        """Of pages of the window."""
        return self.pages.data_ptr() + places.astype(np.int64) * self.fmt.page_bytes

    def settle(self) -> None:
        """Waits for what a step left behind that broke off."""
        while self.pending:
            self.pending.pop().exception()

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ``PageStorage.gather``, straight from the tier. Raises TierError."""
        found = torch.empty(ids.numel(), self.layout.page_elems, dtype=self.layout.dtype)
        first, places, sizes = runs_of(self.tier.places(ids.flatten().numpy()), self.fmt.page_bytes)
        memory = found.data_ptr() + first * self.fmt.page_bytes
        failed = self.tier.move(places, sizes, memory, writes=False)
        if failed:
            raise TierError(self.tier.why(failed[0][1], writes=False))
        return gather(found, self.layout, torch.arange(ids.numel()).view(ids.shape), torch.float32)

    def keys(self, ids: Tensor) -> Tensor:
        """As ``PageStorage.keys``; pages come whole."""
        return self.gather(ids)[0]

    def fetch(self, ids: Int64s, at: np.ndarray) -> dict[int, int]:
        """Reads these pages to these places of the window; returns page id -> errno of those that failed."""
        order = np.argsort(ids)
        return self._move(ids[order], at[order], writes=False)

    def put_back(self, ids: Int64s, at: np.ndarray) -> dict[int, int]:
        """Writes these places of the window to the pages' home; returns as ``fetch`` does."""
        return self._move(ids, at, writes=True)

    def _move(self, ids: Int64s, at: np.ndarray, *, writes: bool) -> dict[int, int]:
        places, size = self.tier.places(ids), self.fmt.page_bytes
        failed = self.tier.move(places, np.full(len(ids), size), self.addresses(at), writes=writes)
        return {int(ids[run]): number for run, number in failed}

    def run_copies(self, copies: Sequence[tuple[int, int]]) -> None:
        """As ``PageStorage.run_copies``. What fails is noted: whose pages those are finds them lost."""
        if not copies:
            return
        index, size = np.array(copies, np.int64), self.fmt.page_bytes
        found = torch.empty(len(index) * size, dtype=torch.uint8)
        memory, sizes = found.data_ptr() + np.arange(len(index)) * size, np.full(len(index), size)
        failed = self.tier.move(self.tier.places(index[:, 0]), sizes, memory, writes=False)
        failed += self.tier.move(self.tier.places(index[:, 1]), sizes, memory, writes=True)
        self.hot.forget(index[:, 1])
        self.lost |= {int(index[run, 1]) // self.fmt.pages_per_block for run, _ in failed}

    def run_moves(self, moves: SlotMoves | Sequence[tuple[int, int, int, int]]) -> None:
        assert not len(moves), "an eviction over offloaded pages is refused by name"

    def held_bytes(self, num_blocks: int, more: Sequence[int] = ()) -> int:
        """Nothing of the KV lease: window and tier are leased when they are opened."""
        return 0

    def release_blocks(self, blocks: Iterable[int]) -> int:
        """As ``PageStorage.release_blocks``: bytes of the tier."""
        return self.tier.give_back(blocks)

    def stats(self) -> dict[str, Any]:
        """Plain data."""
        self.counters.hits = self.hot.num_hits
        return asdict(self.counters) | asdict(self.tier.traffic) | {
            "tier": "host" if self.tier.folder is None else "disk",
            "tier_bytes": self.tier.num_blocks * self.fmt.block_bytes,
            "window_bytes": self.pages.nbytes,
            "hot_pages": self.hot.per_layer * self.fmt.num_layers,
        }  # fmt: skip

    def close(self) -> None:
        self.settle()
        self.tier.close()
        self.buffers = []
        super().close()
