"""Counting back: numbers downwards, and lists read from their end. Pure Python, no torch."""

from __future__ import annotations

import random

from pagoda.bench.quality.copying import WORDS, WordCase


def count_back_case(seed: int, count: int) -> WordCase:
    """ "Count back from 42:" -> " 42 41 40": the first `count` numbers; where to stop is not said, so not asked."""
    top = random.Random(seed).randint(count, 99)
    return WordCase(f"Count back from {top}:", " " + " ".join(str(n) for n in range(top, top - count, -1)))


def reverse_case(seed: int, count: int) -> WordCase:
    """ "Backwards: red ball Tom. From the end:" -> " Tom ball red." """
    words = random.Random(seed).sample(WORDS, count)
    return WordCase(f"Backwards: {' '.join(words)}. From the end:", f" {' '.join(reversed(words))}.")
