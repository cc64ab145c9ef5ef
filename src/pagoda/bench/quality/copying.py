"""Copying: words that make no sense together, to be repeated in order. Pure Python, no torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pagoda.bench.quality.facts import ANIMALS, COLORS, NAMES, PLACES, THINGS

WORDS = tuple(dict.fromkeys(COLORS + THINGS + ANIMALS + PLACES + NAMES))


@dataclass(frozen=True)
class WordCase:
    """`prompt + answer` is one text; the answer begins with a space."""

    prompt: str
    answer: str


def copy_case(seed: int, count: int) -> WordCase:
    """ "Copy: red ball Tom. Again:" -> " red ball Tom." """
    rng = random.Random(seed)
    words = " ".join(rng.choice(WORDS) for _ in range(count))
    return WordCase(f"Copy: {words}. Again:", f" {words}.")
