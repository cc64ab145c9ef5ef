"""What a policy keeps of a sequence's KV, and what a step reads of that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from ..core.types import KVFormat
from ..kv.policies._pages import PageSelection
from ..kv.policies._stack import PolicyStack
from .demand import Demand


@dataclass(frozen=True, slots=True)
class Kept:
    """KV of one sequence under a policy: blocks of pages while it answers and at its peak (a prompt is whole until the
    policy acts), and slots of a head that it holds and that a step reads in the middle of its answer.

    note_bytes  what a selection notes of all its pages, beside them
    """

    held_blocks: int
    peak_blocks: int
    middle_slots: float
    read_slots: float
    note_bytes: int = 0
    selects: bool = False

    @classmethod
    def of(cls, policy: PolicyStack, fmt: KVFormat, demand: Demand, step: int | None = None) -> Kept:
        """Of sequences of that demand, whose prompts are computed ``step`` tokens at a time (None: whole). What is read
        is counted as if windows left everything: the model of a step knows itself how far they reach.
        """
        held = max(policy.most_slots(n, demand.prompt) for n in (demand.prompt, demand.length))
        at, lossy = demand.prompt + demand.output // 2, policy.lossy
        middle = read = replace(policy, reach=None).most_slots(at, demand.prompt)
        notes = 0
        if isinstance(policy.selection, PageSelection):
            chosen_of = middle if policy.eviction is None else policy.eviction.most_slots(at, demand.prompt)
            full, rest = divmod(int(chosen_of), fmt.page_size)
            read = policy.selection.num_pages(full) * fmt.page_size + rest
            of_page = policy.selection.mark_bytes(fmt.page_size, fmt.k_dim)
            noted: float = demand.length // fmt.page_size * fmt.pages_per_block
            if lossy is not None:  # the other layers read all and note nothing
                read, noted = lossy.mean(read, at), lossy.mean(noted, 0)
            notes = round(noted * of_page)
        peak = fmt.blocks_for(policy.peak_slots(demand.length, demand.prompt, step))
        return cls(fmt.blocks_for(ceil(held)), peak, middle, read, notes, policy.selection is not None)
