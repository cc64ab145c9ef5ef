"""How codes are chosen when a checkpoint is quantized with calibration: rounding, GPTQ, AWQ, HQQ.

All of them take a matrix ``[rows, cols]`` (float32), its format, and what calibration saw of its inputs, and give codes
of that format; the format's own ``quantize`` is the plain twin (``rtn``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, choices
from .formats._bits import grouped, nonzero, ungrouped
from .formats._groups import GroupedIntegers
from .formats._int8 import RowInt8
from .formats.base import WeightFormat

Codes = dict[str, Tensor]
COLUMNS = 128  # rounded before what they lost is taken up by all columns that follow


@dataclass(slots=True)
class InputStats:
    """What a linear layer was fed: ``gram`` float32 ``[cols, cols]``, the sum of x x^T over ``count`` tokens."""

    gram: Tensor
    count: int = 0

    @classmethod
    def empty(cls, cols: int) -> InputStats:
        return cls(torch.zeros(cols, cols))

    def add(self, x: Tensor) -> None:
        """x ``[tokens, cols]``."""
        flat = x.reshape(-1, x.shape[-1]).float()
        self.gram += flat.T @ flat
        self.count += flat.shape[0]

    @property
    def power(self) -> Tensor:
        """Mean square of each input ``[cols]``."""
        return self.gram.diagonal() / max(1, self.count)


def output_error(weight: Tensor, approximation: Tensor, stats: InputStats) -> float:
    """Mean square error of the layer's outputs, summed over them: ``tr(D G D^T) / tokens``, D the difference."""
    difference = approximation - weight
    return float(((difference @ stats.gram) * difference).sum() / max(1, stats.count))


def rtn(weight: Tensor, format: WeightFormat, stats: InputStats | None) -> Codes:
    """Each value to the nearest; needs no calibration."""
    fast = format.quantize_fast(weight, torch.get_num_threads()) if weight.device.type == "cpu" else None
    return fast or format.quantize(weight)


def gptq(weight: Tensor, format: WeightFormat, stats: InputStats | None) -> Codes:
    """GPTQ (arXiv:2210.17323): column after column; what rounding loses is made up for in the columns that follow.

    Columns come in the order of their inputs' power, the largest first, with the grids of all groups settled before
    (``awq``'s), so that codes stay in the order of the inputs. Takes the better of this and ``rtn`` by the error of the
    layer's outputs, which rounding sometimes wins on small layers.
    """
    grid = grid_of(format)
    assert stats is not None
    _, scales, zeros = _search(weight, grid, stats.power)
    order = stats.gram.diagonal().argsort(descending=True, stable=True)
    inverse = _inverse_root(stats.gram[order][:, order])
    w, cols = weight[:, order].clone(), weight.shape[1]
    group, places = grid.group or cols, order.tolist()
    values = torch.zeros_like(weight)
    for start in range(0, cols, COLUMNS):
        stop = min(start + COLUMNS, cols)
        errors = torch.zeros(w.shape[0], stop - start)
        for j in range(start, stop):
            g = places[j] // group
            values[:, places[j]] = q = grid.round(w[:, j], scales[g], zeros[g])
            error = (w[:, j] - grid.value(q, scales[g], zeros[g])) / inverse[j, j]
            w[:, j:stop] -= error[:, None] * inverse[j, j:stop]
            errors[:, j - start] = error
        w[:, stop:] -= errors @ inverse[start:stop, stop:]
    codes = grid.codes(values, torch.stack(scales, 1), zeros)
    return _better(weight, format, stats, codes, format.quantize(weight))


def awq(weight: Tensor, format: WeightFormat, stats: InputStats | None) -> Codes:
    """Activation-aware clipping and grids (AWQ, arXiv:2306.00978, 3.2, without moving scales into other layers).

    Every group's range is shrunk by the factor that loses least where inputs are large: errors are weighted by the mean
    square of each input. Moving scales into the layer before would change its weights, which this format keeps.
    """
    grid = grid_of(format)
    assert stats is not None
    values, scales, zeros = _search(weight, grid, stats.power)
    return grid.codes(values, torch.stack(scales, 1), zeros)


def hqq(weight: Tensor, format: WeightFormat, stats: InputStats | None) -> Codes:
    """Half-quadratic quantization (Badri and Shaji 2023), without calibration: the grid by an lp norm of what is lost.

    p = 0.7, so that a few outliers do not decide the grid of their group. Zero points are moved by shrinkage, as there;
    ours are integers, which alone changes nothing, so ranges are tried as well: down to 0.88, since a narrower one
    gives up outliers that count (lantern, int4 in groups of 32: KL 0.56 nats, down to 0.7 it was 0.80; rounding 0.54).
    """
    grid = grid_of(format)
    if not isinstance(format, GroupedIntegers) or format.symmetric:
        values, scales, zeros = _search(weight, grid, torch.ones(weight.shape[1]))
        return grid.codes(values, torch.stack(scales, 1), zeros)
    w = grouped(weight, format.group)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    best_error = torch.full(w.shape[:-1], float("inf"))
    for shrink in (one for one in _SHRINKS if one >= 0.88):
        scale, zero = format.grid(w * shrink)
        assert zero is not None
        for turn in range(4):
            q, loss = _on_grid(w, scale, zero, format.top)
            error = loss.abs().pow(0.7).mean(-1)
            won = error < best_error
            new = (q, scale, zero)
            best = new if best is None else (torch.where(won[..., None], q, best[0]), *_where(won, new[1:], best[1:]))
            best_error = torch.minimum(error, best_error)
            beta = 10.0 * 1.01**turn
            kept = loss.sign() * (loss.abs() - loss.abs().clamp(min=1e-8).pow(-0.3) / beta).clamp(min=0)
            zero = (q - (w - kept) / nonzero(scale.float())[..., None]).mean(-1).round().clamp(0, format.top)
    assert best is not None
    return format.coded(ungrouped(best[0], weight.shape[1]), *best[1:])


