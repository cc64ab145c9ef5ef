"""Repetitions on disk, one JSON line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOREIGN_MAX = 0.15  # cores; above that a repetition was not alone


@dataclass(frozen=True)
class Repetition:
    """One engine, one setting, once. ``before``/``after`` are ``Probe`` values; rates are tokens/s by metric."""

    shape: str
    weights: str
    setting: str
    engine: str
    round: int
    at: str
    rates: dict[str, float] = field(default_factory=dict)
    steps_s: list[float] = field(default_factory=list)
    first_s: float = 0.0
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    foreign_cores: float = 0.0
    steal_cores: float = 0.0
    peak_rss_bytes: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None

    @property
    def clean(self) -> bool:
        return self.failure is None and self.foreign_cores <= FOREIGN_MAX

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.shape, self.weights, self.setting


class Store:
    """Append-only file of repetitions."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "repetitions.jsonl"

    def add(self, repetition: Repetition) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(repetition)) + "\n")

    def __iter__(self) -> Iterator[Repetition]:
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                yield from (Repetition(**json.loads(line)) for line in file)
