"""What /proc says of a worker's memory; another process that keeps a core busy."""

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
