"""Experts that stay on disk, and those that are in memory: a cache of whole experts, shared by all layers of a model.

A step asks for a layer's experts at once. Those at hand are computed first, while threads read the others, each a part
of one; when none is left to read, they fetch what a router named before its turn. Which expert gives way is a policy's
choice (`expert_policies`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .direct import aligned_buffer
from .expert_policies import POLICIES, CachePolicy, Key
from .expert_store import ExpertMemory, ExpertStore, Part
from .packed import PanelMatrix
from .rows import NUM_READERS


@dataclass(slots=True)
class CacheCounters:
    """Experts asked for and found, read for want, read ahead of need, and read ahead and then used.

    ``foreseen``: that a router named before its turn, and ``foreseen_right``: of those, asked for.
    """

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    prefetched_used: int = 0
    foreseen: int = 0
    foreseen_right: int = 0
    bytes_read: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """Memory of one expert. ``missing``: parts that are not read yet. ``pinned``: it is computed with now.
    ``ahead``: read for a guess, and not used yet.
    """

    memory: Tensor
    matrices: list[PanelMatrix]
    missing: int
    pinned: bool = False
    ahead: bool = False

    @property
    def ready(self) -> bool:
        return self.missing == 0


class ExpertCache:
    """``cache_bytes`` for experts of the store, at least the two largest. ``num_bytes``: with what reading takes.

    An expert of fewer bits takes less room and less time to read, in the same proportion: which one gives way does not
    depend on sizes.
    """

    def __init__(self, store: ExpertStore, cache_bytes: int, policy: str) -> None:
        self._store, self._memory, keys = store, ExpertMemory(cache_bytes), store.num_bytes
        self.num_layers = 1 + max(layer for layer, _ in keys)
        self._policy: CachePolicy = POLICIES[policy](self.num_layers, 1 + max(expert for _, expert in keys))
        buffers = [aligned_buffer(store.buffer_bytes) for _ in range(NUM_READERS)]
        self._held: dict[Key, _Slot] = {}
        self._wanted: deque[Key] = deque()
        self._guesses: deque[Key] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped, self._layer = False, 0
        self._before: list[Key] = []
        self._awaited: set[Key] = set()  # of the layer that is computed, not used yet: they stay
        self._jobs: deque[tuple[_Slot, Part]] = deque()
        self._told: list[Key] = []  # what a router said before its turn
        self.num_bytes = cache_bytes + sum(buffer.nbytes + store.converted_bytes for buffer in buffers)
        self.counters = CacheCounters()
        self._threads = [
            threading.Thread(target=self._work, args=(buffer,), name=f"pagoda-experts-{n}", daemon=True)
            for n, buffer in enumerate(buffers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def early(self) -> bool:
        """Whether routers should be run before their turn, and `expect` be called."""
        return self._policy.early

    def use(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, list[PanelMatrix]]]:
        """Each expert once, with its matrices, valid until the next is asked for; those at hand come first. Let go of
        them before: their memory may have to go back to the system.

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
            self._before = keys
            self._guesses.clear()
            self._changed.notify_all()
        try:
            left = [*here, *missing]
            while left:
                key, slot = self._next_ready(left)
                left.remove(key)
                try:
                    yield key[1], list(slot.matrices)
                finally:
                    with self._changed:
                        slot.pinned = False
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._awaited.clear()
                self._changed.notify_all()

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """What the layer that comes next will probably ask for, the most probable first: it is read at once."""
        keys = [key for expert in experts if (key := (layer, expert)) in self._store.num_bytes]
        with self._changed:
            self._told = keys
            self._guesses = deque(key for key in keys if key not in self._held)
            self._changed.notify_all()

    def _count(self, here: list[Key], missing: list[Key]) -> None:
        self.counters.foreseen += len(self._told)
        self.counters.foreseen_right += len({*self._told}.intersection(here + missing))
        self._told = []
        self.counters.hits += len(here)
        self.counters.misses += len(missing)
        for key in here:
            self.counters.prefetched_used += self._held[key].ahead
            self._held[key].ahead = False
        self._policy.used(self._layer, [expert for _, expert in (*here, *missing)])

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

    def _work(self, buffer: Tensor) -> None:
        try:
            while (job := self._claim()) is not None:
                slot, part = job
                num_bytes = self._store.read(part, slot.memory, buffer)
                with self._changed:
                    slot.missing -= 1
                    self.counters.bytes_read += num_bytes
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, the step that waits must hear of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _claim(self) -> tuple[_Slot, Part] | None:
        """The next part to read; what is wanted goes before what is left of a guess."""
        with self._changed:
            while not self._stopped:
                if self._begin(self._wanted, ahead=False) or self._jobs or self._begin(self._guesses, ahead=True):
                    return self._jobs.popleft()
                self._changed.wait()
        return None

    def _begin(self, queue: deque[Key], *, ahead: bool) -> bool:
        """Takes a slot for the first of the queue, if there is one, and puts its parts before all others."""
        while queue and queue[0] in self._held:
            queue.popleft()
        if not queue:
            return False
        memory = self._memory_for(queue[0], ahead=ahead)
        if memory is None:
            if ahead:
                queue.clear()  # nothing is worth less than a guess
            return False
        key = queue.popleft()
        parts = self._store.parts[key]
        self._held[key] = slot = _Slot(memory, self._store.matrices(key, memory), len(parts), ahead=ahead)
        self.counters.prefetched += ahead
        self._jobs.extendleft((slot, part) for part in reversed(parts))
        self._changed.notify_all()
        return True

    def _memory_for(self, key: Key, *, ahead: bool) -> Tensor | None:
        """Others give way until there is room for it; None where none may."""
        while (memory := self._memory.take(self._store.num_bytes[key])) is None:
            victim = self._victim(key, ahead=ahead)
            if victim is None:
                return None
            slot = self._held.pop(victim)
            self._memory.give_back(slot.memory)
            slot.memory, slot.matrices = torch.empty(0, dtype=torch.uint8), []  # others may still hold the slot
        return memory

    def _victim(self, key: Key, *, ahead: bool) -> Key | None:
        idle = [k for k, s in self._held.items() if s.ready and not s.pinned and k not in self._awaited]
        soon = {*self._before, *self._told}
        others = [k for k in idle if k not in soon]  # just used, or soon to be: they go last
        idle = others or ([] if ahead else idle)
        if not idle:
            return None
        victim = min(idle, key=lambda k: self._policy.worth(k, self._layer))
        if ahead and self._policy.worth(victim, self._layer) >= self._worth_of_guess(key):
            return None
        return victim

    def _worth_of_guess(self, key: Key) -> float:
        """What a router said counts as an even part of its layer's uses, as far as such words were right before."""
        worth = self._policy.worth(key, self._layer)
        if key not in self._told:
            return worth
        right = (self.counters.foreseen_right + 1) / (self.counters.foreseen + 2)
        return max(worth, right / len(self._told))

    def close(self) -> None:
        """Ends the threads, closes the files, lets the experts go. A second call does nothing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._store.close()
        self._memory = ExpertMemory(0)
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
