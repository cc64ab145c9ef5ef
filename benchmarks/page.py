"""The parts of a page that a command writes, between two lines that say so."""

from __future__ import annotations

from pathlib import Path


def marks(name: str) -> tuple[str, str]:
    """The two lines around what ``python -m benchmarks.NAME report`` writes; ``NAME-part``: where it writes several."""
    command = name.partition("-")[0]
    return f"<!-- {name}: begin (python -m benchmarks.{command} report writes this part) -->", f"<!-- {name}: end -->"


def insert(page: Path, text: str, name: str) -> None:
    """Replaces what stands between the marks of ``name``. Raises ValueError if the page has none."""
    begin_mark, end_mark = marks(name)
    old = page.read_text(encoding="utf-8")
    head, begin, rest = old.partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {begin_mark!r} and {end_mark!r}; put them where the tables belong")
    page.write_text(f"{head}{begin_mark}\n{text}{end_mark}{tail}", encoding="utf-8")
