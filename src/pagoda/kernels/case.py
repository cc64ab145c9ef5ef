"""The table of cases that an op's file carries: inputs on which every implementation must equal the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import PageLayout


@dataclass(frozen=True, slots=True)
class Make:
    """Makes one case's inputs: the same numbers every time, in the dtype and on the device asked for."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal numbers times ``scale``; each shape has its own."""
        generator = torch.Generator().manual_seed(self.seed + sum((i + 1) * n for i, n in enumerate(shape)))
        return (torch.randn(shape, generator=generator) * scale).to(self.device, dtype or self.dtype)

    def ints(self, values: object, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self.device)

    def permutation(self, count: int) -> Tensor:
        """The numbers below ``count``, shuffled; int32."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed + count)).to(torch.int32)

    def pages(self, num_pages: int, layout: PageLayout) -> Tensor:
        return self.normal(num_pages, layout.page_elems, dtype=layout.dtype)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of an op's table: ``make`` gives the arguments by name; ``writes`` names those changed in place."""

    name: str
    make: Callable[[Make], dict[str, Any]]
    writes: tuple[str, ...] = ()


def outputs(case: Case, run: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """Runs on copies of the arguments that the op changes; returns its results and those changed arguments."""
    own = {name: arguments[name].clone() for name in case.writes}
    result = run(**{**arguments, **own})
    results = [] if result is None else list(result) if isinstance(result, tuple) else [result]
    return results + list(own.values())


def cross(name: str, function: Callable[..., dict[str, Any]], *rows: dict[str, Any], **common: Any) -> list[Case]:
    """A case per row: ``function(make, **common, **row)``, named after what is in the row."""

    def case(row: dict[str, Any]) -> Case:
        label = ",".join(f"{key}={_short(value)}" for key, value in row.items())
        return Case(f"{name}({label})", lambda make: function(make, **common, **row))

    return [case(row) for row in rows]


def _short(value: object) -> str:
    return str(value).replace("torch.", "").replace(" ", "")
