"""Step times fitted to measured steps: exact where the truth has the fitted form, and robust."""

from __future__ import annotations

from random import Random

import pytest

from pagoda.bench.step_fit import Sample, fit_steps
from pagoda.core.errors import ConfigError
from pagoda.plan.work import StepModel


def truth(decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
    return 0.001 + 1e-4 * (decodes + chunk) + 2e-5 * rows + 1e-6 * slots + 1e-8 * pairs


def samples(disturbed: float = 0.0, noise: float = 0.0) -> list[Sample]:
    random, found = Random(3), []
    for _ in range(300):
        decodes = random.choice((0, 1, 2, 4, 8, 16))
        chunk = random.choice((0, 16, 64, 128, 256)) if decodes else random.choice((1, 4, 64, 256))
        slots, start = decodes * random.randrange(500), random.randrange(900)
        work = (decodes, slots, chunk, chunk * (start + chunk / 2), decodes + random.randrange(2) * bool(chunk))
        seconds = truth(*work) * (1 + noise * random.uniform(-1, 1))
        found.append(Sample(*work, seconds * (8 if random.random() < disturbed else 1)))
    return found


def test_the_fit_finds_the_law_between_and_beyond_the_knots() -> None:
    steps = fit_steps(samples())
    for work in ((1, 10.0, 0, 0.0, 1), (12, 700.0, 0, 0.0, 12), (4, 100.0, 100, 9000.0, 5), (0, 0.0, 600, 5e5, 0)):
        assert steps.step_seconds(*work) == pytest.approx(truth(*work), rel=0.03)
    assert steps.spread < 0.01


def test_disturbed_steps_are_left_out() -> None:
    steps = fit_steps(samples(disturbed=0.1, noise=0.05))
    assert steps.step_seconds(4, 100.0, 100, 9000.0, 5) == pytest.approx(truth(4, 100.0, 100, 9000.0, 5), rel=0.06)


class Expected(StepModel):
    """Knows what a slot and a pair take, and nothing else."""

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        return 1.0 + 1e-6 * slots + 1e-8 * pairs


def test_what_short_contexts_do_not_tell_is_as_expected() -> None:
    """A slow minute while contexts were long is not what a slot takes; where steps do tell, they are believed."""
    short = [s._replace(slots=s.slots / 50, pairs=s.pairs / 50) for s in samples()]
    drifted = [s._replace(seconds=truth(*s[:5]) * (1.15 if s.slots > 20 else 1.0)) for s in short]
    assert fit_steps(drifted).slot > 4e-6
    assert fit_steps(drifted, Expected()).slot == pytest.approx(1e-6, rel=0.5)
    dearer = [s._replace(seconds=s.seconds + 2e-6 * s.slots) for s in samples()]
    assert fit_steps(dearer, Expected()).slot == pytest.approx(3e-6, rel=0.1)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 measured steps are too few"):
        fit_steps(samples()[:8])
