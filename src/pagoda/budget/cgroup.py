"""Memory limits of control groups, versions 1 and 2, nested: the tightest level counts.

    /sys/fs/cgroup              mount point      memory.max   max
      └ system.slice                                          8 GiB   others use 5 GiB  -> 3 GiB for us  <- tightest
          └ app.service         our group                     4 GiB   others use 0      -> 4 GiB for us

A limit holds for a group and everything below it, so each ancestor is asked what it leaves to us. Inside a container
the path in ``/proc/self/cgroup`` may be the host's; ``/proc/self/mountinfo`` says which part of the tree is mounted.
https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.system_files import read_text

# "No limit" in version 1 is a number close to 2**63, rounded down to a page.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """One group with a memory limit. All figures in bytes."""

    version: int
    path: str
    limit_bytes: int
    usage_bytes: int
    """What the group holds and could not drop: page cache on the kernel's reclaim lists is left out."""
    current_bytes: int = 0
    """The same with that page cache: what the kernel compares with the limit."""
    peak_bytes: int | None = None
    """The most that ``current_bytes`` has been; None where the kernel keeps no record (version 2 before Linux 5.19)."""


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    version: int
    mount: Path
    group: Path

    def levels(self) -> Iterator[Path]:
        """Our own group, then its ancestors up to the mount point."""
        yield self.group
        if self.group != self.mount:
            yield from (p for p in self.group.parents if p == self.mount or self.mount in p.parents)


def limited_groups(root: Path) -> list[CgroupMemory]:
    """Every group above (and including) this process's own that has a memory limit, innermost first."""
    groups = []
    for hierarchy in _hierarchies(root):
        for level in hierarchy.levels():
            found = _read_v2(level) if hierarchy.version == 2 else _read_v1(level)
            if found is not None:
                groups.append(found)
    return groups


def cpu_quota(root: Path) -> float | None:
    """CPUs that the tightest ``cpu.max`` (or CFS quota) grants; None without a quota."""
    quotas = []
    for hierarchy in _hierarchies(root, controller="cpu"):
        for level in hierarchy.levels():
            if hierarchy.version == 2:
                quota, _, period = read_text(level / "cpu.max").partition(" ")
            else:
                quota, period = read_text(level / "cpu.cfs_quota_us"), read_text(level / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit() and int(period) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _hierarchies(root: Path, controller: str = "memory") -> list[_Hierarchy]:
    paths = _own_paths(read_text(root / "proc/self/cgroup"), controller)
    found = []
    for version, mounted_root, mount in _mounts(read_text(root / "proc/self/mountinfo"), controller):
        if version in paths:
            base = root / mount.lstrip("/")
            found.append(_Hierarchy(version, base, _locate(base, mounted_root, paths[version])))
    return found


def _own_paths(text: str, controller: str) -> dict[int, str]:
    """``{2: path, 1: path}`` of this process, from lines ``id:controllers:path`` (version 2: id 0, no controllers)."""
    paths = {}
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(text: str, controller: str) -> Iterator[tuple[int, str, str]]:
    """``(version, part of the tree that is mounted, mount point)`` from mountinfo (see proc(5))."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind, options = left.split(), right.partition(" ")[0], right.rpartition(" ")[2]
        if len(fields) < 5:
            continue
        if kind == "cgroup2":
            yield 2, _unescape(fields[3]), _unescape(fields[4])
        elif kind == "cgroup" and controller in options.split(","):
            yield 1, _unescape(fields[3]), _unescape(fields[4])


def _unescape(field: str) -> str:
    """Mountinfo writes a blank as ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def _locate(base: Path, mounted_root: str, path: str) -> Path:
    """Our group's folder under the mount point; the mount point itself where the path is outside of what we see."""
    relative = path.removeprefix(mounted_root) if mounted_root != "/" else path
    group = base / relative.lstrip("/")
    return group if ".." not in Path(path).parts and group.is_dir() else base


def _read_v2(level: Path) -> CgroupMemory | None:
    # memory.high throttles and reclaims instead of killing, but past it nothing runs at a useful speed: a limit for us.
    limits = [int(text) for name in ("memory.max", "memory.high") if (text := read_text(level / name)).isdigit()]
    usage = read_text(level / "memory.current")
    if not limits:
        return None
    cache = _stat(level, "inactive_file", "active_file")
    current, peak = int(usage or 0), read_text(level / "memory.peak")
    return CgroupMemory(2, str(level), min(limits), max(0, current - cache), current, _number(peak))


def _read_v1(level: Path) -> CgroupMemory | None:
    limit, usage = read_text(level / "memory.limit_in_bytes"), read_text(level / "memory.usage_in_bytes")
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    cache = _stat(level, "total_inactive_file", "total_active_file")
    current, peak = int(usage or 0), read_text(level / "memory.max_usage_in_bytes")
    return CgroupMemory(1, str(level), int(limit), max(0, current - cache), current, _number(peak))


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _stat(level: Path, *names: str) -> int:
    fields = dict(line.split()[:2] for line in read_text(level / "memory.stat").splitlines() if " " in line)
    return sum(int(fields.get(name, 0)) for name in names)
