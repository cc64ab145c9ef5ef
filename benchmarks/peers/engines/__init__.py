"""Engines, one file each: ``FORMS``, ``KV_BITS``, ``Engine`` (see worker.py). The file's name is the engine's.

Heavy imports stand inside functions: the driver reads ``FORMS`` in its own environment, the engine runs in the peer's.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Every engine that has a file here; Pagoda first, as the one that others are compared with."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return sorted(found, key=lambda name: name != "pagoda")


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
