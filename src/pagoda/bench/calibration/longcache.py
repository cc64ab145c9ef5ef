"""The rotary frequencies that LongCache takes out of keys and puts back (arXiv:2407.15176)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..quality.tasks.base import World
from ._rotary import frequencies


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``freq`` [L, D / 2] to five digits, ``fine`` [L, D / 2]: the rest, in units of 1e-5.

    Raises ConfigError for models whose keys are not rotated whole, first half with second.
    """
    freq = frequencies(model, world.length, "longcache", "quest, which reads keys as they are")[:, 0].double()
    coarse = freq.mul(1e5).round() / 1e5
    return {"freq": coarse.float(), "fine": ((freq - coarse) * 1e5).float()}, {}


CALIBRATE = calibrate
