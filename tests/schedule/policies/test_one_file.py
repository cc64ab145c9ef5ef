"""A policy from another paper is one file: the docs' example, put into the folder, is a policy like the others."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagoda.schedule.policies as folder
from pagoda.core.types import KVFormat
from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.replica import Setting
from pagoda.plan.simulator.sequence import Job
from pagoda.plan.work import StepModel
from pagoda.schedule.scheduler import Limits

from . import test_conformance as conformance

PAGE = Path(__file__).parents[3] / "docs" / "scheduling.md"
CHECKS = [
    check
    for name, check in vars(conformance).items()
    if name.startswith("test_") and list(inspect.signature(check).parameters) == ["name"]
]


@pytest.fixture
def stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (source,) = re.findall(r"as `stretch.py`:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "stretch.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield "stretch"
    sys.modules.pop(f"{folder.__name__}.stretch", None)
    vars(folder).pop("stretch", None)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_passes_what_every_policy_must(check, stretch: str) -> None:  # type: ignore[no-untyped-def]
    check(stretch)


def test_the_simulator_runs_it_by_name(stretch: str) -> None:
    class Flat(StepModel):
        def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
            return 0.001 * (decodes + chunk)

    jobs = [Job(0.0, range(500 - 100 * i), 1) for i in range(3)]
    setting = Setting(KVFormat(1, 1, 64, 64, 16, "bfloat16"), 100, Flat(), stretch, Limits(512, 1), use_prefix=False)
    ends = [record.token_at[0] for record in simulate(jobs, setting).served]
    assert ends == sorted(ends, reverse=True)  # the shortest first
    assert len(CHECKS) > 8
