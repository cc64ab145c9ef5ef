"""What the scheduler sees of a sequence, and of the memory that sequences live in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Item(Protocol):
    """One token stream. The engine's ``Sequence`` is one; the simulator brings its own."""

    @property
    def seq_id(self) -> int: ...
    @property
    def priority(self) -> int:
        """Lower runs earlier."""

    @property
    def arrival(self) -> float:
        """Seconds on the engine's clock; ties are broken by ``seq_id``."""

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: the prompt and what was sampled."""

    @property
    def num_computed(self) -> int:
        """Tokens whose KV is in pages."""

    @property
    def chunk_end(self) -> int:
        """No chunk may reach past this token (a lossy KV policy acts there); usually ``num_tokens``."""

    def slots(self, num_tokens: int) -> int:
        """Slots of KV that each head will hold, on the average, when ``num_tokens`` tokens are computed and its policy
        has acted: as many, where none drops any. Never falls from one token to the next, nor rises by more than one.
        """

    @property
    def slots_now(self) -> int:
        """Most of them on the way to the known tokens: a prompt may be whole until it is complete."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids of the prompt."""

    @property
    def num_output(self) -> int:
        """Tokens sampled so far."""

    @property
    def max_output(self) -> int | None:
        """Tokens that may be sampled at most; None where the client set no limit."""

    @property
    def tenant(self) -> str:
        """Who is served: requests with the same name share one claim to the machine. Empty: nobody in particular."""

    @property
    def salt(self) -> str:
        """Items find each other's prefixes in the cache only where their salts are equal."""


class Memory(Protocol):
    """The byte side of scheduling. Every answer is final for the step: what is granted is really there."""

    def admit(self, item: Item) -> int:
        """Open a page table for the item; returns how many of its tokens were found in the prefix cache."""

    def fits(self, item: Item, num_growing: int) -> bool:
        """Whether the whole of the item's known tokens would fit now, with a block left for so many others each."""

    def cached_tokens(self, item: Item) -> int:
        """Of the item's known tokens, how many ``admit`` would find in the prefix cache now. Changes nothing."""

    def capacity_tokens(self, item: Item) -> int:
        """Tokens of KV, in the item's format, that all sequences together may hold."""

    def reserve(self, item: Item, num_tokens: int) -> bool:
        """Grant the pages that the next ``num_tokens`` tokens are written to, or change nothing and say False."""

    def release(self, item: Item) -> None:
        """Drop the item's pages; its tokens will be computed again."""


@dataclass(slots=True)
class Scheduled:
    """``num_tokens`` of ``item``, from its token ``start`` on, run in this step."""

    item: Item
    start: int
    num_tokens: int


@dataclass(slots=True)
class Plan:
    """One step, decodes before chunks. ``preempted`` lost their pages and wait again; ``starved`` did so because they
    found no page for themselves, and nobody of a lower rank to take it from.
    """

    scheduled: list[Scheduled] = field(default_factory=list)
    preempted: list[Item] = field(default_factory=list)
    starved: list[Item] = field(default_factory=list)
    admitted: list[tuple[Item, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)
