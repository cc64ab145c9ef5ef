"""What calibration measures of a lower tier: that it goes the way that it says, and gives what a plan can use."""

from __future__ import annotations

import pytest

from pagoda.bench import machine, machine_step
from pagoda.kv.offload.view import OffloadView

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
    assert min(costs.layer, costs.group, costs.choose, costs.page) >= 0


def test_rates_of_reading_are_seconds_of_a_byte_and_of_a_read() -> None:
    assert 1e-12 < machine.copy_seconds() < 1e-6
    read, read_byte = machine.cold_reads(20, 10)
    assert 0 <= read < 1.0
    assert 0 <= read_byte < 1e-6
    assert read + read_byte > 0
