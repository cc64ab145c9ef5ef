"""A small world for the manager's tests: two layers of two heads, pages of four tokens."""

from __future__ import annotations

from pagoda.core.types import Granularity

from .world import World, fmt_of

S, L, H = Granularity.SEQUENCE, Granularity.LAYER, Granularity.HEAD
GRAINS = [S, L, H]
FMT = fmt_of(2, 2, page_size=4)
PROMPT = list(range(10, 20))


def world_of(num_blocks: int = 16, **options: object) -> World:
    return World(FMT, num_blocks, **options)


def run(world: World, tokens: list[int], grain: Granularity = S, **options: object) -> int:
    """Admits and computes a whole prompt."""
    seq_id = world.admit(tokens, grain, **options)
    world.step({seq_id: tokens[len(world.seqs[seq_id].tokens) :]})
    world.check()
    return seq_id


def cached(world: World, seq_id: int) -> int:
    return world.manager.table(seq_id).num_tokens
