"""What lossy methods cost in quality, as measured: the files of ``plan/measured``, one a model, written by
``python -m benchmarks.plan_prices MODEL``.

The price is the KL divergence from the exact model in nats a token: the mean over those of four tasks of ``pagoda
bench kv`` (running text, recall, several keys, copying) that the model's context has room for, the same for weights and
KV. The pages' lists have KL on running text alone, by which a method that forgets a fact is cheap. Prices of several
methods at once are added up; a model that was not measured gets the prices of the nearest that was. Both are
estimates, and are called so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "measured"
EXACT, OFFLOAD = "exact", "offload"
TRAINED_TERNARY = frozenset({"bitnet"})
"""Families whose weights were trained to be rounded: what rounding costs them says nothing of others."""


@dataclass(frozen=True, slots=True)
class PolicyPrice:
    """A KV policy: its loss, and the share of a step's time that deciding took."""

    loss: float
    deciding: float


@dataclass(frozen=True, slots=True)
class Prices:
    """Losses by name, measured on ``model``. What is not in here was not measured, and has no price."""

    model: str
    family: str
    num_params: int
    weights: Mapping[str, float]
    kv_dtypes: Mapping[str, float]
    policies: Mapping[str, PolicyPrice]
    selections: Mapping[str, PolicyPrice] = field(default_factory=dict)
    """Of pages of KV in a lower tier."""

    def are_of(self, name: str, num_params: int) -> bool:
        """Whether they were measured on this model: its folder's or its own name, and as many parameters."""
        return Path(name).name == self.model and num_params == self.num_params

    def loss(self, weights: str, kv_dtype: str, policy: str) -> float | None:
        """Of the three together; None where one of them has no price."""
        chosen = policy.removesuffix(OFFLOAD).removesuffix("+") or EXACT
        known_policies = {**self.policies, **self.selections}
        parts = (
            0.0 if weights == "auto" else self.weights.get(weights),
            0.0 if kv_dtype == "auto" else self.kv_dtypes.get(kv_dtype),
            0.0 if chosen == EXACT else known_policies[chosen].loss if chosen in known_policies else None,
        )
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


@cache
def all_prices() -> tuple[Prices, ...]:
    """Every measured model."""
    return tuple(_read(file) for file in sorted(FOLDER.glob("*.json")))


def nearest_prices(name: str, family: str, num_params: int, known: Sequence[Prices] | None = None) -> Prices | None:
    """Those of the model itself, else of the measured one nearest in size; None where nothing like it was measured."""

    def distance(prices: Prices) -> tuple[bool, float]:
        return not prices.are_of(name, num_params), abs(math.log(prices.num_params / max(1, num_params)))

    found = all_prices() if known is None else known
    like_it = [prices for prices in found if (prices.family in TRAINED_TERNARY) == (family in TRAINED_TERNARY)]
    return min(like_it, key=distance, default=None)


def _read(file: Path) -> Prices:
    data = json.loads(file.read_text(encoding="utf-8"))
    policies, selections = (
        {name: PolicyPrice(one["kl"], one["deciding"]) for name, one in data.get(group, {}).items()}
        for group in ("policies", "selections")
    )
    return Prices(
        data["model"], data["family"], data["num_params"], data["weights"], data["kv_dtypes"], policies, selections
    )
