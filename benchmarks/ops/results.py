"""What was measured, as committed: one file a machine, put together from the runs' files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..machine import name_of


@dataclass(frozen=True)
class Taken:
    """Seconds of one way, of ``rounds`` rounds; ``spread``: the middle half's width / the median."""

    median: float
    least: float
    spread: float
    rounds: int


@dataclass(frozen=True)
class Line:
    """One line of a table. ``limit``: the least seconds by the roofline that was measured in the same run."""

    op: str
    table: str
    about: dict[str, Any]
    ways: dict[str, Taken]
    num_bytes: int
    num_ops: int
    limit: float

    @property
    def ours(self) -> float:
        return self.ways["pagoda"].median

    @property
    def share(self) -> float:
        return self.limit / self.ours

    def ratio(self, way: str) -> float:
        """How many times as long that way took."""
        return self.ways[way].median / self.ours

    @classmethod
    def read(cls, data: dict[str, Any]) -> Line:
        return cls(**data | {"ways": {name: Taken(**one) for name, one in data["ways"].items()}})


@dataclass(frozen=True)
class Results:
    """``limits``: of every run, its measured bandwidth and rates. ``when``: first and last day."""

    machine: dict[str, Any]
    threads: int
    clock: str
    torch: str
    when: tuple[str, str]
    limits: list[dict[str, float]]
    lines: list[Line]

    @property
    def name(self) -> str:
        return name_of(self.machine)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**data | {"when": tuple(data["when"]), "lines": [Line.read(line) for line in data["lines"]]})


def joined(runs: Iterable[Results]) -> Results:
    """One of several, a table of a later one instead of an earlier one's. Raises ValueError if they do not belong
    together: another machine, clock, number of threads or torch.
    """
    runs = sorted(runs, key=lambda run: run.when[1])
    first = runs[0]
    for run in runs[1:]:
        for what in ("machine", "threads", "clock", "torch"):
            mine, other = getattr(first, what), getattr(run, what)
            if mine != other:
                raise ValueError(f"runs of {what} {mine} and {other} are no one table; give one of them an own report")
    tables = {line.table: run for run in runs for line in run.lines}
    kept = [line for run in runs for line in run.lines if tables[line.table] is run]
    when = (min(run.when[0] for run in runs), max(run.when[1] for run in runs))
    limits = [limit for run in runs for limit in run.limits]
    return Results(first.machine, first.threads, first.clock, first.torch, when, limits, kept)


def read_all(folder: Path) -> list[Results]:
    """One for each machine, the one that was measured last first. Raises ValueError if there is none."""
    found = [Results.read(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise ValueError(f"{folder} has no results; measure some with --json FILE and give the files to the report")
    return sorted(found, key=lambda one: one.when[1], reverse=True)


def _rounded(data: Any) -> Any:
    """Four digits are more than any figure is worth, and keep a file's changes readable."""
    if isinstance(data, float):
        return float(f"{data:.4g}")
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list | tuple) else data
