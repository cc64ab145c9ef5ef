"""Calibrations of no model: what a method costs, and whether it runs, is the same with numbers drawn at random."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ..engine.calibrations import Calibrations
from ..kv.policies import POLICIES
from ..kv.policies.base import Need


def calibrate_at_random(
    folder: Path, num_layers: int, num_heads: int, head_dim: int, *, group: int = 2, latent: bool = False,
    only: Collection[str] | None = None,
) -> None:  # fmt: skip
    """Files such as ``pagoda calibrate`` writes, with random content, for every method that wants one, or ``only``
    those. ``group``: query heads for each of ``num_heads``. ``latent``: there are no values beside the keys.
    """
    generator = torch.Generator().manual_seed(3)
    gates = {"heads": (num_heads,), "query_heads": (group * num_heads,), "layers": (1,)}
    wide, hidden = (1 if latent else 2) * num_heads * head_dim, 4
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "eigen_attention": dict.fromkeys(("keys", "values"), (num_heads, head_dim, head_dim)),
        "kv_heads_compress": dict.fromkeys(("keys2", "values2"), (num_heads // 2, 2 * head_dim, head_dim)),
        "lychee_decode": {"ranks": (num_heads,)},
        "a2ats": {
            "codes": (num_heads, 8, head_dim),
            "metric": (num_heads, head_dim, head_dim),
            "freq": (1, head_dim // 2),
        },
        "less": {
            "q_map": (group * num_heads, head_dim, 4),
            "q_bias": (group * num_heads, 4),
            "k_map": (num_heads, head_dim, 4),
            "k_bias": (num_heads, 4),
        },
        "longcache": {"freq": (head_dim // 2,), "fine": (head_dim // 2,)},
        "locret": {"w1": (wide, hidden), "b1": (hidden,), "w2": (hidden, num_heads), "b2": (num_heads,)},
    }
    for name in calibrated():
        if only is not None and name not in only:
            continue
        policy = POLICIES.get(name)
        if name == "chai":  # not any numbers: with c clusters the last heads stand for themselves, the first for others
            rows = [[float(max(head, num_heads - c)) for head in range(num_heads)] for c in range(1, num_heads + 1)]
            found = {"reps": torch.tensor([rows] * num_layers)}
        elif name not in shapes and hasattr(policy, "learn"):  # a codec: from keys and values
            k, v = (torch.randn(num_layers, num_heads, 300, head_dim, generator=generator) for _ in range(2))
            found = policy.learn(k, v)
        else:
            sizes = shapes.get(name, gates)
            found = {key: torch.rand(num_layers, *size, generator=generator) for key, size in sizes.items()}
            if name in ("eigen_attention", "kv_heads_compress"):  # bases: nothing grows in them
                found = {key: torch.linalg.qr(x - 0.5).Q.contiguous() for key, x in found.items()}
        Calibrations(folder).save(name, found, {})


def calibrated() -> list[str]:
    """Methods that want a calibration."""
    return [name for name, policy in POLICIES.items() if Need.CALIBRATION in getattr(policy, "needs", ())]
