"""Requests to come: replayed from the traces of real services (``trace_files``), or drawn by seed.

Where blocks of a trace have equal ids, prompts get equal tokens: what a prefix cache could find in the service, it can
find in the replay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
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
