"""What every op's benchmark says: a line of a table with times, rates and the share of what the machine can do.

The least time for a call is the larger of bytes / bandwidth and operations / rate of products (Williams, Waterman,
Patterson, "Roofline", 2009), both measured in the same run by the same clock. Bytes are counted once, in and out; what
lies in a cache (a few tokens' rows) may beat that limit, which is memory's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .timing import CLOCKS, Times

READ_BYTES, GEMM_SIZE, LOOKS = 512 << 20, 2048, 5


@dataclass(frozen=True)
class Limits:
    """Bytes a second read in order from memory, and operations a second of torch's large products."""

    read: float
    bf16: float
    int8: float
    fp32: float

    @classmethod
    def measure(cls, clock: str) -> Limits:
        words = torch.ones(READ_BYTES // 8, dtype=torch.int64)
        size = (GEMM_SIZE, GEMM_SIZE)
        half, byte, whole = (torch.ones(size, dtype=dtype) for dtype in (torch.bfloat16, torch.int8, torch.float32))
        ops = 2 * GEMM_SIZE**3
        return cls(
            READ_BYTES / _least(lambda: words.sum(), clock),
            ops / _least(lambda: half @ half, clock),
            ops / _least(lambda: torch._int_mm(byte, byte), clock),
            ops / _least(lambda: whole @ whole, clock),
        )

    def __str__(self) -> str:
        rates = f"{self.bf16 / 1e9:.0f} Gop/s in bf16, {self.int8 / 1e9:.0f} in int8, {self.fp32 / 1e9:.0f} in fp32"
        return f"limits: {self.read / 1e9:.1f} GB/s read, {rates}"


def _least(way: Callable[[], object], clock: str) -> float:
    now, found = CLOCKS[clock], []
    for _ in range(LOOKS):
        started = now()
        way()
        found.append(now() - started)
    return min(found)


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

    def share_of(self, limits: Limits) -> float:
        """1: no machine like this could be faster."""
        least = max(self.num_bytes / limits.read, self.num_ops / getattr(limits, self.rate))
        return least / self.times["pagoda"].usual


def show(title: str, lines: Iterable[Measured], limits: Limits) -> list[dict[str, object]]:
    """Prints a table, line by line as they come; returns the same for ``--json``."""
    found: list[dict[str, object]] = []
    print(f"{title}\n")
    for line in lines:
        ours, others = line.times["pagoda"].usual, [name for name in line.times if name != "pagoda"]
        if not found:
            heads = [*line.about, "pagoda, us", *(f"{name}, us | {name} / pagoda" for name in others)]
            print(f"| {' | '.join([*heads, 'GB/s', 'Gop/s', 'share of limit'])} |")
            print(f"| {' | '.join(['---:'] * (len(line.about) + 4 + 2 * len(others)))} |")
        cells = [*map(str, line.about.values()), str(line.times["pagoda"])]
        cells += [f"{line.times[name]} | {line.times[name].usual / ours:.2f}" for name in others]
        rates = line.num_bytes / ours / 1e9, line.num_ops / ours / 1e9
        print(f"| {' | '.join([*cells, f'{rates[0]:.1f}', f'{rates[1]:.0f}' if rates[1] else '-'])} ", end="")
        print(f"| {line.share_of(limits):.2f} |", flush=True)
        seconds = {name: {"median": one.usual, "least": one.least} for name, one in line.times.items()}
        found.append(
            {"table": title, **line.about, "seconds": seconds, "bytes": line.num_bytes, "ops": line.num_ops,
             "share": line.share_of(limits)}
        )  # fmt: skip
    print()
    return found
