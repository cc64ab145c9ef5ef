"""What the C allocator holds: the working memory of steps, as a measurement instead of a guess.

Tensors of a step come and go, but the allocator keeps part of their memory for the next step; so "activations" are
resident between steps too. glibc says how much (mallinfo2, glibc 2.33 and later).
"""

from __future__ import annotations

import ctypes
from functools import cache


class _MallInfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def heap_bytes() -> int:
    """Bytes that malloc has taken from the system and not given back, in use or not; 0 where it cannot say."""
    mallinfo2 = _mallinfo2()
    if mallinfo2 is None:
        return 0
    info = mallinfo2()
    return int(info.arena) + int(info.hblkhd)


def trim_heap() -> bool:
    """Ask malloc to give free memory back to the system; False where it cannot, or had none to give."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False


@cache
def _mallinfo2() -> ctypes._NamedFuncPointer | None:
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):  # another C library, or an old glibc
        return None
    function.restype = _MallInfo2
    return function
