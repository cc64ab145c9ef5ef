"""Requests to come: replayed from the traces of real services, or drawn by seed.

Two forms are read, by the file's name (``.gz`` of them too): Azure's CSV (``TIMESTAMP,ContextTokens,GeneratedTokens``;
Splitwise, https://arxiv.org/abs/2311.18677) and Mooncake's JSON lines (``timestamp`` in milliseconds, ``input_length``,
``output_length``, ``hash_ids`` of blocks of 512 tokens; https://arxiv.org/abs/2407.00079). Where blocks have equal
ids, prompts get equal tokens: what a prefix cache could find in the service, it can find in the replay.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from math import ceil
from pathlib import Path
from random import Random

from ..core.errors import ConfigError, choices

BLOCK = 512
KINDS = ("poisson", "bursty")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request ``at`` seconds after the first one. ``blocks``: ids of its prompt's blocks of ``block`` tokens; empty
    where nothing is known, then no prompt begins like another. ``number`` is its place in the trace.
    """

    number: int
    at: float
    num_prompt: int
    num_output: int
    tenant: str = ""
    priority: int = 0
    blocks: tuple[int, ...] = ()
    block: int = BLOCK

    def prompt(self, vocab_size: int) -> list[int]:
        """``num_prompt`` token ids from 10 to below ``vocab_size``; equal blocks have equal tokens."""
        if vocab_size <= 10:
            raise ConfigError(f"vocab_size is {vocab_size}; give more than 10")
        seeds = self.blocks or (-1 - self.number,) * -(-self.num_prompt // self.block)
        tokens: list[int] = []
        for place, seed in enumerate(seeds):
            mixed = (seed * 2654435761 + (0 if self.blocks else place * 40503)) & 0xFFFFFFFF
            tokens += _stream(mixed, min(self.block, self.num_prompt - len(tokens)), vocab_size - 10)
        return tokens


def _stream(state: int, num: int, span: int) -> list[int]:
    """A linear congruential generator (Numerical Recipes' constants): fast, the same on every machine."""
    found = []
    for _ in range(num):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        found.append(10 + (state >> 8) % span)
    return found


def read_trace(path: Path, limit: int | None = None) -> list[Arrival]:
    """The first ``limit`` requests of a trace. Raises ConfigError naming the file, the line and what is wrong."""
    if not path.is_file():
        raise ConfigError(f"no trace at {path}; give a .csv (Azure) or .jsonl (Mooncake) file, .gz of it, or {KINDS}")
    name = path.name.removesuffix(".gz")
    read = _azure if name.endswith(".csv") else _mooncake if name.endswith(".jsonl") else None
    if read is None:
        raise ConfigError(f"{path.name} is no trace; accepted: .csv (Azure) and .jsonl (Mooncake), .gz of them")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        found = list(islice(_numbered(path, lines, read), limit))
    if not found:
        raise ConfigError(f"{path.name} holds no request")
    return [replace(a, at=a.at - found[0].at) for a in found]


def _numbered(path: Path, lines: Iterable[str], read) -> Iterator[Arrival]:  # type: ignore[no-untyped-def]
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("TIMESTAMP"):
            continue
        try:
            made = read(count, line)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path.name}, line {number}: {line.strip()[:60]!r} is no request ({error})") from error
        if made.num_prompt > 0 and made.num_output > 0:  # services log requests that failed as empty ones
            count += 1
            yield made


def _azure(number: int, line: str) -> Arrival:
    when, context, generated = line.strip().split(",")
    return Arrival(number, datetime.fromisoformat(when[:26]).timestamp(), int(context), int(generated))


def _mooncake(number: int, line: str) -> Arrival:
    row = json.loads(line)
    num_prompt, blocks = int(row["input_length"]), tuple(map(int, row["hash_ids"]))
    if len(blocks) * BLOCK < num_prompt:
        raise ValueError(f"{len(blocks)} blocks of {BLOCK} tokens for a prompt of {num_prompt}")
    return Arrival(number, float(row["timestamp"]) / 1000, num_prompt, int(row["output_length"]), blocks=blocks)


def draw(
    kind: str, num: int, rate: float, *, seed: int = 0, prompt: int = 256, output: int = 64, tenants: int = 1,
    shared: int = 0,
) -> list[Arrival]:  # fmt: skip
    """``num`` requests at a mean of ``rate`` a second, lengths geometric around ``prompt`` and ``output`` tokens.

    ``poisson``: exponential gaps. ``bursty``: gamma gaps of shape 0.25 (a coefficient of variation of 2). ``shared``:
    each request has one of that many beginnings of ``prompt // 2`` tokens before its own (0: none).
    """
    if kind not in KINDS:
        raise ConfigError(choices("arrivals", kind, KINDS))
    if num < 1 or not rate > 0 or min(prompt, output, tenants) < 1 or shared < 0:
        raise ConfigError(f"{num} requests at {rate} a second, {prompt}/{output} tokens: all of them must be above 0")
    random, now, made = Random(seed), 0.0, []
    block = max(1, prompt // 2)
    for number in range(num):
        num_prompt, num_output = _geometric(random, prompt), _geometric(random, output)
        blocks: tuple[int, ...] = ()
        if shared:
            num_prompt += block
            own = -1 - number * 10_000
            blocks = (random.randrange(shared), *range(own, own - num_prompt // block, -1))
        tenant = f"tenant-{random.randrange(tenants)}" if tenants > 1 else ""
        made.append(Arrival(number, now, num_prompt, num_output, tenant, blocks=blocks, block=block))
        shape = 1.0 if kind == "poisson" else 0.25
        now += random.gammavariate(shape, 1 / (rate * shape))
    return made


def _geometric(random: Random, mean: int) -> int:
    return max(1, round(random.expovariate(1 / mean)))


def scaled(arrivals: list[Arrival], *, time: float = 1.0, length: float = 1.0) -> list[Arrival]:
    """Arrivals ``time`` times as fast, with ``length`` times as many tokens (at least 1); blocks shrink alike."""
    if not time > 0 or not length > 0:
        raise ConfigError(f"time scale {time}, length scale {length}: both must be above 0")
    return [
        replace(
            a,
            at=a.at / time,
            num_prompt=max(1, int(a.num_prompt * length)),
            num_output=max(1, int(a.num_output * length)),
            block=max(1, ceil(a.block * length)),
        )
        for a in arrivals
    ]


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
