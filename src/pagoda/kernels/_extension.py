"""The C++ extension (``csrc/``). Without it this import fails with the reason, which `dispatch.available` shows.

One that was built from other sources than those beside this file is refused: its functions may take other arguments.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .layout import PageLayout
from .sources import why_stale

PATH = "PAGODA_EXTENSION"  # a file: another build, of whatever sources (sanitizers, two builds side by side)


def _load() -> ModuleType:
    name, path = f"{__package__}._cpu", os.environ.get(PATH)
    if not path:
        module = importlib.import_module(name)
        if stale := why_stale(getattr(module, "sources", None)):
            raise ConfigError(stale)  # no ImportError: the reference kernels do not serve in its place
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise ImportError(f"{PATH}={path!r} is no extension module; give the path of a built _cpu*.so")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


try:
    _cpu = _load()
except ImportError as error:
    raise ImportError(f"the C++ extension was not built when Pagoda was installed ({error})") from None

CPU = frozenset({"cpu"})


def cpu_features() -> dict[str, bool]:
    """Instruction sets of this machine that the operating system lets us use (cpuid, xgetbv)."""
    features: dict[str, bool] = _cpu.cpu_features()
    return features


def best_isa() -> str:
    """The instruction set that the kernels run with here: amx, avx512bf16slow (csrc/isa.hpp), avx512bf16,
    avx512vnni, avx512, avx2 or base.

    Raises ConfigError for an unknown one in ``PAGODA_ISA``.
    """
    isa: str = _said(_cpu.best_isa)
    return isa


def byte_products_allowed() -> bool:
    """Whether int8 and int4 KV may be multiplied as bytes. Raises ConfigError for an unknown ``PAGODA_KV_PRODUCTS``."""
    allowed: bool = _said(_cpu.byte_products_allowed)
    return allowed


def _said(ask: Callable[[], Any]) -> Any:
    """What the extension answers that reads the environment."""
    try:
        return ask()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def caches() -> tuple[int, int]:
    """Bytes of a core's first and second data cache, by which tiles are cut."""
    first, second = _cpu.caches()
    return first, second


def num_workers() -> int:
    """Threads of the kernels' own pool, beside the callers."""
    count: int = _cpu.num_workers()
    return count


def head_rows(x: Tensor) -> Tensor:
    """x ``[tokens, heads, dim]`` with a contiguous last dimension; slices of a fused projection pass as they are."""
    return x if x.stride(2) == 1 else x.contiguous()


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Dtype of csrc/dtype.hpp
CODES = {"int8": 3, "int4": 4, "fp8": 5}  # enum Store of csrc/page_shape.hpp, which begins with the dtypes
PAGES = 6  # pages that were encoded whole
CODECS = frozenset(f"codec_{name}" for name in CODES)


def store_of(layout: PageLayout) -> int:
    """How the extension calls the way in which these pages store numbers."""
    return DTYPES[layout.dtype] if layout.codec is None else CODES[layout.codec.name]
