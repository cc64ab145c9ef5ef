"""What is asked of each figure: the list "How it is judged" of the project's issue on CPU kernels, as a table.

The issue asks for ratios in one run on the 0.5B and 1B shapes, where the best peer is the best of all that were
measured with weights of as many bits, and for the speed of the 15M model's small steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import engines
from .limits import reading_seconds
from .settings import SETTINGS
from .summary import OURS, OURS_TOO, Figure, in_turn, same_read

BEST = "the best peer"
LIMIT = "the bandwidth"  # share of bytes / bandwidth in the time taken
UNDISTURBED = "the undisturbed speed"
MILLISECONDS = "ms a step"
LARGE = ("qwen05b", "llama1b")
SMALL = ("stories15m",)
MOST_SHARE = 1.05  # of the bandwidth: the probe's own sum is passed by kernels that ask ahead, by 4 % at most


@dataclass(frozen=True)
class Aim:
    """``asked`` times ``of`` at least (of ``MILLISECONDS``: at most), by the engine ``ours``."""

    shapes: tuple[str, ...]
    weights: str
    setting: str
    metric: str
    asked: float
    of: str = BEST
    ours: str = OURS

    @property
    def column(self) -> tuple[str, str]:
        return self.setting, self.metric


def _aims() -> Iterator[Aim]:
    asked = {
        "bf16": {"b1": 1.0, "b8": 1.15, "b32": 1.15, "p1024": 1.05, "c4096": 1.2, "c8192": 1.2},
        "int8": {"b1": 1.1, "b8": 1.25, "b32": 1.25, "p1024": 1.15, "c4096": 1.4},
        "int4": {"b1": 1.15, "b8": 1.3, "b32": 1.5, "p1024": 1.3, "c4096": 1.3, "c8192": 1.3},
    }
    for weights, ratios in asked.items():
        for setting, ratio in ratios.items():
            yield Aim(LARGE, weights, setting, "decode" if setting.startswith("b") else "prefill", ratio)
        if weights == "bf16":
            yield Aim(LARGE, weights, "b1", "decode", 0.9, LIMIT)
            yield Aim(LARGE, weights, "c8192", "decode", 1.1)
        if weights == "int4":
            yield Aim(LARGE, weights, "c8192", "decode", 1.5, ours=OURS_TOO)
        yield Aim(LARGE, weights, "shared", "decode", 2.0, "vllm")
        yield Aim(LARGE, weights, "neighbour", "decode", 0.6, UNDISTURBED)
        yield Aim(SMALL, weights, "b1", "decode", 0.9, MILLISECONDS)
        yield Aim(SMALL, weights, "b32", "decode", 1.0, "openvino")


AIMS = tuple(_aims())


@dataclass(frozen=True)
class Verdict:
    """An aim beside what was measured. ``measured`` is None, with the reason in ``lacks``, where nothing can be said.

    peer: what ours is compared with, of all that were measured in turn the one that leaves us the smallest ratio.
    without: engines that could be it and were not measured in turn.
    """

    shape: str
    aim: Aim
    ours: Figure
    measured: float | None = None
    peer: Figure | None = None
    lacks: str = ""
    without: tuple[str, ...] = ()

    @property
    def met(self) -> bool | None:
        """As precisely as it is shown: to the hundredth."""
        if self.measured is None:
            return None
        shown = round(self.measured, 2)
        return shown <= self.aim.asked if self.aim.of == MILLISECONDS else shown >= self.aim.asked


def verdicts(figures: Sequence[Figure], shape: str) -> Iterator[Verdict]:
    """Of every aim for this shape of which our own figure was measured."""
    mine = [figure for figure in figures if figure.shape == shape]
    for aim in AIMS:
        ours = _find(mine, aim.weights, aim.ours, aim.column)
        if shape in aim.shapes and ours is not None:
            yield _verdict(mine, shape, aim, ours)


def _verdict(mine: Sequence[Figure], shape: str, aim: Aim, ours: Figure) -> Verdict:
    verdict = Verdict(shape, aim, ours)
    if aim.of == LIMIT:
        if ours.share > MOST_SHARE:
            return replace(verdict, lacks=f"{100 * ours.share:.0f} %: the probe met another state of the machine")
        # Weights kept in fewer bits without loss are held to what as many as are asked for would take.
        whole = reading_seconds(ours) * ours.median / SETTINGS[ours.setting].batch
        return replace(verdict, measured=max(ours.share, whole))
    if aim.of == MILLISECONDS:
        return replace(verdict, measured=1e3 / ours.median)
    if aim.of == UNDISTURBED:
        calm = _find(mine, aim.weights, aim.ours, ("b1", "decode"))
        lacks = "no undisturbed figure" if calm is None else _apart(ours, calm)
        if calm is None or lacks:
            return replace(verdict, lacks=lacks)
        return replace(verdict, measured=ours.median / calm.median)
    rivals = [name for name in engines.names() if _is_rival(name, aim)]
    theirs = [f for name in rivals if (f := _find(mine, aim.weights, name, aim.column)) is not None]
    ratios = {f.engine: (ratio, f) for f in theirs if (ratio := _ratio(aim, ours, f)) is not None}
    verdict = replace(verdict, without=tuple(name for name in rivals if name not in ratios))
    if not ratios:
        return replace(verdict, lacks="no peer" if not theirs else _apart(ours, theirs[0]) or "not measured in turn")
    measured, peer = min(ratios.values(), key=lambda pair: pair[0])
    return replace(verdict, measured=measured, peer=peer)


def _is_rival(engine: str, aim: Aim) -> bool:
    if aim.of != BEST:
        return engine == aim.of
    return engine not in (OURS, OURS_TOO) and aim.weights in engines.load(engine).FORMS


def _ratio(aim: Aim, ours: Figure, theirs: Figure) -> float | None:
    if aim.ours == OURS:
        return theirs.ratio
    return None if _apart(ours, theirs) else ours.median / theirs.median  # of this row no pairs are kept


def _apart(one: Figure, other: Figure) -> str:
    """Why two figures do not compare, or nothing."""
    if not in_turn(one.at, other.at):
        return f"measured {one.at.replace('T', ' ')} and {other.at.replace('T', ' ')}"
    if not same_read(one.read_gb_s, other.read_gb_s):
        return f"measured at {one.read_gb_s:.0f} and {other.read_gb_s:.0f} GB/s"
    return ""


def best_peer(figures: Sequence[Figure], weights: str, column: tuple[str, str], of: str = BEST) -> Figure | None:
    """The fastest engine of others, or the one named ``of``."""
    peers = [f for f in figures if f.weights == weights and (f.setting, f.metric) == column]
    peers = [f for f in peers if (f.engine == of if of != BEST else f.engine not in (OURS, OURS_TOO))]
    return max(peers, key=lambda f: f.median, default=None)


def _find(figures: Sequence[Figure], weights: str, engine: str, column: tuple[str, str]) -> Figure | None:
    wanted = (weights, engine, *column)
    return next((f for f in figures if (f.weights, f.engine, f.setting, f.metric) == wanted), None)


Columns = list[tuple[str, str]]


def holes(figures: Sequence[Figure], shape: str, rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, Columns]]:
    """(weights, engine, columns) that an aim for this shape needs and nobody measured, of the ``rows`` that may be."""
    mine = [figure for figure in figures if figure.shape == shape]
    for weights, engine in rows:
        aims = [aim for aim in AIMS if shape in aim.shapes and aim.weights == weights]
        wanted = dict.fromkeys(aim.column for aim in aims if _decides(aim, engine))
        missing = [column for column in wanted if _find(mine, weights, engine, column) is None]
        if missing:
            yield weights, engine, missing


def _decides(aim: Aim, engine: str) -> bool:
    """Whether one needs this engine's figure to tell if the aim is met."""
    return engine in (aim.ours, aim.of) or (aim.of == BEST and engine not in (OURS, OURS_TOO))
