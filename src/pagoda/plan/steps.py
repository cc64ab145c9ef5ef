"""Step times of one model as its own engine was measured: where rates of single kernels are too coarse.

    step = body(tokens) + head(sampled rows) + slot x KV slots read by decodes + pair x (prompt tokens x slots they see)

``body`` and ``head`` are curves between measured sizes. ``pagoda doctor --calibrate --model M`` runs a sweep of steps
through the engine (``bench.steps``) and fits the curves to all of them (``bench.step_fit``). They are kept beside the
machine's rates, by model, formats and processor, and take the place of the roofline for the same model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ..core.errors import ConfigError
from ..models.shape import ModelShape
from .machine import Curve, Machine, calibration_file
from .roofline import Roofline
from .subject import Subject
from .work import StepModel

VERSION = 2
LEAST_SHARE = 0.3
"""Of a measured step's time that is left at any other pace."""


@dataclass(frozen=True)
class FittedSteps(StepModel):
    """``spread``: the median of how far measured steps were from the fit, as a share; ``num_steps`` of them. ``pace``:
    of memory, in bytes a second, that they were brought to (0: not looked at).
    """

    body: Curve
    head: Curve
    slot: float
    pair: float
    spread: float = 0.0
    num_steps: int = 0
    pace: float = 0.0

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        key = decodes + chunk, rows
        if key not in self._known:
            self._known[key] = _read(self.body, key[0]) + _read(self.head, rows)
        return self._known[key] + self.slot * slots + self.pair * pairs

    @cached_property
    def _known(self) -> dict[tuple[int, int], float]:
        return {}


def _read(curve: Curve, at: float) -> float:
    weights = knot_weights(tuple(knot for knot, _ in curve), at)
    return sum(weight * curve[place][1] for place, weight in weights)


def knot_weights(knots: tuple[int, ...], at: float) -> list[tuple[int, float]]:
    """Shares of the knots in a value between them; past the last on the last two's line, 0 at 0."""
    if not at or not knots:
        return []
    if len(knots) == 1 or at <= knots[0]:
        return [(0, 1.0)]
    high = next((place for place, knot in enumerate(knots) if knot >= at), len(knots) - 1)
    share = (at - knots[high - 1]) / (knots[high] - knots[high - 1])
    return [(high - 1, 1 - share), (high, share)]


# Kept ----------------------------------------------------------------------------------------------------------------


class AtPace(StepModel):
    """The steps of ``inside`` while memory has another pace; ``reads`` knows what they read."""

    def __init__(self, inside: StepModel, reads: Roofline, pace: float, usual: float) -> None:
        self._inside, self._reads, self._pace, self._usual = inside, reads, pace, usual

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        seconds = self._inside.step_seconds(decodes, slots, chunk, pairs, rows)
        return at_pace(seconds, self._reads.read_bytes(decodes + chunk, rows, slots), self._usual, self._pace)


def at_pace(seconds: float, num_bytes: float, seen: float, pace: float) -> float:
    """What a step that read ``num_bytes`` at the pace ``seen`` takes at another: longer or shorter by the difference.

    Slower memory makes no step longer than its reads alone, and faster memory none shorter that was longer than they
    were: a step of many sequences computes meanwhile.
    """
    moved = seconds + num_bytes * (1 / pace - 1 / seen)
    if pace < seen:
        return max(seconds, min(moved, num_bytes / pace))
    return seconds if seconds > num_bytes / seen else max(moved, LEAST_SHARE * seconds)


def step_model(
    subject: Subject, quantization: str, kv_dtype: str, machine: Machine, pace: float | None = None
) -> StepModel:
    """What was measured of the model in these formats on this machine; where nothing was, the roofline. ``pace``: of
    memory, if not the usual one.
    """
    fitted = load_steps(steps_file(subject, quantization, kv_dtype, machine)) if machine.measured else None
    usual, pace = machine.read_bytes_per_second, pace or machine.read_bytes_per_second
    if fitted is not None:
        usual = fitted.pace or usual
        if pace == usual:
            return fitted
    roofline = Roofline(subject.shape, subject.dtype, subject.quantization(quantization), kv_dtype, machine)
    return roofline if pace == usual else AtPace(fitted or roofline, roofline, pace, usual)


def steps_file(subject: Subject, quantization: str, kv_dtype: str, machine: Machine) -> Path:
    """Where the step times of that model in those formats are kept, beside ``machine.json``. The shape is the model."""
    formats = [subject.dtype, repr(subject.quantization(quantization)), kv_dtype]
    rest = json.dumps([formats, machine.cpu, machine.threads])
    what = f"[{VERSION}, {_written(subject.shape)}, {rest[1:]}"
    return calibration_file().parent / f"steps-{hashlib.blake2b(what.encode(), digest_size=8).hexdigest()}.json"


@lru_cache(4)
def _written(shape: ModelShape) -> str:
    """Of hundreds of layers it takes a hundredth of a second, and every format of a plan asks."""
    return json.dumps(asdict(shape))


def save_steps(steps: FittedSteps, file: Path) -> None:
    """Written whole or not at all. Raises ConfigError where the folder cannot be written."""
    fresh = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(asdict(steps)) + "\n", encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot keep the step times ({error.strerror}); set XDG_CACHE_HOME") from error


def load_steps(file: Path) -> FittedSteps | None:
    """None where the model was not measured, or the file is not whole (it is measured again then)."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        body, head = (tuple((int(at), float(value)) for at, value in data.pop(name)) for name in ("body", "head"))
        steps = FittedSteps(body=body, head=head, **data)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    numbers = [seconds for _, seconds in (*steps.body, *steps.head)] + [steps.slot, steps.pair]
    return steps if steps.body and all(math.isfinite(n) and n >= 0 for n in numbers) else None
