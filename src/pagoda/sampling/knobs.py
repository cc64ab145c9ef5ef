"""The parameters of a batch's rows as columns on the device, so that one expression serves any mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import wide_dtype
from .state import SampleState
from .uniform import uniform


@dataclass(frozen=True, slots=True)
class Knobs:
    """Columns [n, 1] in which 'off' is a value that cuts nothing; ``has_…`` tell whether any row needs the step."""

    temperature: Tensor  # float32
    top_k: Tensor  # int64
    top_p: Tensor  # wide; +inf = off
    log_min_p: Tensor  # float32; -inf = off
    typical_p: Tensor  # wide; +inf = off
    u: Tensor  # wide [n], the rows' uniform numbers
    has_top_p: bool
    has_min_p: bool
    has_typical: bool

    @classmethod
    def of(cls, states: Sequence[SampleState], like: Tensor) -> Knobs:
        """The columns of these sequences' next draw, on the device of ``like``."""
        params = [state.params for state in states]
        wide = wide_dtype(like.device)

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(like.device)[:, None]

        return cls(
            temperature=column([p.temperature for p in params], torch.float32),
            top_k=column([p.top_k for p in params], torch.int64),
            top_p=column([p.top_p if p.top_p < 1.0 else math.inf for p in params], wide),
            log_min_p=column([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params], torch.float32),
            typical_p=column([p.typical_p if p.typical_p < 1.0 else math.inf for p in params], wide),
            u=column([uniform(s.seed, s.index, s.num_output) for s in states], wide)[:, 0],
            has_top_p=any(p.top_p < 1.0 for p in params),
            has_min_p=any(p.min_p > 0.0 for p in params),
            has_typical=any(p.typical_p < 1.0 for p in params),
        )
