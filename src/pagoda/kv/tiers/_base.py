"""What tiers have in common: names of pages, counters, and what one asks of the next colder one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ._form import Form


class Name(NamedTuple):
    """A page of tokens: its key (`_record.child_key`), that of the text before it, and the tokens."""

    key: bytes
    parent: bytes
    tokens: bytes


@dataclass(slots=True)
class TierStats:
    """Since the start, of this process, in pages of tokens. Bytes are those kept. A run is what was written or read in
    one go.
    """

    num_hits: int = 0
    num_misses: int = 0
    num_corrupt: int = 0
    num_writes: int = 0
    num_errors: int = 0
    num_evicted: int = 0
    num_read_runs: int = 0
    num_written_runs: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


class Records(Protocol):
    """A place for records (`_record`), found by their names. Nothing here raises for the place's sake."""

    budget_bytes: int
    used_bytes: int
    stats: TierStats
    form: Form
    """What becomes of pages here."""

    def where(self, key: bytes) -> str | None:
        """Which tier has a record of that name (``host``, ``disk``); None: none. What it is worth is seen when it is
        read.
        """
        ...

    def read(self, names: Sequence[Name]) -> list[bytes | None]:
        """The pages' bytes of the first name, and of those after it that lie beside it: at least one answer, None
        where they are not there, or are not what they should be.
        """
        ...

    def write(self, run: Sequence[tuple[Name, bytes]]) -> int:
        """Keeps pages of one text that follow each other; returns how many of them are here now."""
        ...

    def pin(self, key: bytes, until: float) -> bool: ...
