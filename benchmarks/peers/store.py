"""Repetitions on disk, one JSON line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOREIGN_MAX = 0.15  # cores; above that a repetition was not alone


@dataclass(frozen=True)
class Repetition:
    """One engine, one setting, once. ``before``/``after`` are ``Probe`` values; rates are tokens/s by metric;
    ``masked``: flags of the processor that no engine could use.
    """

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
    clock: str = "wall"
    masked: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.failure is None and (self.clock == "cpu" or self.foreign_cores <= FOREIGN_MAX)

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.shape, self.weights, self.setting


class Store:
    """Append-only file of repetitions."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "repetitions.jsonl"

    def add(self, repetition: Repetition) -> None:
        _append(self._path, [repetition])

    def set_aside(self, unwanted: Callable[[Repetition], bool]) -> int:
        """Moves repetitions to a file beside this one, so that they are measured again; how many."""
        everything = list(self)
        old = [repetition for repetition in everything if unwanted(repetition)]
        if old:
            _append(self._path.with_name("set_aside.jsonl"), old)
            fresh = self._path.with_suffix(".partial")
            fresh.unlink(missing_ok=True)
            _append(fresh, [repetition for repetition in everything if not unwanted(repetition)])
            fresh.replace(self._path)
        return len(old)

    def __iter__(self) -> Iterator[Repetition]:
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                yield from (Repetition(**json.loads(line)) for line in file)


def _append(path: Path, repetitions: Iterable[Repetition]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(repetition)) + "\n" for repetition in repetitions)
