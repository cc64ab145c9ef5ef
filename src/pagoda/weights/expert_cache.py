"""Experts that stay on disk, and those that are in memory: a cache of whole experts, shared by all layers of a model.

A step asks for a layer's experts at once. Those at hand are computed first, while a thread reads the others; when none
is left to read, it fetches what the next layer will probably ask for. Which expert gives way is a policy's choice:

    lru     the one that was not used for the longest time
    lfu     the one that was used least, old uses counting less and less
    traced  the one least likely to be used soon: its share of its layer's uses, and how far ahead its layer is
            (MoE-Infinity, https://arxiv.org/abs/2401.14361, 5)
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.lay_out import panel_bytes
from ..kernels.packed import PackedWeight
from .direct import aligned_buffer, span_bytes
from .reader import Checkpoint
from .rows import StoredRows
from .streaming import lay_out_unit

Key = tuple[int, int]
"""Layer and expert."""

HALF_LIFE = 256  # uses after which a count is worth half


class CachePolicy(Protocol):
    """Notes uses, and chooses among candidates. Called under the cache's lock."""

    def used(self, key: Key) -> None: ...

    def worth(self, key: Key, layer: int) -> float:
        """The higher, the longer it stays; ``layer`` is being computed."""


class Lru:
    def __init__(self, num_layers: int) -> None:
        self._clock, self._last = 0, dict[Key, int]()

    def used(self, key: Key) -> None:
        self._clock += 1
        self._last[key] = self._clock

    def worth(self, key: Key, layer: int) -> float:
        return self._last.get(key, 0)


class Lfu:
    def __init__(self, num_layers: int) -> None:
        self._uses, self._clock = dict[Key, tuple[float, int]](), 0

    def used(self, key: Key) -> None:
        self._clock += 1
        self._uses[key] = (self._now(key) + 1, self._clock)

    def worth(self, key: Key, layer: int) -> float:
        return self._now(key)

    def _now(self, key: Key) -> float:
        count, at = self._uses.get(key, (0.0, 0))
        return float(count * 0.5 ** ((self._clock - at) / HALF_LIFE))


class Traced(Lfu):
    def __init__(self, num_layers: int) -> None:
        super().__init__(num_layers)
        self._num_layers = num_layers

    def worth(self, key: Key, layer: int) -> float:
        ahead = (key[0] - layer - 1) % self._num_layers
        return self._now(key) * (1 - ahead / (2 * self._num_layers))


POLICIES: dict[str, type[Lru] | type[Lfu] | type[Traced]] = {"lru": Lru, "lfu": Lfu, "traced": Traced}


@dataclass(slots=True)
class CacheCounters:
    """Experts asked for and found, read for want, read ahead of need, and read ahead and then used."""

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    prefetched_used: int = 0
    bytes_read: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """Room for one expert. ``pinned``: it is computed with now. ``ahead``: read for a guess, and not used yet."""

    panels: Tensor
    ready: bool = False
    pinned: bool = False
    ahead: bool = False


@dataclass(slots=True)
class _Successors:
    """What followed: uses of a layer's experts after those of the layer before it."""

    counts: dict[Key, Counter[int]] = field(default_factory=dict)

    def note(self, before: Sequence[Key], now: Sequence[Key]) -> None:
        for key in before:
            self.counts.setdefault(key, Counter()).update(expert for _, expert in now)

    def likely(self, now: Sequence[Key], layer: int, count: int) -> list[Key]:
        total: Counter[int] = Counter()
        for key in now:
            total.update(self.counts.get(key, {}))
        return [(layer, expert) for expert, _ in total.most_common(count)]


