from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from pagoda.budget.probe import MachineProbe, PeakMark
from pagoda.core.nodes import cores_of
from pagoda.core.units import MIB

from .conftest import Build


def test_the_real_machine_answers() -> None:
    probe = MachineProbe()
    assert 5 * MIB < probe.rss() <= probe.peak_rss()
    assert 0 < probe.private_rss() <= probe.rss()
    assert probe.mem_total() >= probe.mem_available() > 0
    assert 1 <= probe.cpus() <= (os.cpu_count() or 1)
    assert probe.headroom()[0] > 0
    assert probe.limit()[0] <= probe.mem_total()


@pytest.mark.parametrize(("wanted", "at_most"), [("1", 1), ("1,4", 1), ("0", 1), ("many", 1 << 20), ("999", 1 << 20)])
def test_the_user_may_ask_for_fewer_cpus(monkeypatch: pytest.MonkeyPatch, wanted: str, at_most: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert MachineProbe().cpus() == min(at_most, cores_of(os.sched_getaffinity(0)))


def test_hardware_threads_of_a_core_count_once(machine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5, 6})
    file = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {file.format(cpu): f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in (0, 1, 4, 5)}
    assert machine().cpus() == 5
    assert machine(siblings).cpus() == 3  # 0 and 4, 1 and 5, and one of which nothing is said


def touch(num_bytes: int) -> mmap.mmap:
    """Anonymous memory, every page written."""
    area = mmap.mmap(-1, num_bytes)
    for at in range(0, num_bytes, mmap.PAGESIZE):  # no second buffer that malloc might keep
        area[at] = 1
    return area


def test_rss_and_the_peak_follow_real_pages() -> None:
    probe = MachineProbe()
    before, mark = probe.rss(), PeakMark(probe)
    area = touch(32 * MIB)
    assert probe.rss() - before > 24 * MIB
    mark.sample()
    area.close()
    assert probe.rss() - before < 24 * MIB
    assert mark.peak() - before > 24 * MIB


def test_a_new_mark_forgets_the_old_peak() -> None:
    probe = MachineProbe()
    if not probe.reset_peak():
        pytest.skip("this kernel does not let us reset the peak")
    touch(48 * MIB).close()
    mark = PeakMark(probe)
    assert mark.peak() - probe.rss() < 32 * MIB


def write_status(root: Path, rss_kib: int, peak_kib: int) -> None:
    (root / "proc/self/status").write_text(f"VmHWM: {peak_kib} kB\nVmRSS: {rss_kib} kB\n")


def test_without_a_resettable_peak_the_mark_knows_what_it_saw(machine: Build, tmp_path: Path) -> None:
    probe = machine()
    (tmp_path / "proc/self/clear_refs").unlink()
    (tmp_path / "proc/self/clear_refs").mkdir()
    assert not probe.reset_peak()
    write_status(tmp_path, rss_kib=100, peak_kib=900)
    mark = PeakMark(probe)
    write_status(tmp_path, rss_kib=300, peak_kib=900)
    mark.sample()
    write_status(tmp_path, rss_kib=200, peak_kib=900)
    assert mark.peak() == 300 * 1024  # the old peak of 900 may be from before the mark
    write_status(tmp_path, rss_kib=200, peak_kib=950)
    assert mark.peak() == 950 * 1024  # a new record is surely ours


def test_a_machine_that_says_nothing_is_all_zeros(tmp_path: Path) -> None:
    probe = MachineProbe(tmp_path)
    assert (probe.rss(), probe.peak_rss(), probe.mem_available(), probe.cpu_model()) == (0, 0, 0, "")
    assert probe.cpu_flags() == frozenset()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:\nMemAvailable: many kB\n")
    assert (probe.mem_total(), probe.mem_available()) == (0, 0)


def test_the_processor_is_read_from_cpuinfo(machine: Build) -> None:
    probe = machine(
        {"proc/cpuinfo": "processor : 0\nmodel name : Abacus 9\nflags : fpu avx2 avx512f\n\nprocessor : 1\n"}
    )
    assert probe.cpu_model() == "Abacus 9"
    assert probe.cpu_flags() == {"fpu", "avx2", "avx512f"}
