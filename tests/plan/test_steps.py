"""Step times of one model: kept, found again, and taken instead of the roofline."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.budget.probe import MachineProbe
from pagoda.models.catalog import read_config
from pagoda.plan.machine import Machine
from pagoda.plan.roofline import Roofline
from pagoda.plan.steps import FittedSteps, load_steps, save_steps, step_model, steps_file
from pagoda.plan.subject import Subject

STEPS = FittedSteps(body=((1, 0.001), (64, 0.004)), head=((1, 0.0), (8, 1e-4)), slot=1e-6, pair=1e-8)


def test_what_was_measured_takes_the_rooflines_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    subject, guess = Subject.of("lantern", read_config("lantern")), Machine.guess(MachineProbe())
    machine = Machine(**{f: getattr(guess, f) for f in Machine.__slots__} | {"measured": True})
    assert isinstance(step_model(subject, "auto", "auto", machine), Roofline)
    file, steps = steps_file(subject, "auto", "auto", machine), STEPS
    save_steps(steps, file)
    assert load_steps(file) == steps
    assert step_model(subject, "auto", "auto", machine) == steps
    assert isinstance(step_model(subject, "int8", "auto", machine), Roofline)
    assert isinstance(step_model(subject, "auto", "auto", guess), Roofline)  # nobody measured here


@pytest.mark.parametrize("text", ["", "{}", '{"body": [], "head": [], "slot": 0, "pair": 0}', '{"body": [[1, -1]]}'])
def test_a_broken_file_is_no_measurement(tmp_path: Path, text: str) -> None:
    file = tmp_path / "steps.json"
    file.write_text(text)
    assert load_steps(file) is None
    assert load_steps(tmp_path / "none.json") is None


def test_one_measured_size_is_a_constant() -> None:
    steps = FittedSteps(body=((4, 0.5),), head=(), slot=0.0, pair=0.0)
    assert [steps.step_seconds(n, 0.0, 0, 0.0, 0) for n in (1, 4, 9)] == [0.5, 0.5, 0.5]


def test_times_are_read_between_and_beyond_the_knots() -> None:
    assert STEPS.step_seconds(0, 0.0, 127, 0.0, 0) == pytest.approx(0.007)
    assert STEPS.step_seconds(8, 100.0, 0, 0.0, 8) == pytest.approx(0.001 + 7 * 0.003 / 63 + 1e-4 + 1e-4)
