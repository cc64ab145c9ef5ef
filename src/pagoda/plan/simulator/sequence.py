"""A job, what became of it, and how the scheduler sees it while it lives."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...schedule.item import Item


@dataclass(frozen=True, slots=True)
class Job:
    """A request ``at`` seconds: ``num_output`` tokens after ``prompt``."""

    at: float
    prompt: Sequence[int]
    num_output: int
    tenant: str = ""
    priority: int = 0


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
    """

    __slots__ = (
        "arrival", "job", "moved", "num_computed", "num_output", "num_prompt", "num_tokens", "priority",
        "prompt", "reserved", "seq_id", "served", "tenant", "written",
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
        self.moved = moved

    def tokens(self, start: int, end: int) -> Sequence[int]:
        """Ids of tokens ``start`` to ``end``."""
        num_prompt = self.num_prompt
        if end <= num_prompt:
            return self.prompt[start:end]
        tail = array("i", [-1]) * (end - max(start, num_prompt))
        return tail if start >= num_prompt else array("i", self.prompt[start:num_prompt]) + tail


def of(item: Item) -> SimSequence:
    """The simulator's own sequence behind the scheduler's item."""
    assert isinstance(item, SimSequence)
    return item
