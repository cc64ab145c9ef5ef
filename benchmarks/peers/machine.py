"""What /proc says: who uses the CPUs, how much memory a worker took, what machine this is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICK = os.sysconf("SC_CLK_TCK")


def peak_rss_bytes(pid: int) -> int:
    """VmHWM: the largest resident set the process ever had, pages of mapped files included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def describe() -> dict[str, object]:
    """Processor, cores, memory and the flags that matter to a kernel."""
    from pagoda.budget import MachineProbe

    probe = MachineProbe()
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    read = {key.strip(): value.strip() for key, value in fields.items()}
    return {
        "cpu": probe.cpu_model(),
        "cpu_family_model": f"{read.get('cpu family', '?')}/{read.get('model', '?')}",
        "cores": probe.cpus(),
        "memory_gib": round(probe.mem_total() / 2**30),
        "flags": [flag for flag in wanted if flag in probe.cpu_flags()],
    }


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


@contextmanager
def busy_neighbour(wanted: bool = True) -> Iterator[None]:
    """A process that loops for as long as the block runs, at most ten minutes: what another tenant's batch job does."""
    if not wanted:
        yield
        return
    loop = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"
    process = subprocess.Popen([sys.executable, "-S", "-c", loop])
    time.sleep(0.3)
    try:
        yield
    finally:
        process.kill()
        process.wait()
