"""Weights and KV over memory and a disk, as the engine has them: layers are whole, KV lies in one place, and weights
lie on a disk only where the engine can read them at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import BudgetError
from .choice import Choice
from .dividing import Divider
from .far import FarKV
from .placement import Item, Phase, Placement, Tier, Use, place
from .prices import EXACT, OFFLOAD
from .work import Work


@dataclass(frozen=True, slots=True)
class Spill:
    """Over memory and a disk: ``num_bytes`` of weights and KV, and their shares."""

    choice: Choice
    placement: Placement
    num_bytes: dict[str, int]

    @property
    def seconds(self) -> float:
        """Of a decode step."""
        return self.placement.seconds["decode"]

    @property
    def runs_as(self) -> Choice:
        """What the engine is told for it; it finds by itself how many weights it has to read from disk."""
        return replace(self.choice, kv=OFFLOAD if self.placement.share("kv", "disk") else EXACT)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; bytes and seconds."""
        choice, placed = self.choice, self.placement
        return {
            "weights": choice.quantization, "kv_cache_dtype": choice.kv_cache_dtype, "shares": placed.shares,
            "num_bytes": self.num_bytes, "kv": self.runs_as.kv, "seconds": self.seconds,
            "waits_for": placed.waits_for["decode"],
        }  # fmt: skip


def spill_of(divider: Divider, choice: Choice, budget_bytes: int, disk_bytes: int) -> Spill | None:
    """Of all that was asked for at a time, in one batch; None where it does not even fit with the disk."""
    demand, layers, fmt = divider.demand, divider.subject.shape.num_layers, divider.format(choice)
    beside, kept = divider.beside(choice), divider.kept(choice)
    streams = divider.streams(choice)
    kv_bytes = (kept.peak_blocks + (demand.concurrency - 1) * kept.held_blocks) * fmt.block_bytes
    window = FarKV.least_window_bytes(fmt, divider.longest)
    items = [
        Item("weights", beside.weights, piece=beside.weights // layers, parts=layers, farthest=int(streams)),
        Item("kv", kv_bytes, piece=window // 2, parts=1),
    ]
    room, rate = budget_bytes - (beside.total - beside.weights), divider.machine.disk_bytes_per_second
    work = Work(decodes=demand.concurrency, context=demand.length, rows=demand.concurrency)
    uses = {"weights": Use(), "kv": Use(write=1 / demand.length)}
    decode = Phase("decode", divider.steps(choice).seconds(work), uses)
    try:
        placed = place(items, [Tier("host", room), Tier("disk", disk_bytes, rate, rate)], [decode])
    except BudgetError:
        return None
    return Spill(choice, placed, {item.name: item.num_bytes for item in items})
