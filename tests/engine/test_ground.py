"""Where an engine's threads stay on a machine with several memory nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagoda.budget import MachineProbe
from pagoda.engine.ground import stay_beside_memory

from ..core.test_nodes import machine


@pytest.mark.parametrize(("threads", "stays"), [(2, {16, 17, 18, 19}), (8, set(range(16))), (17, None)])
def test_threads_stay_beside_the_memory_that_they_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, stays: set[int] | None
) -> None:
    pinned: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(20)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pinned.append(cpus))
    probe = MachineProbe(machine(tmp_path, {0: ("0-15", 64, 10), 1: ("16-31", 64, 50)}))
    stay_beside_memory(threads, probe)
    assert pinned == ([] if stays is None else [stays])


def test_one_node_moves_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pytest.fail("moved"))
    stay_beside_memory(1, MachineProbe(machine(tmp_path, {0: ("0-4095", 64, 10)})))
