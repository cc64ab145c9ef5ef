"""What tiers have in common: counters, and what one asks of the next colder one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class TierStats:
    """Since the start, of this process. Bytes are those kept."""

    num_hits: int = 0
    num_misses: int = 0
    num_corrupt: int = 0
    num_writes: int = 0
    num_errors: int = 0
    num_evicted: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


class Records(Protocol):
    """A place for records (`_record`), found by their names. Nothing here raises for the place's sake."""

    budget_bytes: int
    used_bytes: int
    stats: TierStats

    def has(self, key: bytes) -> bool: ...

    def read(self, key: bytes, parent: bytes, tokens: bytes, raw_bytes: int | None) -> bytes | None: ...

    def write(self, key: bytes, parent: bytes, tokens: bytes, raw: bytes, itemsize: int) -> bool: ...

    def pin(self, key: bytes, until: float) -> bool: ...

    def refuse(self, key: bytes) -> None: ...
