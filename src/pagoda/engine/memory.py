"""The byte side of scheduling over the real page pool: sequences in, ``KVManager`` calls out."""

from __future__ import annotations

from ..schedule.item import Item
from .sequence import Sequence


class PagedMemory:
    """The scheduler's ``Memory``. Keeps ``num_computed`` of a sequence true to the pages that it holds."""

    def __init__(self, *, use_prefix: bool) -> None:
        self._use_prefix = use_prefix

    def admit(self, item: Item) -> int:
        sequence = _sequence(item)
        request = sequence.group.request
        # A policy must see the queries before its first act, so the steps with them are run, never found in the cache.
        policy, tokens = request.policy, sequence.tokens
        if not policy.keeps_all:
            tokens = tokens[: max(1, min(len(tokens), policy.shareable(sequence.prompt_len) + 1))]
        cached = sequence.store.manager.admit(
            sequence.seq_id,
            tokens,
            granularity=sequence.granularity,
            salt=request.salt,
            use_prefix=self._use_prefix and request.params.prompt_logprobs is None and request.pooling != "mean",
        )
        sequence.num_computed = cached
        return cached

    def fits(self, item: Item, num_running: int) -> bool:
        sequence = _sequence(item)
        manager = sequence.store.manager
        slots = sequence.policy.peak_slots(sequence.num_tokens, sequence.prompt_len)
        missing = manager.blocks_needed(slots) - sequence.num_computed // manager.fmt.page_size
        return missing + num_running <= manager.available_blocks()

    def reserve(self, item: Item, num_tokens: int) -> bool:
        return _sequence(item).store.manager.reserve(item.seq_id, num_tokens)

    def release(self, item: Item) -> None:
        sequence = _sequence(item)
        sequence.store.manager.release(item.seq_id)
        sequence.forget_kv()


def _sequence(item: Item) -> Sequence:
    assert isinstance(item, Sequence)
    return item
