"""Which expert gives way when a cache of experts is full, and which are read before they are asked for.

    lru     the one that was not used for the longest time
    lfu     the one that was used least, old uses counting less and less
    traced  the one least likely to be used soon, by traces of what the layers asked for
    early   as traced; and routers are run before their turn, so that experts are read ahead of their use

A policy is made for so many layers of so many experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Key = tuple[int, int]
"""Layer and expert."""

HALF_LIFE = 256  # uses after which a count is worth half


class CachePolicy(Protocol):
    """Notes uses, and chooses among candidates. Called under the cache's lock."""

    early: ClassVar[bool]
    """Whether it wants to hear what routers say before their turn (`models.layers.foresight`)."""

    def used(self, layer: int, experts: Sequence[int]) -> None: ...

    def worth(self, key: Key, layer: int) -> float:
        """The higher, the longer it stays; ``layer`` is being computed."""


class Lru:
    early: ClassVar[bool] = False

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._clock, self._last = 0, dict[Key, int]()

    def used(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            self._clock += 1
            self._last[layer, expert] = self._clock

    def worth(self, key: Key, layer: int) -> float:
        return self._last.get(key, 0)


class Lfu:
    early: ClassVar[bool] = False

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._uses, self._clock = dict[Key, tuple[float, int]](), 0

    def used(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            self._clock += 1
            self._uses[layer, expert] = (self.worth((layer, expert), layer) + 1, self._clock)

    def worth(self, key: Key, layer: int) -> float:
        count, at = self._uses.get(key, (0.0, 0))
        return float(count * 0.5 ** ((self._clock - at) / HALF_LIFE))


class Traced:
    """MoE-Infinity's worth of an expert (https://arxiv.org/abs/2401.14361, 5): its share of its layer's uses in the
    traces, less for layers that are further ahead.

    The traces are three counts of every expert's uses, which forget half in 2, 8 and 512 steps: what this moment's
    tokens ask for, what their request does, and what the model does in general. How much each is believed is learned
    from how well it foretold the uses that came (a mixture's weights by online EM). So the policy keeps what was used
    last where requests stay with their experts, and what is used most where they do not. The paper matches the
    present request with a library of past ones instead; on routers recorded from five random models such a match, as a
    fourth trace, came to be believed by 1 to 7 %, and changed no hit rate by more than 0.005. Nothing is read ahead by
    traces, as it is there: what they foretell best is what they kept.
    """

    early: ClassVar[bool] = False
    HALF_LIVES = (2, 8, 512)  # in steps
    LEAST, MEMORY = 1e-4, 0.999  # of a share, so that every trace may be right; of what is learned about the traces
    AHEAD = 0.5  # what the last layer to come is worth beside the next

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._num_layers = num_layers
        self._keep = np.array([0.5 ** (1 / steps) for steps in self.HALF_LIVES])[:, None]
        self._counts = np.zeros((len(self.HALF_LIVES), num_layers, num_experts))
        self._right = np.full(len(self.HALF_LIVES), 8.0)
        self._share = [[0.0] * num_experts for _ in range(num_layers)]  # numbers of Python's: they are asked one by one

    def used(self, layer: int, experts: Sequence[int]) -> None:
        counts, ids = self._counts[:, layer], list(experts)
        if counts[0].any() and ids:
            told = self.believed[:, None] * (_shares(counts)[:, ids] + self.LEAST)
            self._right = self._right * self.MEMORY + (told / told.sum(0)).sum(1)
        counts *= self._keep
        counts[:, ids] += 1
        self._share[layer] = (self.believed @ _shares(counts)).tolist()

    @property
    def believed(self) -> Floats:
        """Weights of the traces, which add up to 1."""
        weights: Floats = self._right / self._right.sum()
        return weights

    def worth(self, key: Key, layer: int) -> float:
        ahead = (key[0] - layer - 1) % self._num_layers
        return self._share[key[0]][key[1]] * (1 - self.AHEAD * ahead / self._num_layers)


class Early(Traced):
    early: ClassVar[bool] = True


POLICIES: dict[str, type[Lru] | type[Lfu] | type[Traced]] = {"lru": Lru, "lfu": Lfu, "traced": Traced, "early": Early}


def _shares(counts: Floats) -> Floats:
    shares: Floats = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-9)
    return shares
