"""Pagoda: language models inside a memory budget that you state in bytes.

>>> from pagoda import LLM, SamplingParams
>>> with LLM("lantern", memory="2GiB") as llm:
...     print(llm.generate("Once upon a time", SamplingParams(max_tokens=64))[0].text)

The names below are imported when first used: ``import pagoda`` alone takes milliseconds and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "engine.llm",
    "AsyncLLM": "engine.async_llm",
    "SamplingParams": "sampling.params",
    "Structured": "sampling.structured",
    "RequestOutput": "engine.outputs",
    "Completion": "engine.outputs",
    "PagodaError": "core.errors",
    "ConfigError": "core.errors",
    "BudgetError": "core.errors",
    "ModelError": "core.errors",
    "UnsupportedModelError": "core.errors",
    "WeightsError": "core.errors",
    "RequestError": "core.errors",
    "EngineClosedError": "core.errors",
}

__all__ = [
    "AsyncLLM",
    "BudgetError",
    "Completion",
    "ConfigError",
    "EngineClosedError",
    "LLM",
    "ModelError",
    "PagodaError",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "Structured",
    "UnsupportedModelError",
    "WeightsError",
    "__version__",
]

if TYPE_CHECKING:
    from .core.errors import (
        BudgetError,
        ConfigError,
        EngineClosedError,
        ModelError,
        PagodaError,
        RequestError,
        UnsupportedModelError,
        WeightsError,
    )
    from .engine.async_llm import AsyncLLM
    from .engine.llm import LLM
    from .engine.outputs import Completion, RequestOutput
    from .sampling.params import SamplingParams
    from .sampling.structured import Structured


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pagoda' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"pagoda.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
