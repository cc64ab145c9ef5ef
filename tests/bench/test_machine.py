"""What calibration measures of a lower tier: that it goes the way that it says, and gives what a plan can use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pagoda.bench import machine, machine_step, pace
from pagoda.kv.offload.view import OffloadView
from pagoda.plan.machine import FarCosts, load_machine, save_machine

pytestmark = pytest.mark.host


def test_costs_of_a_lower_tier_are_those_of_one_group_and_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads come one by one, and one alone; small models and few steps, so that only the way is tested."""
    monkeypatch.setattr(machine_step, "MANY", 3)
    monkeypatch.setattr(machine_step, "NUM_STEPS", 4)
    groups: list[int] = []
    make = OffloadView.__init__

    def noted(self: OffloadView, *args: object, **options: object) -> None:
        make(self, *args, **options)  # type: ignore[arg-type]
        groups.append(len(self._groups))

    monkeypatch.setattr(OffloadView, "__init__", noted)
    costs = machine_step.far_costs()
    assert set(groups[2:8]) == {1}, "one kv-head; the first steps compute the prompt"
    assert 2 in groups, "two kv-heads"
    assert 0 in groups, "chosen pages"
    assert costs.choose + costs.page > 0


def test_rates_of_reading_are_seconds_of_a_byte_and_of_a_read() -> None:
    assert 1e-12 < machine.copy_seconds() < 1e-6
    read, read_byte = machine.cold_reads(20, 10)
    assert 0 <= read < 1.0
    assert 0 <= read_byte < 1e-6
    assert read + read_byte > 0


def test_all_that_is_measured_is_a_machine_that_can_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One format at one size; what steps cost is another test's."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(machine, "step_costs", lambda: (1e-4, 1e-5, 1e-5, 1e-9))
    monkeypatch.setattr(machine, "far_costs", FarCosts)
    monkeypatch.setattr(machine, "measured_formats", lambda: ("int8",))
    monkeypatch.setattr(machine.product_points, "__defaults__", ((1,),))
    monkeypatch.setattr(machine, "median_seconds", lambda work: work() or 1e-3)
    monkeypatch.setattr(pace.Pace.__init__, "__defaults__", (8 << 20,))
    monkeypatch.setattr(machine, "runtime_bytes", lambda: 1 << 28)
    try:
        found = machine.measure()
    finally:
        torch.set_num_threads(threads)
    assert found.products["int8"][0][0] == 1
    assert found.far.read + found.far.read_byte > 0
    file = save_machine(found, tmp_path / "machine.json")
    assert load_machine(file) == (found, f"calibrated, {file}")