def _on_grid(w: Tensor, scale: Tensor, zero: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Codes of groups, and what they lose."""
    step = scale.float()[..., None]
    q = ((w / nonzero(step)).round() + zero[..., None]).clamp(0, top)
    return q, w - (q - zero[..., None]) * step


def _where(won: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(won, n, o) for n, o in zip(new, old, strict=True))


METHODS: dict[str, Callable[[Tensor, WeightFormat, InputStats | None], Codes]] = {
    "rtn": rtn, "gptq": gptq, "awq": awq, "hqq": hqq,
}  # fmt: skip
_SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75, 0.7)
GRIDS = (RowInt8, GroupedIntegers)
"""Formats that gptq, awq and hqq know."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A format's integers, seen column by column: scale and zero ``[rows]`` of one group."""

    format: Any
    low: int
    high: int
    group: int  # 0: the whole row

    def choose(self, w: Tensor, shrink: float = 1.0) -> tuple[Tensor, Tensor | None]:
        w = w * shrink
        if self.group == 0:
            return (w.abs().amax(1) / 127), None
        scale, zero = self.format.grid(w[:, None, :])
        return scale[:, 0], None if zero is None else zero[:, 0]

    def round(self, column: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        steps = (column / nonzero(scale.float())).round()
        return (steps + (0 if zero is None else zero)).clamp(self.low, self.high)

    def value(self, q: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        return (q - (0 if zero is None else zero)) * scale.float()

    def codes(self, values: Tensor, scales: Tensor, zeros: list[Tensor | None]) -> Codes:
        if self.group == 0:
            return {"codes": values.to(torch.int8), "scale": scales[:, 0]}
        points = [zero for zero in zeros if zero is not None]
        stored = values - self.low
        codes: Codes = self.format.coded(stored, scales, torch.stack(points, 1) if points else None)
        return codes


def check_method(method: str, format: WeightFormat | None) -> None:
    """Raises ConfigError for a format whose codes the method cannot choose."""
    if method != "rtn" and format is not None:
        grid_of(format)


def grid_of(format: WeightFormat) -> Grid:
    if isinstance(format, RowInt8):
        return Grid(format, -127, 127, 0)
    if isinstance(format, GroupedIntegers):
        low = -format.middle if format.symmetric else 0
        return Grid(format, low, low + format.top, format.group)
    raise ConfigError(
        choices("format of this method", format.name, ("int4", "int5", "int8", "w4a8", "w8a8")) + "; rtn takes all"
    )


def _search(weight: Tensor, grid: Grid, power: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Grids by group, each shrunk by the factor that loses least under ``power``: values, scales, zeros."""
    cols = weight.shape[1]
    group, values = grid.group or cols, torch.zeros_like(weight)
    scales, zeros = list[Tensor](), list[Tensor | None]()
    for start in range(0, cols, group):
        part, heavy = weight[:, start : start + group], power[start : start + group]
        best: tuple[Tensor, Tensor, Tensor | None] | None = None
        best_error = torch.full((weight.shape[0],), float("inf"))
        for shrink in _SHRINKS:
            scale, zero = grid.choose(part, shrink)
            wide, wide_zero = scale[:, None], None if zero is None else zero[:, None]
            q = grid.round(part, wide, wide_zero)
            error = ((grid.value(q, wide, wide_zero) - part).square() * heavy).sum(1)
            won = error < best_error
            best = (q, scale, zero) if best is None else _pick(won, (q, scale, zero), best)
            best_error = torch.minimum(error, best_error)
        assert best is not None
        values[:, start : start + group] = best[0]
        scales.append(best[1])
        zeros.append(best[2])
    return values, scales, zeros


def _pick(won: Tensor, new: tuple[Tensor, Tensor, Tensor | None], old: tuple[Tensor, Tensor, Tensor | None]) -> Any:
    zero = None if new[2] is None or old[2] is None else torch.where(won, new[2], old[2])
    return torch.where(won[:, None], new[0], old[0]), torch.where(won, new[1], old[1]), zero


def _inverse_root(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse (the paper's step 3)."""
    damped = gram.clone().double()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += 0.01 * float(diagonal.mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _better(weight: Tensor, format: WeightFormat, stats: InputStats, *candidates: Codes) -> Codes:
    cols = weight.shape[1]
    return min(candidates, key=lambda codes: output_error(weight, format.dequantize(codes, cols), stats))
