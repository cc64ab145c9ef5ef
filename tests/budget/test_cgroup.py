"""Control groups of both versions on a false machine, and one real group where we may make one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagoda.budget.cgroup import cpu_quota, limited_groups
from pagoda.core.units import GIB, MIB

from .conftest import Build

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
NO_LIMIT_V1 = "9223372036854771712"


def v2(path: str, **levels: dict[str, str]) -> dict[str, str]:
    """Files of a version 2 tree: keyword ``a__b`` is the group /a/b, ``root`` the mount point."""
    files = {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": V2}
    for name, values in levels.items():
        folder = "" if name == "root" else name.replace("__", "/") + "/"
        files.update({f"sys/fs/cgroup/{folder}{key.replace('_', '.', 1)}": text for key, text in values.items()})
    return files


def test_no_cgroup_means_no_limit(machine: Build, tmp_path: Path) -> None:
    probe = machine()
    assert limited_groups(tmp_path) == []
    assert cpu_quota(tmp_path) is None
    assert probe.limit() == (24 * GIB, "the machine")
    assert probe.headroom() == (20 * GIB + 300 * MIB, "MemAvailable + own RSS")


def test_version_2_reads_the_limit_and_leaves_droppable_cache_out(machine: Build) -> None:
    files = v2(
        "/app",
        root={"memory_stat": "anon 5"},
        app={
            "memory_max": str(4 * GIB),
            "memory_high": "max",
            "memory_current": str(3 * GIB),
            "memory_stat": f"anon 1\ninactive_file {GIB}\nactive_file {GIB // 2}\n",
        },
    )
    probe = machine(files)
    (group,) = probe.cgroups()
    assert (group.version, group.limit_bytes, group.usage_bytes) == (2, 4 * GIB, 3 * GIB // 2)
    # Of 1.5 GiB in use 200 MiB are our own, so others hold the rest and we may have what they leave.
    assert probe.headroom()[0] == 4 * GIB - (3 * GIB // 2 - 200 * MIB)
    assert probe.limit()[0] == 4 * GIB
    assert "cgroup v2" in probe.limit()[1]


def test_the_tightest_ancestor_counts_not_the_innermost(machine: Build) -> None:
    files = v2(
        "/slice/app",
        slice={"memory_max": str(8 * GIB), "memory_current": str(7 * GIB)},
        slice__app={"memory_max": str(4 * GIB), "memory_current": str(200 * MIB)},
    )
    probe = machine(files)
    assert [group.limit_bytes for group in probe.cgroups()] == [4 * GIB, 8 * GIB]
    room, source = probe.headroom()
    assert room == 8 * GIB - (7 * GIB - 200 * MIB)
    assert source.endswith("/slice")
    assert probe.limit()[0] == 4 * GIB


def test_an_unlimited_group_in_a_limited_parent(machine: Build) -> None:
    files = v2("/slice/app", slice={"memory_max": str(GIB)}, slice__app={"memory_max": "max"})
    assert [group.limit_bytes for group in machine(files).cgroups()] == [GIB]


def test_memory_high_is_a_limit_too(machine: Build) -> None:
    files = v2("/app", app={"memory_max": str(4 * GIB), "memory_high": str(GIB), "memory_current": "0"})
    assert machine(files).limit()[0] == GIB


def test_others_may_hold_the_whole_limit(machine: Build) -> None:
    files = v2("/app", app={"memory_max": str(GIB), "memory_current": str(3 * GIB)})
    assert machine(files).headroom()[0] == 0


@pytest.mark.parametrize("path", ["/", "/../../elsewhere", "/gone"])
def test_inside_a_namespace_the_mount_point_is_our_group(machine: Build, path: str) -> None:
    files = v2(path, root={"memory_max": str(2 * GIB), "memory_current": "0"})
    assert [group.limit_bytes for group in machine(files).cgroups()] == [2 * GIB]


def v1(path: str, mounted_root: str = "/") -> dict[str, str]:
    return {
        "proc/self/cgroup": f"9:name=systemd:/\n4:memory:{path}\n2:cpu,cpuacct:/box\n0::/\n",
        "proc/self/mountinfo": V1.format(root=mounted_root),
    }


def test_version_1_nested(machine: Build) -> None:
    base = "sys/fs/cgroup/memory"
    files = {
        **v1("/docker/abc"),
        f"{base}/memory.limit_in_bytes": NO_LIMIT_V1,
        f"{base}/docker/memory.limit_in_bytes": str(6 * GIB),
        f"{base}/docker/memory.usage_in_bytes": str(2 * GIB),
        f"{base}/docker/memory.stat": f"cache 7\ninactive_file 1\ntotal_inactive_file {MIB}\ntotal_active_file {MIB}\n",
        f"{base}/docker/abc/memory.limit_in_bytes": str(5 * GIB),
        f"{base}/docker/abc/memory.usage_in_bytes": str(GIB),
    }
    inner, outer = machine(files).cgroups()
    assert (inner.version, inner.limit_bytes, inner.usage_bytes) == (1, 5 * GIB, GIB)
    assert (outer.limit_bytes, outer.usage_bytes) == (6 * GIB, 2 * GIB - 2 * MIB)


def test_version_1_with_the_path_of_the_host_and_a_mounted_part(machine: Build) -> None:
    files = {
        **v1("/docker/abc/inner", mounted_root="/docker/abc"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(3 * GIB),
        "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": str(2 * GIB),
    }
    assert [group.limit_bytes for group in machine(files).cgroups()] == [2 * GIB, 3 * GIB]


def test_a_mount_point_with_a_blank_and_lines_that_make_no_sense(machine: Build) -> None:
    files = {
        "proc/self/cgroup": "nonsense\n0::/app\n",
        "proc/self/mountinfo": "\nshort - cgroup2\n30 24 0:26 / /sys/fs/c\\040group rw - cgroup2 cgroup2 rw\n",
        "sys/fs/c group/app/memory.max": str(GIB),
    }
    assert machine(files).limit()[0] == GIB


@pytest.mark.parametrize(
    ("quota", "cpus"), [("150000 100000", 1.5), ("max 100000", None), ("100000 0", None), ("", None)]
)
def test_cpu_quota_of_version_2(machine: Build, tmp_path: Path, quota: str, cpus: float | None) -> None:
    machine(v2("/app", app={"cpu_max": quota}))
    assert cpu_quota(tmp_path) == cpus


def test_cpu_quota_of_version_1_is_the_tightest_of_its_levels(machine: Build, tmp_path: Path) -> None:
    base = "sys/fs/cgroup/cpu,cpuacct"
    files = {
        **v1("/"),
        f"{base}/cpu.cfs_quota_us": "50000",
        f"{base}/cpu.cfs_period_us": "100000",
        f"{base}/box/cpu.cfs_quota_us": "-1",
        f"{base}/box/cpu.cfs_period_us": "100000",
    }
    probe = machine(files)
    assert cpu_quota(tmp_path) == 0.5
    assert probe.cpus() == 1


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A real memory group of 300 MiB; skipped where this user or this kernel does not let us make one."""
    name = f"pagoda-test-{os.getpid()}"
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(base) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(300 * MIB))
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no memory control group can be made here (not root, or a read-only /sys/fs/cgroup)")


def test_a_real_group_bounds_the_default_budget(real_group: Path) -> None:
    code = (
        "import sys, os; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from pagoda.budget import MachineProbe, default_budget\n"
        "probe = MachineProbe(); print(probe.limit()[0]); print(default_budget(0.5).total_bytes)\n"
        "print(probe.headroom()[0]); print(default_budget(None).total_bytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(real_group)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    limit, half, room, default = (int(line) for line in done.stdout.split())
    assert limit == 300 * MIB
    assert half == 150 * MIB
    assert 200 * MIB < room <= 300 * MIB  # the rest: what a fresh interpreter's pages in the group cost
    assert default == room - 256 * MIB or abs(default - (room - 256 * MIB)) < 2 * MIB
