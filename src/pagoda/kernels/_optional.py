"""The C++ extension where it is there: for what has a plain twin of its own beside it, and is no op."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def extension() -> Any:
    """The module, or None where none was built."""
    try:
        from ._extension import _cpu
    except ImportError:
        return None
    return _cpu
