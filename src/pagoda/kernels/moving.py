"""Copies between two steps of our own kernels, by one thread.

torch copies more than 32,768 numbers by all of its threads, and those go on spinning for milliseconds when they are
done: on every core that our kernels need next.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def put(to: Tensor, what: Tensor) -> None:
    """``to[...] = what``, both on the CPU."""
    np.copyto(_numbers(to), _numbers(what.to(to.dtype)))


def copy_of(what: Tensor) -> Tensor:
    """A contiguous copy."""
    made = torch.empty(what.shape, dtype=what.dtype)
    put(made, what)
    return made


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().view(BITS[tensor.dtype.itemsize]).numpy()  # numpy knows no bfloat16