class ExpertCache:
    """``experts``: the matrices of each, all of one size. ``num_bytes``: what slots and reading may take."""

    def __init__(
        self, experts: Mapping[Key, Sequence[StoredRows]], checkpoint: Checkpoint, num_slots: int, policy: str
    ) -> None:
        self._experts, self._files = experts, checkpoint.open_files(use_cache=False)
        self._files.open_all()
        first = next(iter(experts.values()))
        self._sizes = [panel_bytes(m.kernel, m.rows, m.cols) for m in first]
        self.num_layers = 1 + max(layer for layer, _ in experts)
        self._policy: CachePolicy = POLICIES[policy](self.num_layers)
        reading = [span_bytes(num_bytes) for m in first for u in m.units() for _, _, num_bytes, _ in u.parts]
        spans = max(sum(span_bytes(n) for _, _, n, _ in u.parts) for m in first for u in m.units())
        assert reading, "experts without rows"
        self._buffer = aligned_buffer(spans)
        self._free = [_Slot(torch.empty(sum(self._sizes), dtype=torch.uint8)) for _ in range(num_slots)]
        self._held: dict[Key, _Slot] = {}
        self._wanted: deque[Key] = deque()
        self._guesses: deque[Key] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped, self._layer = False, 0
        self._before: list[Key] = []
        self._awaited: set[Key] = set()  # of the layer that is computed, not used yet: they stay
        self._successors = _Successors()
        self.num_bytes = num_slots * sum(self._sizes) + self._buffer.nbytes
        self.counters = CacheCounters()
        self._thread = threading.Thread(target=self._work, name="pagoda-experts", daemon=True)
        self._thread.start()

    def use(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, list[PackedWeight]]]:
        """Each expert once, with its matrices, valid until the next is asked for; those at hand come first.

        Raises WeightsError naming file and tensor.
        """
        keys = [(layer, expert) for expert in experts]
        with self._changed:
            here = [key for key in keys if key in self._held and self._held[key].ready]
            missing = [key for key in keys if key not in here]
            self._layer = layer
            self._count(here, missing)
            self._awaited = set(keys)
            self._wanted.extend(key for key in missing if key not in self._held)
            self._guess(keys)
            self._changed.notify_all()
        try:
            left = [*here, *missing]
            while left:
                key, slot = self._next_ready(left)
                left.remove(key)
                try:
                    yield key[1], self._matrices(key, slot)
                finally:
                    with self._changed:
                        slot.pinned = False
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._awaited.clear()
                self._changed.notify_all()

    def _count(self, here: list[Key], missing: list[Key]) -> None:
        self.counters.hits += len(here)
        self.counters.misses += len(missing)
        for key in here:
            self.counters.prefetched_used += self._held[key].ahead
            self._held[key].ahead = False
        for key in (*here, *missing):
            self._policy.used(key)

    def _guess(self, keys: list[Key]) -> None:
        """What the next layer will ask for, by what it asked for after these experts before."""
        self._successors.note(self._before, keys)
        self._before = keys
        layer = (self._layer + 1) % self.num_layers
        likely = self._successors.likely(keys, layer, len(keys))
        self._guesses = deque(key for key in likely if key in self._experts and key not in self._held)

    def _next_ready(self, left: list[Key]) -> tuple[Key, _Slot]:
        """Whichever is there first: to wait for one of them could be for ever, while others hold all slots."""
        with self._changed:
            while self._error is None:
                for key in left:
                    slot = self._held.get(key)
                    if slot is not None and slot.ready:
                        slot.pinned, slot.ahead = True, False
                        self._awaited.discard(key)
                        return key, slot
                self._changed.wait()
            raise self._error

    def _work(self) -> None:
        try:
            while (claimed := self._claim()) is not None:
                key, slot = claimed
                self._read(key, slot)
                with self._changed:
                    slot.ready = True
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, the step that waits must hear of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _claim(self) -> tuple[Key, _Slot] | None:
        with self._changed:
            while not self._stopped:
                queue = self._wanted or self._guesses
                while queue and queue[0] in self._held:
                    queue.popleft()
                if queue:
                    ahead = queue is self._guesses
                    slot = self._slot_for(queue[0], ahead=ahead)
                    if slot is not None:
                        key = queue.popleft()
                        slot.ready, slot.ahead, self._held[key] = False, ahead, slot
                        self.counters.prefetched += ahead
                        return key, slot
                    if ahead:
                        self._guesses.clear()  # nothing is worth less than a guess
                        continue
                    self._changed.wait()
                elif not self._wanted and not self._guesses:
                    self._changed.wait()
        return None

    def _slot_for(self, key: Key, *, ahead: bool) -> _Slot | None:
        if self._free:
            return self._free.pop()
        idle = [k for k, s in self._held.items() if s.ready and not s.pinned and k not in self._awaited]
        others = [k for k in idle if k not in self._before]  # what this layer used already goes last
        idle = others or ([] if ahead else idle)
        if not idle:
            return None
        victim = min(idle, key=lambda k: self._policy.worth(k, self._layer))
        if ahead and self._policy.worth(victim, self._layer) >= self._policy.worth(key, self._layer):
            return None
        return self._held.pop(victim)

    def _read(self, key: Key, slot: _Slot) -> None:
        start = 0
        for matrix, size in zip(self._experts[key], self._sizes, strict=True):
            at = start
            for unit in matrix.units():
                place = 0
                for entry, offset, num_bytes, _ in unit.parts:
                    self._files.read_range(entry, offset, num_bytes, self._buffer[place:])
                    place += span_bytes(num_bytes)
                    self.counters.bytes_read += num_bytes
                self._files.check(entry for entry, *_ in unit.parts)
                at += lay_out_unit(matrix, unit, self._buffer, slot.panels[at:]).nbytes
            start += size

    def _matrices(self, key: Key, slot: _Slot) -> list[PackedWeight]:
        found, start = [], 0
        for matrix, size in zip(self._experts[key], self._sizes, strict=True):
            panels = slot.panels[start : start + size].view(1, -(-matrix.rows // 16), -1, 64)
            found.append(PackedWeight(matrix.kernel, matrix.rows, matrix.cols, panels))
            start += size
        return found

    def close(self) -> None:
        """Ends the thread, closes the files, lets the slots go. A second call does nothing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()
        self._free.clear()
        self._held.clear()


class CachedExperts:
    """One layer's experts in a cache, as the layer holds them."""

    __slots__ = ("cache", "layer", "shape")

    def __init__(self, cache: ExpertCache, layer: int, shape: tuple[int, ...]) -> None:
        self.cache, self.layer, self.shape = cache, layer, torch.Size(shape)

    @property
    def nbytes(self) -> int:
        """The cache holds the bytes."""
        return 0
