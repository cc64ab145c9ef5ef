"""Temperature: logits divided by it, measured from the largest so that no temperature overflows."""

from __future__ import annotations

from torch import Tensor


def temperature(logits: Tensor, value: float) -> Tensor:
    """logits [V] float32 -> [V], shifted so that the largest is 0; ``value`` > 0."""
    return (logits - logits.max()) / value
