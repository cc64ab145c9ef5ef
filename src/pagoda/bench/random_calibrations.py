"""Calibrations of no model: what a method costs, and whether it runs, is the same with numbers drawn at random."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ..engine.calibrations import Calibrations
from ..kv.policies import POLICIES
from ..kv.policies.base import Heads, Need

BASES = ("eigen_attention", "kv_heads_compress")
ANY = 8
"""A size that a method leaves open."""


def calibrate_at_random(
    folder: Path, num_layers: int, num_heads: int, head_dim: int, *, group: int = 2, latent: bool = False,
    only: Collection[str] | None = None,
) -> None:  # fmt: skip
    """Files such as ``pagoda calibrate`` writes, with random content, for every method that wants one, or ``only``
    those. ``group``: query heads for each of ``num_heads``. ``latent``: there are no values beside the keys.
    """
    generator = torch.Generator().manual_seed(3)
    heads = Heads(group * num_heads, num_heads, head_dim, 0 if latent else head_dim)
    for name in calibrated():
        if only is not None and name not in only:
            continue
        policy = POLICIES.get(name)
        if name == "chai":  # not any numbers: with c clusters the last heads stand for themselves, the first for others
            rows = [[float(max(head, num_heads - c)) for head in range(num_heads)] for c in range(1, num_heads + 1)]
            found = {"reps": torch.tensor([rows] * num_layers)}
        elif hasattr(policy, "learn") and name not in BASES:  # a codec: from keys and values
            k, v = (torch.randn(num_layers, num_heads, 300, head_dim, generator=generator) for _ in range(2))
            found = policy.learn(k, v)
        else:
            sizes = {key: [one or ANY for one in size] for key, size in policy().learned_sizes(heads).items()}
            found = {key: torch.rand(num_layers, *size, generator=generator) for key, size in sizes.items()}
            if name in BASES:  # nothing grows in them
                found = {key: torch.linalg.qr(x - 0.5).Q.contiguous() for key, x in found.items()}
        Calibrations(folder).save(name, found, {})


def calibrated() -> list[str]:
    """Methods that want a calibration."""
    return [name for name, policy in POLICIES.items() if Need.CALIBRATION in getattr(policy, "needs", ())]
