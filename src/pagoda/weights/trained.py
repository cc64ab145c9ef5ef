"""A matrix whose codes and scales are being trained: as it is stored on the way there, gradients on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .formats._bits import grouped, ungrouped
from .formats.base import WeightFormat
from .methods import Codes, grid_of
from .packed import PackedMatrix

EDGE = 0.49  # of a step that places may lie beyond the lowest and the highest code, from where they still round to them


class _Straight(torch.autograd.Function):
    """Rounds on the way there, and is not seen on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class TrainedMatrix(PackedMatrix):
    """``[rows, cols]`` whose codes and scales are trained; ``refresh`` makes the matrix of what they are now."""

    __slots__ = ("cols", "grid", "places", "scales", "stretch", "value", "zeros")

    def __init__(self, format: WeightFormat, codes: Codes, cols: int, dtype: torch.dtype) -> None:
        super().__init__(format, dtype)
        self.grid, self.cols = grid_of(format), cols
        group = self.grid.group or self.cols
        integers, scales, zeros = format.integers(codes, self.cols)
        self.scales = scales.reshape(len(scales), -1)  # [rows, groups] as stored
        self.zeros = None if zeros is None else zeros.float()[..., None]
        self.places = grouped(integers.float(), group).requires_grad_()  # [rows, groups, group]
        self.stretch = torch.zeros(self.scales.shape, requires_grad=True)
        self.refresh()

    def refresh(self) -> None:
        scales = self.scales.float() * (1 + self.stretch)
        scales = _Straight.apply(scales, scales.detach().to(self.scales.dtype).float())
        steps = _Straight.apply(self.places, self._steps())
        steps = steps if self.zeros is None else steps - self.zeros
        self.value: Tensor = ungrouped(steps * scales[..., None], self.cols).to(self.dtype)

    def _steps(self) -> Tensor:
        return self.places.detach().round().clamp(self.grid.low, self.grid.high)

    @torch.no_grad()
    def confine(self) -> None:
        """Brings places back that have gone beyond the last codes."""
        self.places.clamp_(self.grid.low - EDGE, self.grid.high + EDGE)

    def codes(self) -> Codes:
        """As they are stored."""
        scales = (self.scales.float() * (1 + self.stretch.detach())).to(self.scales.dtype)
        zeros = [None] if self.zeros is None else list(self.zeros[..., 0].unbind(1))
        return self.grid.codes(ungrouped(self._steps(), self.cols), scales, zeros)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.places.shape[0], self.cols))

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def dense(self) -> Tensor:
        return self.value

    def rows(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.value)  # its gradient adds up in one order, indexing's does not

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, self.value, bias)
