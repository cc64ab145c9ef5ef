"""What the machine says about memory: this process, the whole machine, and the control group we live in.

Nothing here trusts "free memory": in a container it is the host's, and page cache counts as used. Figures are bytes.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from ..core.nodes import Node, cores_of, read_nodes
from ..core.system_files import read_text
from .cgroup import CgroupMemory, cpu_quota, limited_groups


class MachineProbe:
    """Reads ``/proc`` and the cgroup files under ``root`` (another root: a false machine, for tests)."""

    def __init__(self, root: str | Path = "/") -> None:
        self._root = Path(root)

    def rss(self) -> int:
        """Resident bytes of this process now (anonymous, file pages mapped and touched, shared)."""
        return self._status("VmRSS")

    def private_rss(self) -> int:
        """Resident bytes that are no file's: what the kernel cannot drop under pressure."""
        return self._status("RssAnon") + self._status("RssShmem")

    def file_rss(self) -> int:
        """Resident bytes of mapped files: code and data of libraries, which the kernel can drop and read again."""
        return self._status("RssFile")

    def peak_rss(self) -> int:
        """The most that ``rss`` has been, since the process started or since ``reset_peak``."""
        return self._status("VmHWM")

    def reset_peak(self) -> bool:
        """Starts the kernel's own peak anew (``clear_refs``, proc(5)); False where that is not allowed."""
        try:
            (self._root / "proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def mem_total(self) -> int:
        """The machine's memory."""
        return self._meminfo("MemTotal")

    def mem_available(self) -> int:
        """What the kernel thinks can be allocated without swapping (page cache that can be dropped included)."""
        return self._meminfo("MemAvailable")

    def cgroups(self) -> list[CgroupMemory]:
        """Groups with a memory limit that this process is in, innermost first."""
        return limited_groups(self._root)

    def tightest_cgroup(self) -> CgroupMemory | None:
        """The group that leaves this process the least; None where no group has a limit."""
        return min(self.cgroups(), key=lambda group: group.limit_bytes - group.usage_bytes, default=None)

    def limit(self) -> tuple[int, str]:
        """The most that any process here could ever hold, and what says so: machine, or the smallest cgroup limit."""
        limits = [(group.limit_bytes, f"cgroup v{group.version} {group.path}") for group in self.cgroups()]
        return min([(self.mem_total(), "the machine"), *limits])

    def headroom(self) -> tuple[int, str]:
        """The most that *this* process could hold now, everything it already holds included, and what says so.

        ``min(limit of each cgroup - what others in it use, MemAvailable + own RSS)``.
        """
        own = self.private_rss()
        rooms = [
            (max(0, group.limit_bytes - max(0, group.usage_bytes - own)), f"cgroup v{group.version} {group.path}")
            for group in self.cgroups()
        ]
        return min([(self.mem_available() + self.rss(), "MemAvailable + own RSS"), *rooms])

    def cpus(self) -> int:
        """Threads that compute here: one for each core of the CPUs that this thread may use (tiles fill its caches), at
        most the cgroup's quota, rounded up, and OMP_NUM_THREADS, if set.
        """
        limits = [cores_of(os.sched_getaffinity(0), self._root)]
        quota = cpu_quota(self._root)
        if quota is not None:
            limits.append(math.ceil(quota))
        # OpenMP also reads lists ("4,2", one number per nesting level); the first is ours.
        wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        if wanted.isdecimal():
            limits.append(int(wanted))
        return max(1, min(limits))

    def nodes(self) -> list[Node]:
        """Memory nodes in ascending order; none where the system does not say."""
        return read_nodes(self._root)

    def cpu_model(self) -> str:
        """The processor's name, empty where the kernel does not say."""
        return self._cpuinfo("model name")

    def cpu_flags(self) -> frozenset[str]:
        """Instruction sets by the kernel's names: ``avx2``, ``avx512f``, ``avx512_vnni``, ``avx512_bf16``, …"""
        return frozenset((self._cpuinfo("flags") or self._cpuinfo("Features")).split())

    def _status(self, key: str) -> int:
        return _kib(self._root / "proc/self/status", key)

    def _meminfo(self, key: str) -> int:
        return _kib(self._root / "proc/meminfo", key)

    def _cpuinfo(self, key: str) -> str:
        for line in read_text(self._root / "proc/cpuinfo").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
        return ""


class PeakMark:
    """The most that RSS has been since the mark was set. One at a time: it may reset the kernel's own peak.

    Exact where the kernel lets us reset its counter, or when the process passed its old peak since; otherwise the
    largest of the values seen by ``sample`` and ``peak``.
    """

    def __init__(self, probe: MachineProbe) -> None:
        self._probe = probe
        self._was_reset = probe.reset_peak()
        self._old_peak = probe.peak_rss()
        self._seen = probe.rss()

    def sample(self) -> None:
        """Notes the RSS of this moment; worth a call where the counter cannot be reset."""
        self._seen = max(self._seen, self._probe.rss())

    def peak(self) -> int:
        """Bytes; never less than the RSS at the mark."""
        self.sample()
        kernel_peak = self._probe.peak_rss()
        exact = self._was_reset or kernel_peak > self._old_peak
        return max(self._seen, kernel_peak) if exact else self._seen


def _kib(path: Path, key: str) -> int:
    """The bytes of a ``Key:   123 kB`` line; 0 where there is none (old kernels, or not Linux)."""
    for line in read_text(path).splitlines():
        if line.startswith(f"{key}:"):
            with contextlib.suppress(ValueError, IndexError):
                return int(line.split()[1]) * 1024
    return 0
