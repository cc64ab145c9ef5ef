"""Where weights, KV and activations lie: shares over device, host and disk, as a linear program.

FlexGen's formulation (arXiv:2303.06865, section 4.3 and appendix A.3) with any number of tiers and codecs per tier:

    x[i, t]     share of item i that lies in tier t; tier 0 computes; the shares of an item add up to 1
    u[p, i, t]  of that, what phase p uses where it lies, on that tier's own processor (u <= x)
    capacity    sum_i bytes[i, t] x[i, t] + buffers of tier t <= capacity of t
    time T[p]   T >= computing: what tier 0 does, and after it what the other processors do
                T >= sum over tiers at or beyond link l of read[p, i] bytes[i, t] (x - u)[i, t] / rate of l
                T >= the same of what is written, over the rate of writing
    least       sum_p steps[p] T[p]: the step of the prompts once, that of decoding for every token of an answer

Fetching, writing and computing overlap, so a step takes the longest of them. ``bytes[i, t]`` may differ by tier: a
cold tier may hold the same item in fewer bytes. What is fetched passes through buffers in every nearer tier: two pieces
(one in use, one on its way) of each item that has something beyond. An item of ``parts`` is divided in whole ones only
(layers); then, and for the buffers, the program has integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..core.errors import BudgetError
from ..core.units import format_bytes
from .solver import Program


@dataclass(frozen=True, slots=True)
class Tier:
    """``read`` and ``write``: bytes a second over the link to the nearer tier (of no meaning in the nearest)."""

    name: str
    capacity: int
    read: float = 0.0
    write: float = 0.0


@dataclass(frozen=True, slots=True)
class Item:
    """``num_bytes`` in the nearest tier.

    piece     bytes that are fetched at once (a layer's): two such buffers in every tier that they pass through
    shrink    bytes in tier t are ``num_bytes * shrink[t]``; missing ones are 1 (a codec makes cold tiers cheaper)
    parts     whole parts that it can be divided into; 0: any share
    farthest  the last tier that may have some of it
    """

    name: str
    num_bytes: int
    piece: int = 0
    shrink: tuple[float, ...] = ()
    parts: int = 0
    farthest: int = 99

    def bytes_in(self, tier: int) -> float:
        """All of it, in that tier."""
        return self.num_bytes * (self.shrink[tier] if tier < len(self.shrink) else 1.0)


@dataclass(frozen=True, slots=True)
class Use:
    """What a step does with all of an item. ``read`` and ``write``: of its bytes, where it is not in the nearest tier.

    near   seconds of computing with it in tier 0
    there  tier -> seconds of using it there instead: then nothing of it is read
    """

    read: float = 1.0
    write: float = 0.0
    near: float = 0.0
    there: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Phase:
    """``steps`` steps alike. ``seconds``: computing in tier 0 that no item's share changes."""

    name: str
    seconds: float
    uses: Mapping[str, Use]
    steps: float = 1.0


@dataclass(frozen=True, slots=True)
class Placement:
    """``shares[item][tier]``; ``used_there[phase][item][tier]`` of them; seconds of a step of each phase, and what it
    waits for: computing, or a link, named by its farther tier.
    """

    shares: dict[str, dict[str, float]]
    used_there: dict[str, dict[str, dict[str, float]]]
    seconds: dict[str, float]
    waits_for: dict[str, str]
    total: float

    def share(self, item: str, tier: str) -> float:
        """Of that item in that tier."""
        return self.shares[item][tier]


def place(items: Sequence[Item], tiers: Sequence[Tier], phases: Sequence[Phase], *, whole: bool = True) -> Placement:
    """The placement with the shortest steps. Raises BudgetError where the tiers together are too small.

    Without ``whole`` parts of parts count too, and buffers by the share of what lies beyond them: 2 ms instead of 15,
    and never slower than what can be.
    """
    if sum(item.num_bytes for item in items) <= tiers[0].capacity and not _gains_elsewhere(phases):
        shares = [[float(at == 0) for at in range(len(tiers))] for _ in items]
        return _placement(items, tiers, phases, shares, {})
    model = _Model(items, tiers, phases, whole)
    values = model.program.solve()
    if values is None:
        raise BudgetError(_refusal(items, tiers))
    shares = [[min(1.0, max(0.0, values[column])) for column in row] for row in model.held]
    there = {key: min(1.0, max(0.0, values[column])) for key, column in model.there.items()}
    return _placement(items, tiers, phases, shares, there)


def _gains_elsewhere(phases: Sequence[Phase]) -> bool:
    return any(seconds < use.near for phase in phases for use in phase.uses.values() for seconds in use.there.values())


class _Model:
    """The program: columns of ``held[item][tier]``, of ``there[phase, item, tier]``, of each phase's seconds."""

    def __init__(self, items: Sequence[Item], tiers: Sequence[Tier], phases: Sequence[Phase], whole: bool) -> None:
        self._items, self._tiers, self._whole, self.program = items, tiers, whole, Program()
        program, whisper = self.program, 1e-6 * sum(phase.steps * phase.seconds for phase in phases)
        # A whisper towards near tiers: of placements that take the same time, the one that moves least.
        self.held = [
            [
                program.column(0.0, float(at <= item.farthest), whisper * at, step=item.parts * whole)
                for at in range(len(tiers))
            ]
            for item in items
        ]
        self.there: dict[tuple[int, int, int], int] = {}
        for shares in self.held:
            program.row([(column, 1.0) for column in shares], 1.0, 1.0)
        self._hold()
        for number, phase in enumerate(phases):
            self._time(number, phase)

    def _hold(self) -> None:
        """Every tier's capacity; buffers where something lies beyond."""
        scale = 1.0 / max(1, *(item.num_bytes for item in self._items))  # rows near 1 keep the tolerances meaningful
        for at, tier in enumerate(self._tiers):
            entries = [(self.held[i][at], scale * item.bytes_in(at)) for i, item in enumerate(self._items)]
            for i, item in enumerate(self._items):
                if item.piece and at < min(item.farthest, len(self._tiers) - 1):
                    passes = self.program.column(0.0, 1.0, 0.0, step=int(self._whole))
                    beyond = [(column, 1.0) for column in self.held[i][at + 1 :]]
                    self.program.row([*beyond, (passes, -1.0)], None, 0.0)
                    entries.append((passes, 2 * scale * item.piece))
            self.program.row(entries, None, scale * tier.capacity)

    def _time(self, number: int, phase: Phase) -> None:
        program = self.program
        seconds = program.column(phase.seconds, None, phase.steps)
        computing, uses = [(seconds, -1.0)], [phase.uses.get(item.name, Use(read=0.0)) for item in self._items]
        for i, use in enumerate(uses):
            computing += [(column, use.near) for column in self.held[i]]
            for at, there in use.there.items():
                column = self.there[number, i, at] = program.column(
                    0.0, 1.0, 0.0, step=self._items[i].parts * self._whole
                )
                program.row([(column, 1.0), (self.held[i][at], -1.0)], None, 0.0)
                computing.append((column, there - use.near))
        program.row(computing, None, -phase.seconds)
        for link in range(1, len(self._tiers)):
            self._moves(number, uses, link, seconds)

    def _moves(self, number: int, uses: Sequence[Use], link: int, seconds: int) -> None:
        """Over the link between tiers ``link`` and ``link - 1``."""
        read, written, tier = [(seconds, -1.0)], [(seconds, -1.0)], self._tiers[link]
        for i, (item, use) in enumerate(zip(self._items, uses, strict=True)):
            for at in range(link, len(self._tiers)):
                num_bytes = item.bytes_in(at)
                if use.read:
                    read.append((self.held[i][at], use.read * num_bytes / tier.read))
                    if (number, i, at) in self.there:
                        read.append((self.there[number, i, at], -use.read * num_bytes / tier.read))
                if use.write:
                    written.append((self.held[i][at], use.write * num_bytes / tier.write))
        for entries in (read, written):
            if len(entries) > 1:
                self.program.row(entries, None, 0.0)


def _placement(
    items: Sequence[Item], tiers: Sequence[Tier], phases: Sequence[Phase], shares: list[list[float]],
    there: Mapping[tuple[int, int, int], float],
) -> Placement:  # fmt: skip
    """With the seconds that follow from the shares, whatever the solver's tolerances were."""
    names, used, seconds, waits = [tier.name for tier in tiers], {}, {}, {}
    for number, phase in enumerate(phases):
        mine = {(i, at): share for (p, i, at), share in there.items() if p == number}
        terms = _terms(items, tiers, phase, shares, mine)
        waits[phase.name] = max(terms, key=terms.__getitem__)
        seconds[phase.name] = terms[waits[phase.name]]
        used[phase.name] = {
            item.name: {names[at]: share for (i, at), share in mine.items() if items[i] is item and share > 1e-9}
            for item in items
        }
    total = sum(phase.steps * seconds[phase.name] for phase in phases)
    found = {item.name: dict(zip(names, shares[i], strict=True)) for i, item in enumerate(items)}
    return Placement(found, used, seconds, waits, total)


def _terms(
    items: Sequence[Item], tiers: Sequence[Tier], phase: Phase, shares: Sequence[Sequence[float]],
    there: Mapping[tuple[int, int], float],
) -> dict[str, float]:  # fmt: skip
    """Seconds of each thing that a step of the phase waits for."""
    terms = {"computing": phase.seconds}
    for i, item in enumerate(items):
        use = phase.uses.get(item.name, Use(read=0.0))
        terms["computing"] += use.near * sum(shares[i])
        for at, share in enumerate(shares[i]):
            here = there.get((i, at), 0.0)
            terms["computing"] += here * (use.there.get(at, 0.0) - use.near)
            for link in range(1, at + 1):
                tier, num_bytes = tiers[link], item.bytes_in(at)
                for name, moved, rate in (
                    (f"reading from {tier.name}", use.read * (share - here), tier.read),
                    (f"writing to {tier.name}", use.write * share, tier.write),
                ):
                    if moved > 1e-12:
                        terms[name] = terms.get(name, 0.0) + moved * num_bytes / rate
    return terms


def _refusal(items: Sequence[Item], tiers: Sequence[Tier]) -> str:
    needs = ", ".join(f"{item.name} {format_bytes(item.num_bytes)}" for item in items)
    room = ", ".join(f"{tier.name} {format_bytes(max(0, tier.capacity))}" for tier in tiers)
    return f"{needs} do not fit into {room} together; give one of them more bytes"
