"""What /proc says: how much memory a worker took, what machine this is."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
