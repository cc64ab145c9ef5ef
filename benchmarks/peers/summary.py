"""From repetitions to figures: medians, spreads, ratios on the same machine, shares of the roofline of that minute."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..machine import name_of, without
from ..probe import Probe
from . import engines
from .roofline import decode_seconds, prefill_seconds
from .settings import SETTINGS
from .shapes import SHAPES
from .store import Repetition

OURS = "pagoda"
OURS_TOO = "pagoda_kv8"  # a row of its own, and nobody's peer
SAME_READ = 1.2
IN_TURN = timedelta(hours=1)
Key = tuple[str, str, str, str]  # shape, weights, setting, metric


@dataclass(frozen=True)
class Figure:
    """One cell of a table.

    ratio: Pagoda's rate over this engine's, the median over pairs of repetitions within an hour that saw the same
    machine; None where there are none.
    share: least time by the roofline / time taken. read_gb_s: the probes' median around these repetitions.
    spread: (largest - smallest) / median. num: clean repetitions. at, version: of the last of them, to the minute, and
    of the engine.
    """

    shape: str
    weights: str
    setting: str
    metric: str
    engine: str
    median: float
    spread: float
    num: int
    share: float
    read_gb_s: float
    round_trip_ns: float
    gemm_g_s: float
    peak_rss_bytes: int
    ratio: float | None
    at: str
    version: str

    @property
    def key(self) -> tuple[str, ...]:
        """What one machine has one figure of."""
        return self.shape, self.weights, self.setting, self.metric, self.engine


@dataclass(frozen=True)
class Summary:
    """What is committed and rendered of one machine. ``absent``: shape, weights, setting, engine -> why."""

    machine: dict[str, Any]
    first: str
    last: str
    versions: dict[str, str]
    figures: list[Figure]
    absent: dict[str, str]

    @property
    def name(self) -> str:
        """The machine's, for files: ``amd-epyc-25-17``."""
        return name_of(self.machine)

    def over(self, earlier: Summary) -> Summary:
        """Both of one machine's, the earlier one's figures only where this one has none. A peer that was not measured
        again keeps its ratio, which is of the hour when both were.
        """
        figures = {figure.key: figure for figure in [*earlier.figures, *self.figures]}
        cells = {"/".join((f.shape, f.weights, f.setting, f.engine)) for f in figures.values()}
        absent = {cell: why for cell, why in (earlier.absent | self.absent).items() if cell not in cells}
        return Summary(
            self.machine, min(earlier.first, self.first), max(earlier.last, self.last),
            earlier.versions | self.versions, list(figures.values()), absent,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Summary:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["figures"] = [Figure(**figure) for figure in data["figures"]]
        return cls(**data)


def read_all(folder: Path) -> list[Summary]:
    """A summary for each machine, the one that was measured last first. Raises ValueError if there is none."""
    summaries = [Summary.read(path) for path in sorted(folder.glob("*.json"))]
    if not summaries:
        raise ValueError(f"{folder} has no results; measure some and give the run's --out to the report")
    return sorted(summaries, key=lambda summary: summary.last, reverse=True)


def newest_whole(summaries: Sequence[Summary]) -> Summary:
    """Of summaries, newest first, the first one of a machine with nothing masked, or else the first."""
    return next((one for one in summaries if not one.machine.get("masked")), summaries[0])


def summarise(repetitions: Iterable[Repetition], machine: dict[str, Any]) -> Summary:
    """Raises ValueError when there is no clean repetition, or some were made with flags masked that others used."""
    everything = list(repetitions)
    clean = [repetition for repetition in everything if repetition.clean]
    if not clean:
        raise ValueError("no clean repetition to report; run some first")
    masks = sorted({tuple(repetition.masked) for repetition in clean})
    if len(masks) > 1:
        raise ValueError(
            f"repetitions with {masks} masked are no one table; give runs with a mask an --out of their own"
        )
    times = sorted(repetition.at for repetition in clean)
    versions = {repetition.engine: _version(repetition) for repetition in clean}
    absent = {  # why, less where its log lies
        "/".join((*repetition.cell, repetition.engine)): repetition.failure.partition("; see ")[0]
        for repetition in everything
        if repetition.failure
    }
    machine = without(machine, list(masks[0]))
    return Summary(machine, times[0], times[-1], versions, list(_figures(clean)), absent)


def _figures(clean: list[Repetition]) -> Iterator[Figure]:
    groups: dict[Key, dict[str, list[Repetition]]] = defaultdict(lambda: defaultdict(list))
    for repetition in clean:
        for metric in repetition.rates:
            groups[(*repetition.cell, metric)][repetition.engine].append(repetition)
    for key, by_engine in groups.items():
        for engine, group in by_engine.items():
            yield _figure(key, engine, group, by_engine.get(OURS, []))


def _figure(key: Key, engine: str, group: list[Repetition], ours: list[Repetition]) -> Figure:
    _, weights, _, metric = key
    rates = [repetition.rates[metric] for repetition in group]
    probes = [Probe(*repetition.before).mean(Probe(*repetition.after)) for repetition in group]
    median = statistics.median(rates)
    return Figure(
        *key, engine, round(median, 2), round((max(rates) - min(rates)) / median, 3), len(rates),
        share=round(statistics.median(_share(r, p, metric) for r, p in zip(group, probes, strict=True)), 3),
        read_gb_s=round(statistics.median(probe.read_gb_s for probe in probes), 1),
        round_trip_ns=round(statistics.median(probe.round_trip_ns for probe in probes), 1),
        gemm_g_s=round(statistics.median(p.bf16_gflop_s if weights == "bf16" else p.int8_gop_s for p in probes), 1),
        peak_rss_bytes=max(repetition.peak_rss_bytes for repetition in group),
        ratio=None if engine == OURS else _ratio(ours, group, metric),
        at=max(repetition.at for repetition in group)[:16],
        version=_version(group[-1]),
    )  # fmt: skip


def _version(repetition: Repetition) -> str:
    return str(repetition.info.get("version"))


def _share(repetition: Repetition, probe: Probe, metric: str) -> float:
    shape, setting = SHAPES[repetition.shape], SETTINGS[repetition.setting]
    size = repetition.info["weight_bytes"]
    if metric == "prefill":
        least = prefill_seconds(shape, setting, probe, repetition.weights, size)
        return least * repetition.rates[metric] / (setting.batch * setting.prompt)
    kv_bits = engines.load(repetition.engine).KV_BITS
    least = decode_seconds(shape, setting, probe, repetition.weights, size, kv_bits)
    return least * repetition.rates[metric] / setting.batch


def _ratio(ours: list[Repetition], theirs: list[Repetition], metric: str) -> float | None:
    """Median over pairs of one hour that saw the same machine: bandwidths within 20 %. None where no pair did.

    A host that moves a guest's CPUs changes memory-bound rates by 1.7x within seconds; two engines of one round may
    have met two machines. And hours differ by as much as peers do.
    """
    pairs = [(a, b) for a in ours for b in theirs if in_turn(a.at, b.at) and _same_machine(a, b)]
    return round(statistics.median(a.rates[metric] / b.rates[metric] for a, b in pairs), 3) if pairs else None


def in_turn(one: str, other: str) -> bool:
    """Whether two times lie within an hour."""
    return abs(datetime.fromisoformat(one) - datetime.fromisoformat(other)) <= IN_TURN


def same_read(*reads: float) -> bool:
    """Whether these bandwidths are one state of the machine."""
    return max(reads) <= SAME_READ * min(reads)


def _same_machine(a: Repetition, b: Repetition) -> bool:
    return same_read(*(repetition[0] for one in (a, b) for repetition in (one.before, one.after)))
