"""A linear probe: the length of an answer from what the model itself made of the prompt.

TRAIL (https://arxiv.org/abs/2410.01035) shows that a small regressor on the served model's own hidden states predicts
lengths better than a separate model that reads the prompt. There it is a two-layer network on a middle layer, asked
again at every token; here ridge regression of log(1 + length) on the mean hidden state of the prompt after the final
norm, asked once when the prompt is complete, and corrected by every answer that ends (normalized LMS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import expm1, log1p
from typing import Any

MOST = 14.0  # log of the longest answer that is believed


class Probe:
    """``mean`` and ``scale`` of each feature, ``weights`` of the scaled ones, ``bias``."""

    def __init__(self, mean: list[float], scale: list[float], weights: list[float], bias: float, rate: float = 0.02):
        if not len(mean) == len(scale) == len(weights) or not weights or not all(s > 0 for s in scale):
            raise ValueError("mean, scale and weights must be equally long, scales above 0")
        self._mean, self._scale, self._weights, self._bias, self._rate = mean, scale, list(weights), bias, rate

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Probe:
        """From plain data, as ``as_dict`` gave it. Raises KeyError, TypeError or ValueError."""
        return cls(data["mean"], data["scale"], data["weights"], float(data["bias"]))

    def as_dict(self) -> dict[str, Any]:
        return {"mean": self._mean, "scale": self._scale, "weights": self._weights, "bias": self._bias}

    def length(self, hidden: Sequence[float]) -> float:
        """Expected tokens of the answer. Cost: one multiplication a feature."""
        return expm1(min(MOST, max(0.0, self._log(self._scaled(hidden)))))

    def observe(self, hidden: Sequence[float], num_output: int) -> None:
        """The answer had ``num_output`` tokens: a step towards it."""
        x = self._scaled(hidden)
        error = log1p(num_output) - self._log(x)
        step = self._rate * error / (1.0 + sum(v * v for v in x))
        self._weights = [w + step * v for w, v in zip(self._weights, x, strict=True)]
        self._bias += step

    def _scaled(self, hidden: Sequence[float]) -> list[float]:
        return [(h - m) / s for h, m, s in zip(hidden, self._mean, self._scale, strict=True)]

    def _log(self, scaled: Sequence[float]) -> float:
        return self._bias + sum(w * v for w, v in zip(self._weights, scaled, strict=True))
