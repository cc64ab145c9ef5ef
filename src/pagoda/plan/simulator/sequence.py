"""A job, what became of it, and how the scheduler sees it while it lives."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from ...schedule.item import Item

NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Job:
    """A request ``at`` seconds: ``num_output`` tokens after ``prompt``."""

    at: float
    prompt: Sequence[int]
    num_output: int
    tenant: str = ""
    priority: int = 0


class BlockPrompt(Sequence[int]):
    """A prompt whose blocks a trace has named: equal tokens where blocks are equal, made only for who looks at them."""

    def __init__(self, blocks: Sequence[int], block: int, num_tokens: int) -> None:
        self.blocks, self.block, self._num_tokens = blocks, block, num_tokens

    def __len__(self) -> int:
        return self._num_tokens

    def __getitem__(self, index: Any) -> Any:
        return self._tokens[index]

    def names(self) -> bytes:
        """``NAME_BYTES`` for each of its blocks. The last may be in part the answer's, whose tokens are all alike."""
        named = np.zeros((-(-self._num_tokens // self.block), 2), np.int64)
        named[:, 0] = self.blocks[: len(named)]
        named[-1, 1] = self._num_tokens % self.block
        return named.tobytes()

    @cached_property
    def _tokens(self) -> array[int]:
        seeds = np.array(self.blocks, np.int64)[:, None] * 2654435761
        tokens = ((seeds + np.arange(self.block, dtype=np.int64) * 40503) & 0x7FFFFFFF).astype(np.int32)
        return array("i", tokens.tobytes())[: self._num_tokens]


@dataclass(slots=True)
class Served:
    """What became of a request: when each token of the answer came (seconds of the same clock as ``at``)."""

    at: float
    num_prompt: int
    num_output: int
    tenant: str = ""
    num_cached: int = 0
    num_preemptions: int = 0
    token_at: array[float] = field(default_factory=lambda: array("d"))
    error: str = ""


class SimSequence:
    """The scheduler's view of a job. Sampled tokens are -1: no other answer goes on alike.

    ``reserved``: slots that its pages have; ``written``: tokens that the page accounting was told of.
    ``moved``: tokens whose KV came from another machine; they take pages, and are not computed.
    ``node``, ``own_blocks``: where its text is in the tree of prefixes, and its blocks that are no entry's.
    """

    __slots__ = (
        "_names", "arrival", "job", "moved", "node", "num_computed", "num_output", "num_prompt", "num_tokens",
        "own_blocks", "priority", "prompt", "reserved", "seq_id", "served", "tenant", "written",
    )  # fmt: skip
    chunk_end = sys.maxsize
    salt = ""
    max_output = None  # what a policy knows of the answer's length, it must have learned

    def __init__(self, seq_id: int, job: Job, served: Served, moved: int = 0) -> None:
        self.seq_id, self.job, self.served, self.prompt = seq_id, job, served, job.prompt
        self.arrival, self.priority, self.tenant = job.at, job.priority, job.tenant
        self.num_prompt = len(job.prompt)
        self.num_output = 1 if moved else 0
        self.num_tokens = self.num_prompt + self.num_output
        self.num_computed = self.reserved = self.written = 0
        self.moved, self.own_blocks, self._names = moved, 0, b""
        self.node: Any = None

    def slots(self, num_tokens: int) -> int:
        """Nothing is dropped."""
        return num_tokens

    @property
    def slots_now(self) -> int:
        """All that are known."""
        return self.num_tokens

    def tokens(self, start: int, end: int) -> Sequence[int]:
        """Ids of tokens ``start`` to ``end``."""
        num_prompt = self.num_prompt
        if end <= num_prompt:
            return self.prompt[start:end]
        tail = array("i", [-1]) * (end - max(start, num_prompt))
        return tail if start >= num_prompt else array("i", self.prompt[start:num_prompt]) + tail

    def page_names(self, page_size: int, num_pages: int) -> bytes:
        """Names of its first full pages, at least so many: equal where the pages and all before them are equal."""
        have = len(self._names) // NAME_BYTES
        if have < num_pages:
            made = [self._names]
            if not have and isinstance(self.prompt, BlockPrompt) and self.prompt.block == page_size:
                made.append(self.prompt.names())
                have = -(-self.num_prompt // page_size)
            made += [_name_of(self.tokens(p * page_size, (p + 1) * page_size)) for p in range(have, num_pages)]
            self._names = b"".join(made)
        return self._names


def _name_of(page: Sequence[int]) -> bytes:
    return blake2b(array("q", page).tobytes(), digest_size=NAME_BYTES).digest()


def of(item: Item) -> SimSequence:
    """The simulator's own sequence behind the scheduler's item."""
    assert isinstance(item, SimSequence)
    return item
