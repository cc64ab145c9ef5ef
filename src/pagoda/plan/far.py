"""Plans whose KV lies on a disk (``kv=offload``): bytes of tier and window, bytes that a step moves, and its time.

    whole heads    step = max(computing, reading)        chosen pages    step = computing + reading

    computing = a resident step + layers x (layer + group x groups, or choose) + pages chosen x page + bytes x copy
    reading   = bytes x seconds a byte + reads x seconds a read

The engine brings a few heads at a time into one part of a window while those in another are attended (`kv.offload`);
what is chosen (``quest+offload``) comes page by page once its layer has chosen, and most of it is in the window from
the step before, but for an answer's first step. Copying takes a core from the rest in either case.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.types import KVFormat
from .kept import Kept
from .machine import FarCosts
from .work import StepModel

USUAL_HEADS = 8
"""Heads of the longest sequence that a window holds, as the engine has it by default (`engine.offloading`)."""
PARTS, SHARE = 3, 8
"""Parts of a window beside pages that stay: each a head of the longest sequence, or an eighth of the window."""
SPARE = 1.5
"""Pages that stay in the window for each that a step chooses."""
HITS = 0.74
"""Of chosen pages, found in a window with that room after an answer's first step: 74 % were, of 3000 fresh tokens of a
0.5B shape with random weights. An answer that is asked for again finds 96 to 99 % (docs/kv-tiers.md).
"""
SPAN = 64
"""Pages of a head that lie side by side in the tier (`kv.offload.tier_file`)."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes on a disk that KV may have, in which folder."""

    num_bytes: int
    folder: str


@dataclass(frozen=True, slots=True)
class FarKV:
    """KV of ``running`` sequences in the tier. ``hits``: of the pages that an answer's steps read, found in the window;
    0 where every page of a sequence is read anyway. ``groups`` of heads come in each layer. ``read_bytes``: of a decode
    step in the middle of the answers.
    """

    fmt: KVFormat
    running: int
    tier_bytes: int
    window_bytes: int
    groups: int
    hits: float
    read_bytes: float

    @classmethod
    def of(
        cls, fmt: KVFormat, kept: Kept, longest: int, running: int, most_window_bytes: int, num_steps: int = 1 << 30
    ) -> FarKV:
        """With a window of at most that many bytes, and no larger than is of use; answers have ``num_steps``."""
        head = fmt.blocks_for(longest)
        chosen = running * kept.read_slots / fmt.page_size * fmt.pages_per_block if kept.selects else 0.0
        wanted = max(PARTS * head + SPARE * chosen, SPARE * chosen * SHARE / (SHARE - PARTS))
        pages = max(USUAL_HEADS * head, int(wanted))
        blocks = max(1, min(-(-pages // fmt.pages_per_block), most_window_bytes // fmt.block_bytes))
        pages = blocks * fmt.pages_per_block
        part = max(head, pages // SHARE)
        stays = max(0, pages - PARTS * part)
        at_once = max(1, part // max(1, fmt.blocks_for(round(kept.middle_slots))))
        groups = -(-running * fmt.num_kv_heads // at_once)
        hits = HITS * min(1.0, stays / chosen) * (1 - 1 / max(1, num_steps)) if chosen else 0.0
        tier = running * kept.peak_blocks * fmt.block_bytes
        read = running * kept.read_slots * (1 - hits) * fmt.bytes_per_token
        return cls(fmt, running, tier, blocks * fmt.block_bytes, groups, hits, read)

    @staticmethod
    def least_window_bytes(fmt: KVFormat, longest: int) -> int:
        """Without which the engine refuses."""
        return -(-PARTS * fmt.blocks_for(longest) // fmt.pages_per_block) * fmt.block_bytes


class FarSteps(StepModel):
    """The steps of ``inside`` with KV on a disk."""

    def __init__(self, inside: StepModel, far: FarKV, costs: FarCosts, *, selects: bool) -> None:
        self._inside, self._far, self._costs, self._selects = inside, far, costs, selects

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        far, costs, fmt = self._far, self._costs, self._far.fmt
        before = max(0.0, pairs / chunk - chunk / 2) if chunk else 0.0  # slots that the chunk's prompt holds already
        pages = (slots * (1 - far.hits) + before) / fmt.page_size * fmt.pages_per_block
        chosen = slots / fmt.page_size * fmt.pages_per_block if self._selects else 0.0
        chooses = self._selects and not chunk
        per_layer = costs.choose * decodes if chooses else costs.layer + costs.group * far.groups
        computing = self._inside.step_seconds(decodes, slots, chunk, pairs, rows) + fmt.num_layers * per_layer
        computing += pages * fmt.page_bytes * costs.copy + chosen * costs.page
        reads = pages if chooses else pages / SPAN
        reading = pages * fmt.page_bytes * costs.read_byte + reads * costs.read
        return computing + reading if chooses else max(computing, reading)
