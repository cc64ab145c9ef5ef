"""The dtype that a model runs in, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pagoda.core.errors import BudgetError, ConfigError, choices
from pagoda.core.types import DTYPE_BYTES
from pagoda.weights.reader import Checkpoint, torch_dtype

from .config_json import stated_dtype
from .shape import TINY_PARAMS

HALVES = "float32 because float16 overflows and is slow on a CPU"


def choose_dtype(
    asked: str, config: Mapping[str, Any], checkpoint: Checkpoint, device: torch.device
) -> tuple[str, str]:
    """The dtype to run in, and why.

    ``auto`` takes the config's, or else that of most of the checkpoint's bytes. On a CPU two cases change it, for
    float32: a small model (up to 32 million parameters, where memory is no matter and rounding is), and float16,
    whose products overflow beyond 65504 and take 8 times as long as bfloat16 (66 ms against 8 ms for 512 x 1024 x
    1024 on two AVX-512 cores); every float16 number is a float32 number, so nothing is lost. The kernels keep the
    weights in float16 (`load`); plain tensors take twice that.
    """
    if asked != "auto":
        if asked not in DTYPE_BYTES:
            raise ConfigError(choices("dtype", asked, ["auto", *DTYPE_BYTES]))
        return asked, "asked for"
    name, reason = _stored_dtype(config, checkpoint)
    num_params = sum(e.num_bytes // max(1, torch_dtype(e.dtype).itemsize) for e in checkpoint.entries.values())
    if device.type == "cpu" and name != "float32":
        if num_params <= TINY_PARAMS:
            return "float32", f"{reason}; float32 because the model is small"
        if name == "float16":
            return "float32", f"{reason}; {HALVES}"
    return name, reason


@contextmanager
def offering_half(reason: str) -> Iterator[None]:
    """Where memory is short and a float16 checkpoint runs in float32 for that ``reason``, the refusal says so."""
    try:
        yield
    except BudgetError as error:
        if not reason.endswith(HALVES):
            raise
        raise BudgetError(f"{error}; dtype bfloat16 takes half, with 8 of float16's 11 bits") from error


def _stored_dtype(config: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[str, str]:
    if (stated := stated_dtype(config)) is not None:
        return stated, f"config.json says {stated}"
    sizes: dict[str, int] = {}
    for entry in checkpoint.entries.values():
        name = str(torch_dtype(entry.dtype)).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + entry.num_bytes
    known = {name: size for name, size in sizes.items() if name in DTYPE_BYTES}
    if not known:
        return "float32", "the checkpoint is in none of the dtypes that run"
    largest = max(known, key=known.__getitem__)
    return largest, f"the checkpoint is stored in {largest}"
