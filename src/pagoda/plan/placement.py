"""Where weights, KV and activations lie: shares over device, host and disk, as a linear program.

FlexGen's formulation (arXiv:2303.06865, section 4.3) with any number of tiers and codecs per tier, for decode:

    x[i, t]    share of item i that lies in tier t; tier 0 computes; the shares of an item add up to 1
    capacity   sum_i bytes[i, t] x[i, t] + buffers of tier t <= capacity of t
    time T     T >= compute
               T >= sum over tiers at or beyond link l of (read[i, t] x[i, t]) / rate of l       (what is fetched)
               T >= sum over tiers at or beyond link l of (written[i, t] x[i, t]) / write rate   (what goes back)

Fetching, writing and computing overlap, so a step takes the longest of them. ``bytes[i, t]`` may differ by tier: a
cold tier may hold the same item in fewer bytes. What is fetched passes through buffers in every nearer tier: two pieces
(one in use, one on its way) wherever anything lies beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import BudgetError
from ..core.units import format_bytes


@dataclass(frozen=True, slots=True)
class Tier:
    """``read`` and ``write``: bytes a second over the link to the nearer tier (of no meaning in the nearest)."""

    name: str
    capacity: int
    read: float = 0.0
    write: float = 0.0


@dataclass(frozen=True, slots=True)
class Item:
    """``num_bytes`` in the nearest tier, of which a step reads and writes the given shares.

    piece   bytes that are fetched at once (a layer's): two such buffers in every tier that they pass through.
    shrink  bytes in tier t are ``num_bytes * shrink[t]``; missing ones are 1 (a codec makes cold tiers cheaper).
    """

    name: str
    num_bytes: int
    read_share: float = 1.0
    write_share: float = 0.0
    piece: int = 0
    shrink: tuple[float, ...] = ()

    def bytes_in(self, tier: int) -> float:
        """All of it, in that tier."""
        return self.num_bytes * (self.shrink[tier] if tier < len(self.shrink) else 1.0)


@dataclass(frozen=True, slots=True)
class Placement:
    """``shares[item][tier]``, and the seconds of a step that come of it."""

    shares: dict[str, dict[str, float]]
    seconds: float

    def share(self, item: str, tier: str) -> float:
        """Of that item in that tier."""
        return self.shares[item][tier]


def place(items: Sequence[Item], tiers: Sequence[Tier], compute_seconds: float) -> Placement:
    """The placement with the shortest step. Raises BudgetError where the tiers together are too small."""
    inside = all(item.num_bytes == 0 for item in items) or _fits_nearest(items, tiers[0])
    if inside:
        return Placement(
            {item.name: {tier.name: float(at == 0) for at, tier in enumerate(tiers)} for item in items}, compute_seconds
        )
    return _solve(items, tiers, compute_seconds)


def _fits_nearest(items: Sequence[Item], tier: Tier) -> bool:
    return sum(item.num_bytes for item in items) <= tier.capacity


def _solve(items: Sequence[Item], tiers: Sequence[Tier], compute_seconds: float) -> Placement:
    import highspy

    from .solver import silent_solver

    solver = silent_solver()
    scale = 1.0 / max(item.num_bytes for item in items)  # rows near 1 keep the simplex's tolerances meaningful
    seconds = solver.addVariable(lb=compute_seconds, obj=1.0)
    # A whisper towards near tiers: of placements that take the same time, the one that moves least.
    x = [[solver.addVariable(lb=0.0, ub=1.0, obj=1e-9 * at) for at in range(len(tiers))] for _ in items]
    for shares in x:
        solver.addConstr(sum(shares) == 1.0)
    for at, tier in enumerate(tiers):
        held = sum(scale * item.bytes_in(at) * x[i][at] for i, item in enumerate(items))
        solver.addConstr(held <= scale * (tier.capacity - _buffers(items, tiers, at)))
    for link in range(1, len(tiers)):
        for rate, moved in ((tiers[link].read, "read_share"), (tiers[link].write, "write_share")):
            if any(getattr(item, moved) for item in items):
                solver.addConstr(_moved(items, tiers, x, link, moved, scale) <= scale * rate * seconds)
    solver.minimize()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise BudgetError(_refusal(items, tiers))
    values = solver.getSolution().col_value
    taken = [[max(0.0, values[v.index]) for v in shares] for shares in x]
    return Placement(
        {item.name: {tier.name: taken[i][at] for at, tier in enumerate(tiers)} for i, item in enumerate(items)},
        values[seconds.index],
    )


def _moved(items: Sequence[Item], tiers: Sequence[Tier], x: list, link: int, moved: str, scale: float) -> object:  # type: ignore[type-arg]
    """Bytes of a step over the link between tiers ``link`` and ``link - 1``."""
    return sum(
        scale * item.bytes_in(at) * getattr(item, moved) * x[i][at]
        for i, item in enumerate(items)
        for at in range(link, len(tiers))
    )


def _buffers(items: Sequence[Item], tiers: Sequence[Tier], at: int) -> int:
    """Two pieces of the largest item that may be fetched through this tier; none in the last."""
    return 2 * max(item.piece for item in items) if at < len(tiers) - 1 else 0


def _refusal(items: Sequence[Item], tiers: Sequence[Tier]) -> str:
    needs = ", ".join(f"{item.name} {format_bytes(item.num_bytes)}" for item in items)
    room = ", ".join(f"{tier.name} {format_bytes(tier.capacity)}" for tier in tiers)
    return f"{needs} do not fit into {room} together; give one of them more bytes"
