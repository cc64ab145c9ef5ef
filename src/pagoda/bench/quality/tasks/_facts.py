"""A prompt with several facts, some of them asked."""

from __future__ import annotations

import random

from ..facts import Fact, draw_facts
from ..recall import flatten, take
from .base import World


def told(world: World, seed: int, count: int, *, reserve: int) -> tuple[list[int], list[Fact]]:
    """Ids of a text of ``world.length - reserve`` tokens with ``count`` facts spread over it, and the facts in
    the order in which they are told.
    """
    rng = random.Random(seed)
    facts = draw_facts(rng, count)
    statements = [world.encode(fact.statement) for fact in facts]
    room = world.length - reserve - len(world.head) - sum(map(len, statements))
    gaps = [take(rng, world.filler, max(8, room // count)) for _ in facts]
    ids = list(world.head)
    for gap, statement in zip(gaps, statements, strict=True):
        ids += [*flatten(gap), *statement]
    return ids, facts
