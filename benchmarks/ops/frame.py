"""What every op's benchmark says: a line of a table with times, rates and the share of what the machine can do.

The least time for a call is the larger of bytes / bandwidth and operations / rate of products (Williams, Waterman,
Patterson, "Roofline", 2009), both measured in the same run by the same clock. Bytes are counted once, in and out; what
lies in a cache (a few tokens' rows) may beat that limit, which is memory's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pagoda.kernels.dispatch import OPS

from ..probe import NoProbeError, Prober
from .results import Line, Taken
from .timing import CLOCKS, Times

READ_BYTES, GEMM_SIZE, LOOKS = 512 << 20, 2048, 9


@dataclass(frozen=True)
class Limits:
    """Bytes a second read in order from memory, and operations a second of torch's large products."""

    read: float
    bf16: float
    int8: float
    fp32: float

    @classmethod
    def measure(cls, clock: str) -> Limits:
        size = (GEMM_SIZE, GEMM_SIZE)
        half, byte, whole = (torch.ones(size, dtype=dtype) for dtype in (torch.bfloat16, torch.int8, torch.float32))
        ops = 2 * GEMM_SIZE**3
        return cls(
            _read(clock),
            ops / _least(lambda: half @ half, clock),
            ops / _least(lambda: torch._int_mm(byte, byte), clock),
            ops / _least(lambda: whole @ whole, clock),
        )

    def __str__(self) -> str:
        rates = f"{self.bf16 / 1e9:.0f} Gop/s in bf16, {self.int8 / 1e9:.0f} in int8, {self.fp32 / 1e9:.0f} in fp32"
        return f"limits: {self.read / 1e9:.1f} GB/s read, {rates}"


def _read(clock: str) -> float:
    """By the probe of benchmarks.probe, which reads half as much again as torch's sum does (31 and 22 GB/s)."""
    words = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    by_torch = READ_BYTES / _least(lambda: words.sum(), clock)
    if clock == "cpu":
        return by_torch
    try:
        return max(by_torch, Prober(torch.get_num_threads())().read_gb_s * 1e9)
    except NoProbeError:
        return by_torch


def _least(way: Callable[[], object], clock: str) -> float:
    now, found = CLOCKS[clock], []
    for _ in range(LOOKS):
        started = now()
        way()
        found.append(now() - started)
    return min(found)


def plain(op: str) -> Callable[..., Any]:
    """The reference of an op, which defines it."""
    return OPS[op].reference


@dataclass(frozen=True)
class Measured:
    """One line. ``about`` tells it from the others of its table; ``times`` has "pagoda" and perhaps others; ``rate``
    is the limit that its operations have.
    """

    about: dict[str, object]
    times: dict[str, Times]
    num_bytes: int
    num_ops: int = 0
    rate: str = "bf16"

    def least(self, limits: Limits) -> float:
        """Seconds: no machine like this could be faster."""
        return max(self.num_bytes / limits.read, self.num_ops / getattr(limits, self.rate))


def lines(op: str, table: str, measured: Iterable[Measured], limits: Limits) -> Iterator[Line]:
    """What is printed and kept of a table, line by line as they come."""
    for one in measured:
        ways = {name: Taken(t.usual, t.least, t.spread, len(t.seconds)) for name, t in one.times.items()}
        yield Line(op, table, one.about, ways, one.num_bytes, one.num_ops, one.least(limits))
