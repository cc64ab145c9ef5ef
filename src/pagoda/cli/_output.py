"""What people see is a table, in colour on a terminal and plain in a pipe; what programs see is one line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..core.units import format_bytes


def emit_json(data: Any) -> None:
    """One JSON document on one line of stdout, flushed, so that a reader of a stream sees it at once."""
    print(json.dumps(data, ensure_ascii=False, default=str), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO | None = None) -> None:
    """A table with its first column on the left and numbers (columns named in lower case with ``>``) on the right."""
    file = file or sys.stdout
    right = [column.startswith(">") for column in columns]
    names = [column.removeprefix(">") for column in columns]
    if file.isatty():
        _print_rich(title, names, right, rows, file)
    else:
        _print_plain(title, names, right, rows, file)


def _print_rich(
    title: str, names: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]], file: TextIO
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_right in zip(names, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=file).print(table)


def _print_plain(
    title: str, names: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]], file: TextIO
) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(names, *rows, strict=True)]
    print(title, file=file)
    for row in (names, *rows):
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        print(f"  {'  '.join(cells)}".rstrip(), file=file)
    print(file=file)


def print_ledger(memory: dict[str, Any], file: TextIO | None = None) -> None:
    """The ledger beside the kernel's figures; ``memory`` is ``llm.stats()["memory"]``."""
    rows = [
        [name, *(format_bytes(line[key]) for key in ("leased_bytes", "resident_bytes", "peak_bytes"))]
        for name, line in memory["accounts"].items()
    ]
    unaccounted = f"{format_bytes(memory['unaccounted_bytes'])} ({memory['unaccounted_share']:.1%})"
    rows.append(["unaccounted", "", unaccounted, ""])
    rows.append(["process (RSS)", "", format_bytes(memory["rss_bytes"]), format_bytes(memory["peak_rss_bytes"])])
    if (group := memory["cgroup"]) is not None:
        peak = "" if group["peak_bytes"] is None else format_bytes(group["peak_bytes"])
        limit = f"{format_bytes(group['limit_bytes'])} (limit)"
        rows.append(["cgroup", limit, format_bytes(group["current_bytes"]), peak])
    rows.append(["free", format_bytes(memory["free_bytes"]), "", ""])
    rows.append(["budget", format_bytes(memory["total_bytes"]), "", format_bytes(memory["peak_leased_bytes"])])
    print_table("Memory ledger", ["account", ">leased", ">resident", ">peak"], rows, file)
