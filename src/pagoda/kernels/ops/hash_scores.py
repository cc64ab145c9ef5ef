"""How alike the hashes of slots and of queries are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from .hash_slots import MOST_BITS, sign_hashes


def hash_scores(hashes: Tensor, queries: Tensor, planes: Tensor) -> Tensor:
    """float32 ``[L, H, N]``: bits of hashes that agree less those that do not, over all queries of the head.

    hashes float32 ``[L, H, N]`` (neighbours side by side) as `hash_slots` made them with ``planes`` float32
    ``[D, bits]``, queries float32 ``[L, H * G, D]``.
    """
    key = (hashes.dtype, hashes.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(hashes.device.type, (hashes.dtype,)))
    scores: Tensor = run(hashes, queries, planes)
    return scores


def reference(hashes: Tensor, queries: Tensor, planes: Tensor) -> Tensor:
    shifts = torch.arange(planes.shape[1], device=hashes.device)
    asked = sign_hashes(queries, planes).view(*hashes.shape[:2], -1)
    votes = ((asked.long()[..., None] >> shifts & 1) * 2 - 1).sum(-2).float()  # [L, H, bits]
    signs = (hashes.long()[..., None] >> shifts & 1).float() * 2 - 1
    return (signs @ votes[..., None])[..., 0]


_OP = Op("hash_scores", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, slots: int, room: int, group: int, bits: int) -> dict[str, object]:
    hashes = make.normal(2, 3, room, scale=2.0**bits).abs() % 2**bits
    return {
        "hashes": hashes.floor()[..., :slots],
        "queries": make.normal(2, 3 * group, 20),
        "planes": make.normal(20, bits),
    }


CASES = [
    Case("heads", lambda make: _case(make, 21, 30, 4, 16)),
    Case("one query, most bits", lambda make: _case(make, 9, 9, 1, MOST_BITS)),
    Case("nothing", lambda make: _case(make, 0, 5, 2, 8)),
]
