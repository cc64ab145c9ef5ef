"""When the tokens of a group of prompts appeared, and the rates that follow from that. Shared by all engines."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

CLOCK = "PAGODA_PEERS_CLOCK"
"""``cpu``: processor time of the engine's process, all its threads together, instead of time. With one thread it says
what a step costs on a machine that others use as well."""


def clock() -> float:
    return time.process_time() if os.environ.get(CLOCK) == "cpu" else time.perf_counter()


class Trace:
    """An engine calls ``mark`` after each of its steps with the number of tokens that every prompt has so far."""

    def __init__(self, num_prompts: int, new: int) -> None:
        self._num_prompts, self._new = num_prompts, new
        self._marks: list[tuple[float, list[int]]] = []
        self._started = clock()

    def mark(self, counts: Sequence[int]) -> None:
        self._marks.append((clock() - self._started, list(counts)))

    def summary(self) -> dict[str, Any]:
        """``first_s``: until every prompt had its first token; then, until the first of them was done, ``decode_s``
        seconds for ``decode_tokens`` tokens, and ``steps_s`` of the same window. Raises ValueError if a prompt did not
        get exactly the tokens that were asked for: an engine that stops early would look fast."""
        if not self._marks or self._marks[-1][1] != [self._new] * self._num_prompts:
            raise ValueError(f"{self._num_prompts} prompts asked for {self._new} tokens each and got {self._got()}")
        begin = next(i for i, (_, counts) in enumerate(self._marks) if min(counts) >= 1)
        end = next(i for i, (_, counts) in enumerate(self._marks) if max(counts) >= self._new)
        window = self._marks[begin : end + 1]
        times = [at for at, _ in window]
        return {
            "first_s": self._marks[begin][0],
            "decode_s": times[-1] - times[0] if window else 0.0,
            "decode_tokens": sum(window[-1][1]) - sum(window[0][1]) if window else 0,
            "steps_s": [later - earlier for earlier, later in pairwise(times)],
        }

    def _got(self) -> list[int]:
        return self._marks[-1][1] if self._marks else []
