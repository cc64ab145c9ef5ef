"""What is asked of each figure: the list "How it is judged" of the project's issue on CPU kernels, as a table.

The issue asks for ratios in one run on the 0.5B and 1B shapes, where the best peer is the best of all that were
measured with weights of as many bits, and for the speed of the 15M model's small steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .summary import OURS, OURS_TOO, SAME_READ, Figure

BEST = "the best peer"
LIMIT = "the bandwidth"  # share of bytes / bandwidth in the time taken
UNDISTURBED = "the undisturbed speed"
MILLISECONDS = "ms a step"
LARGE = ("qwen05b", "llama1b")
SMALL = ("stories15m",)


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
    """An aim beside what was measured. ``measured`` is None, with the reason in ``lacks``, where nothing can be said;
    ``peer``: what ours is compared with.
    """

    shape: str
    aim: Aim
    ours: Figure
    measured: float | None = None
    peer: Figure | None = None
    lacks: str = ""

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
    if aim.of == LIMIT:
        return Verdict(shape, aim, ours, ours.share)
    if aim.of == MILLISECONDS:
        return Verdict(shape, aim, ours, 1e3 / ours.median)
    if aim.of == UNDISTURBED:
        calm = _find(mine, aim.weights, aim.ours, ("b1", "decode"))
        if calm is None:
            return Verdict(shape, aim, ours, lacks="no undisturbed figure")
        reads = sorted((calm.read_gb_s, ours.read_gb_s))
        if reads[1] > SAME_READ * reads[0]:
            return Verdict(shape, aim, ours, lacks=f"measured at {ours.read_gb_s:.0f} and {calm.read_gb_s:.0f} GB/s")
        return Verdict(shape, aim, ours, ours.median / calm.median)
    peer = best_peer(mine, aim.weights, aim.column, aim.of)
    if peer is None:
        return Verdict(shape, aim, ours, lacks="no peer")
    if aim.ours == OURS and peer.ratio is not None:
        return Verdict(shape, aim, ours, peer.ratio, peer)
    return Verdict(shape, aim, ours, ours.median / peer.median, peer)  # by medians: no pairs were kept


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
