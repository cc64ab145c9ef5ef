"""Traces of real services as files: CSV with a header, or JSON lines; ``.gz`` of them too.

CSV: columns in any order and others beside them. Azure's ``TIMESTAMP,ContextTokens,GeneratedTokens`` (Splitwise,
https://arxiv.org/abs/2311.18677), BurstGPT's (https://arxiv.org/abs/2401.17644) and Vidur's names of the three are
known; a file without a header is in Azure's order. Times are dates or seconds.

JSON lines: ``timestamp``, ``input_length``, ``output_length`` and, where it is known what prompts share, ``hash_ids``
of their blocks. Blocks of 512 tokens and milliseconds are Mooncake's (https://arxiv.org/abs/2407.00079), of 16 and
seconds those of Alibaba's Bailian traces (https://arxiv.org/abs/2506.02634).

Lines that are out of order are sorted; requests of no tokens, which services log where they failed, are left out.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice, pairwise
from math import isfinite
from pathlib import Path
from typing import TypeAlias

from ..core.errors import ConfigError
from .traces import BLOCK, KINDS, Arrival, draw, scaled

SMALL_BLOCK = 16
TIMES = ("timestamp", "arrived_at", "arrival_time", "time")
PROMPTS = ("contexttokens", "request tokens", "num_prefill_tokens", "input_length", "input_tokens", "prompt_tokens")
OUTPUTS = (
    "generatedtokens", "response tokens", "num_decode_tokens", "output_length", "output_tokens", "completion_tokens"
)  # fmt: skip
_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$")
_Line: TypeAlias = Callable[[int, str], Arrival]


def read_trace(path: Path, limit: int | None = None) -> list[Arrival]:
    """The first ``limit`` requests of a trace. Raises ConfigError naming the file, the line and what is wrong."""
    if not path.is_file():
        raise ConfigError(f"no trace at {path}; give a .csv or .jsonl file, .gz of it, or {' or '.join(KINDS)}")
    found = _read(path, limit)
    if limit is not None and any(b.at < a.at for a, b in pairwise(found)):
        found = _read(path, None)  # the first requests may be anywhere
    if not found:
        raise ConfigError(f"{path.name} holds no request")
    found = sorted(found, key=lambda a: a.at)[:limit]
    return [replace(a, number=number, at=a.at - found[0].at) for number, a in enumerate(found)]


def _read(path: Path, limit: int | None) -> list[Arrival]:
    name = path.name.removesuffix(".gz")
    if not name.endswith((".csv", ".jsonl")):
        raise ConfigError(f"{path.name} is no trace; accepted: .csv and .jsonl, .gz of them")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return _alike(list(islice(_arrivals(path.name, lines, name.endswith(".csv")), limit)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read ({error})") from error


def _alike(found: list[Arrival]) -> list[Arrival]:
    """One small block makes a trace of small blocks: of a short prompt alone that cannot be told."""
    if all(a.block == BLOCK for a in found):
        return found
    return [replace(a, block=SMALL_BLOCK, at=a.at * 1000) if a.block == BLOCK else a for a in found]


def _arrivals(name: str, lines: Iterable[str], is_csv: bool) -> Iterator[Arrival]:
    read: _Line | None = None if is_csv else _from_json
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if read is None:
            read, is_header = _columns(name, line)
            if is_header:
                continue
        try:
            made = read(count, line)
            if not isfinite(made.at):
                raise ValueError(f"its time is {made.at}")
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ConfigError(f"{name}, line {number}: {line.strip()[:60]!r} is no request ({why})") from error
        if made.num_prompt > 0 and made.num_output > 0:
            count += 1
            yield made


def _columns(name: str, line: str) -> tuple[_Line, bool]:
    """How to read a line of this CSV, and whether its first one is a header."""
    head = [cell.strip().lower() for cell in next(csv.reader([line]))]
    if head[0][:1].isdigit():
        return _from_csv(0, 1, 2, max(3, len(head))), False
    places = []
    for what, known in (("time", TIMES), ("prompt's tokens", PROMPTS), ("answer's tokens", OUTPUTS)):
        place = next((head.index(column) for column in known if column in head), None)
        if place is None:
            raise ConfigError(
                f"{name} has no column for a request's {what}: it has {', '.join(head)}; accepted: {', '.join(known)}"
            )
        places.append(place)
    return _from_csv(*places, len(head)), True


def _from_csv(at: int, prompt: int, output: int, num_columns: int) -> _Line:
    def read(number: int, line: str) -> Arrival:
        cells = next(csv.reader([line])) if '"' in line else line.strip().split(",")
        if len(cells) != num_columns:
            raise ValueError(f"{len(cells)} columns, and the first line has {num_columns}")
        return Arrival(number, _seconds(cells[at].strip()), _count(cells[prompt]), _count(cells[output]))

    return read


def _seconds(text: str) -> float:
    """Of a number, or of a date, whose time zone is not looked at: all lines have the same."""
    if ":" not in text:
        return float(text)
    return datetime.fromisoformat(_ZONE.sub("", text)[:26]).replace(tzinfo=UTC).timestamp()


def _count(text: str) -> int:
    return int(text) if text.strip().isdigit() else int(float(text))


def _from_json(number: int, line: str) -> Arrival:
    row = json.loads(line)
    when, num_prompt = float(row["timestamp"]), int(row["input_length"])
    blocks = tuple(map(int, row.get("hash_ids") or ()))
    block = BLOCK
    if blocks and len(blocks) > 1 - (-num_prompt // BLOCK):  # more than blocks of 512 could be, and one for a rest
        block = SMALL_BLOCK
    if blocks and len(blocks) * block < num_prompt:
        raise ValueError(f"{len(blocks)} blocks of {block} tokens for a prompt of {num_prompt}")
    at = when / 1000 if block == BLOCK else when
    return Arrival(number, at, num_prompt, int(row["output_length"]), blocks=blocks, block=block)


def arrivals_of(
    trace: str, num: int, *, rate: float = 1.0, seed: int = 0, tenants: int = 1, prompt: int = 256, output: int = 64,
    time: float = 1.0, length: float = 1.0,
) -> list[Arrival]:  # fmt: skip
    """What the commands mean by a trace: a file, or ``poisson`` or ``bursty``; scaled."""
    if trace in KINDS:
        found = draw(trace, num, rate, seed=seed, prompt=prompt, output=output, tenants=tenants)
    else:
        found = read_trace(Path(trace), num)
    return scaled(found, time=time, length=length)
