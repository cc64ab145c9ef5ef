"""Replicas for the simulator: rented ones are the catalogue's, the one here is what ``pagoda plan`` goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.core.errors import ConfigError
from pagoda.plan import targets
from pagoda.plan.catalogue import pick_machine
from pagoda.plan.roofline import Roofline
from pagoda.plan.steps import FittedSteps
from pagoda.schedule.scheduler import Limits

LIMITS = Limits(256, 4)


@pytest.fixture(autouse=True)
def nothing_calibrated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_rented_machine_has_the_room_that_the_model_leaves() -> None:
    machine = pick_machine("l4")
    target = targets.rented("llama-2-7b", machine, LIMITS)
    fmt = target.setting.fmt
    assert target.setting.num_blocks * fmt.page_size * fmt.bytes_per_token < machine.memory_bytes - 2 * 6_700_000_000
    assert target.setting.limits == LIMITS
    assert target.reason.startswith("l4: 60% and 80%")
    assert targets.rented("llama-2-7b", machine, LIMITS, blocks=7).setting.num_blocks == 7
    wide = targets.rented("llama-2-7b", machine, LIMITS, page_size=32).setting
    assert wide.fmt.page_size == 32
    assert abs(wide.num_blocks - target.setting.num_blocks // 2) <= 1


def test_this_machine_has_the_room_of_its_budget() -> None:
    target = targets.here("lantern", LIMITS, memory="2GiB")
    assert isinstance(target.setting.cost, Roofline)
    assert "guessed" in target.reason
    small = targets.here("lantern", LIMITS, memory="1GiB")
    assert 0 < small.setting.num_blocks < target.setting.num_blocks
    eight = targets.here("lantern", LIMITS, memory="1GiB", kv_cache_dtype="int8")
    assert eight.setting.fmt.bytes_per_token < small.setting.fmt.bytes_per_token
    assert eight.setting.num_blocks > small.setting.num_blocks
    assert targets.here("lantern", LIMITS, memory="1GiB", blocks=5).setting.num_blocks == 5


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise --memory"):
        targets.here("lantern", LIMITS, memory="1MB")


def test_measured_steps_are_what_is_gone_by(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FittedSteps(((1, 0.01),), ((1, 0.0),), 0.0, 0.0, num_steps=42)
    monkeypatch.setattr(targets, "step_model", lambda *given: made)
    target = targets.here("lantern", LIMITS, blocks=5)
    assert target.setting.cost is made
    assert target.reason == "this machine: 42 measured steps"
