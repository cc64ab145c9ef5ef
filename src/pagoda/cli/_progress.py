"""A line on stderr that counts, where stderr is a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counter(total: int, every: int = 50) -> Iterator[Callable[[str, int], None]]:
    """``told(what, number)`` shows what is under way and how far of ``total`` it is; the line is gone at the end."""
    width = 0

    def told(what: str, number: int) -> None:
        nonlocal width
        if not sys.stderr.isatty() or (number % every and number != total):
            return
        bar = "#" * (20 * number // max(1, total))
        line = f"[{bar:<20}] {number} of {total}  {what}"
        print(f"\r{line:<{width}}", end="", file=sys.stderr, flush=True)
        width = len(line)

    try:
        yield told
    finally:
        if width:
            print(f"\r{'':<{width}}\r", end="", file=sys.stderr, flush=True)
