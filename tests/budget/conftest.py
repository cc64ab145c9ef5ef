"""A false machine: the few files of /proc and /sys that the probe reads, under a temporary root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pagoda.budget.probe import MachineProbe

GIB_KIB = 1 << 20

Build = Callable[..., MachineProbe]


@pytest.fixture
def machine(tmp_path: Path) -> Build:
    """``machine(files, rss_kib=…, available_kib=…)``: files maps a path under the root to its text."""

    def build(
        files: dict[str, str] | None = None,
        *,
        rss_kib: int = 300 * 1024,
        anon_kib: int = 200 * 1024,
        total_kib: int = 24 * GIB_KIB,
        available_kib: int = 20 * GIB_KIB,
    ) -> MachineProbe:
        texts = {
            "proc/self/status": f"Name:\tpython\nVmHWM:\t{rss_kib + 1000} kB\nVmRSS:\t{rss_kib} kB\n"
            f"RssAnon:\t{anon_kib} kB\nRssFile:\t{rss_kib - anon_kib} kB\nRssShmem:\t0 kB\nThreads:\t1\n",
            "proc/meminfo": f"MemTotal: {total_kib} kB\nMemFree: 1 kB\nMemAvailable: {available_kib} kB\n",
            "proc/self/clear_refs": "",
            **(files or {}),
        }
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return MachineProbe(tmp_path)

    return build
