"""Who else uses the CPUs, as /proc says."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuUse:
    """Cores used since ``Meter`` was started: by processes that are not ours, and taken by the host."""

    foreign: float
    steal: float


class Meter:
    """Counts CPU time of the whole machine against that of this process and its descendants."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), _cpu_seconds()

    def read(self) -> CpuUse:
        elapsed = max(time.perf_counter() - self._started, 1e-3)
        used, steal, ours = (now - before for now, before in zip(_cpu_seconds(), self._before, strict=True))
        return CpuUse(max(0.0, (used - ours) / elapsed), steal / elapsed)


def _cpu_seconds() -> tuple[float, float, float]:
    """Used by anybody, stolen by the host, used by this process tree (ended children that were waited for included)."""
    user, nice, system, idle, wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    del idle, wait
    return (user + nice + system + irq + soft) / _TICK, steal / _TICK, _own_ticks() / _TICK


def _own_ticks() -> int:
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(entry.name)], ticks[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return sum(count for pid, count in ticks.items() if _descends(pid, os.getpid(), parents))


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root
