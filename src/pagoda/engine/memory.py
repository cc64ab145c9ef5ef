"""The byte side of scheduling over the real page pool: sequences in, ``KVManager`` calls out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ..kv.persist import Persistence
from ..kv.store import Store
from ..schedule.item import Item
from .sequence import Sequence


class PagedMemory:
    """The scheduler's ``Memory``. Keeps ``num_computed`` of a sequence true to the pages that it holds."""

    def __init__(
        self,
        *,
        use_prefix: bool,
        persistence: Persistence | None = None,
        running: Callable[[], Collection[Item]] = tuple,
        load: Callable[[Sequence], bool] = lambda _: True,
        step_tokens: int = 2048,
    ) -> None:
        """``persistence``: the disk behind the prefix cache of the engine's own KV format; ``running``: who has pages;
        ``load`` reads what a sequence's policy was calibrated to (False: no room); ``step_tokens``: most tokens of a
        step.
        """
        self._use_prefix, self._persistence = use_prefix, persistence
        self._running, self._load, self._step_tokens = running, load, step_tokens
        self._looked: tuple[int, int] | None = None

    def prefetch(self, sequence: Sequence, tokens_per_second: float, *, whole: bool = False) -> None:
        """Starts to read what of the sequence's KV is on disk only; it waits its turn until that is there."""
        if self._persistence is not None and self._persistence.keeps(sequence.store.manager) and self._shares(sequence):
            salt = sequence.group.request.salt
            tokens = self._sharable_tokens(sequence)
            rate = tokens_per_second
            self._persistence.fetch(sequence.seq_id, tokens, salt=salt, tokens_per_second=rate, whole=whole)

    def prefetch_next(self, item: Item, tokens_per_second: float) -> None:
        """The item is the next to start: what left memory for the disk while it waited is read before its turn.

        Looks once, and again only when cached pages were given up since.
        """
        sequence = _sequence(item)
        prefix = sequence.store.manager.prefix
        if self._persistence is None or prefix is None or self._persistence.is_fetching(sequence.seq_id):
            return
        looked = sequence.seq_id, prefix.stats.num_evicted_pages
        if looked != self._looked:
            self._looked = looked
            self.prefetch(sequence, tokens_per_second, whole=True)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        if self._persistence is not None:
            self._persistence.forget(sequence.seq_id)

    def admit(self, item: Item) -> int:
        sequence = _sequence(item)
        salt = sequence.group.request.salt
        if self._persistence is not None:
            self._persistence.install(sequence.seq_id, salt=salt, wait=not self._running())
        cached = sequence.store.manager.admit(
            sequence.seq_id,
            self._sharable_tokens(sequence),
            granularity=sequence.granularity,
            salt=salt,
            use_prefix=self._shares(sequence),
        )
        sequence.num_computed = cached
        sequence.store.shared.use(sequence.policy.reads)
        return cached

    def cached_tokens(self, item: Item) -> int:
        sequence = _sequence(item)
        if not self._shares(sequence):
            return 0
        return sequence.store.manager.cached_tokens(
            self._sharable_tokens(sequence), granularity=sequence.granularity, salt=sequence.salt
        )

    def _shares(self, sequence: Sequence) -> bool:
        request = sequence.group.request
        if request.policy.windowed is not None and not request.policy.keeps_all:
            return False  # the prompt's pages are empty until they hold what an eviction left
        return self._use_prefix and request.params.prompt_logprobs is None and request.pooling != "mean"

    @staticmethod
    def _sharable_tokens(sequence: Sequence) -> list[int]:
        """A policy must see the queries before its first act: the steps with them are run, never found in the cache."""
        policy, tokens = sequence.group.request.policy, sequence.tokens
        if policy.keeps_all:
            return tokens
        return tokens[: max(1, min(len(tokens), sequence.shareable + 1))]

    def fits(self, item: Item, num_growing: int) -> bool:
        sequence = _sequence(item)
        if self._persistence is not None and self._persistence.is_pending(sequence.seq_id):
            return False
        manager = sequence.store.manager
        slots = sequence.peak_slots(min(self._step_tokens, sequence.num_tokens - sequence.num_computed))
        held = manager.table(sequence.seq_id).num_pages // manager.fmt.pages_per_block
        missing = max(0, manager.blocks_needed(slots) - held)
        missing += -(-sequence.most_remembered // manager.fmt.block_bytes)  # or the next step would throw it out again
        return missing + self._growth(sequence, num_growing) <= manager.available_blocks()

    def _growth(self, sequence: Sequence, num_growing: int) -> int:
        """Blocks that those who run will take beside the sequence: one each where it stays as long as it is, so that
        nobody is thrown out soon. A policy that compresses the prompt gives most of it back: then what counts is what
        they take until that act, to the page.
        """
        first = sequence.act_after(0)
        if sequence.policy.eviction is None or first is None:
            return num_growing
        steps = 1 + -(-(first - sequence.num_computed) // self._step_tokens)
        return math.ceil(sum(self._taken(_sequence(other), sequence.store, steps) for other in self._running()))

    def _taken(self, other: Sequence, store: Store, steps: int) -> float:
        """Blocks of ``store``, or parts of one, that a running sequence will take in that many steps."""
        fmt, table = store.fmt, other.store.manager.table(other.seq_id)
        if other.store is not store:
            return 1
        if other.num_computed < other.prompt_len:  # its rest is not reserved yet
            return max(1, fmt.blocks_for(other.peak_slots(self._step_tokens)) - table.num_pages // fmt.pages_per_block)
        return int(table.missing_runs(steps).sum()) * table.run / fmt.pages_per_block

    def capacity_tokens(self, item: Item) -> int:
        return _sequence(item).store.manager.capacity_tokens()

    def reserve(self, item: Item, num_tokens: int) -> bool:
        sequence = _sequence(item)
        table = sequence.table
        if table is None:
            if sequence.policy.reads and not self._load(sequence):
                return False
            table = sequence.table = sequence.store.manager.table(sequence.seq_id)
        if table.tail_owned and table.room >= num_tokens:  # nearly always: 64 decodes ask at every step
            return True
        return sequence.store.manager.reserve(sequence.seq_id, num_tokens)

    def release(self, item: Item) -> None:
        sequence = _sequence(item)
        sequence.store.manager.release(item.seq_id)
        sequence.store.shared.leave(sequence.policy.reads)
        sequence.forget_kv()


def _sequence(item: Item) -> Sequence:
    assert isinstance(item, Sequence)
    return item
