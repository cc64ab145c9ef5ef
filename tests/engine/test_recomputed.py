"""What a sequence is computed to again after it gave way has the bits that it had, whatever its KV is stored as."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda import SamplingParams
from pagoda.kv.codecs import CODECS
from pagoda.kv.raw_tail import page_ids

from .kv_policies import EVERY, tight
from .tiny import prompt

PAGE, NUM = 8, 40
LONG = 260  # more slots than attention adds up in one part
CHAINS = [
    "recent(budget=270)", "streaming_llm(budget=100)+int4", "snapkv(budget=64, window=8)+int8", "h2o(budget=64)+fp8",
    "kvmerger(budget=64)", "snapkv(budget=64, window=8)+kivi(every=8)", "int8+quest(pages=4)",
    "snapkv(budget=128, window=8)+int4+quest(pages=4)",
]  # fmt: skip


class Held:
    """The bytes of a sequence's whole pages, of its newest numbers, and its tokens."""

    def __init__(self, sequence: Any) -> None:
        table, storage = sequence.store.manager.table(sequence.seq_id), sequence.store.storage
        self.tokens, self.lens = list(sequence.tokens), table.lens.tolist()
        tail = sequence.policy_state.tail
        raw = 0 if tail is None else int(table.lens[0]) - tail.start
        whole = (min(self.lens) - raw) // PAGE
        self.pages = storage.pages[torch.from_numpy(page_ids(table, 0, whole))].clone()
        self.raw = [] if tail is None or not raw else [x[:, :, :raw].clone() for x in (tail.k, tail.v)]

    def is_bit_for_bit(self, other: Held) -> bool:
        same = self.tokens == other.tokens and self.lens == other.lens
        both = zip([self.pages, *self.raw], [other.pages, *other.raw], strict=True)
        return same and all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in both)


def held(llm: Any, ids: list[int], kv: str, *, gives_way: bool = False) -> Held:
    """After ``NUM`` tokens of an answer, beside a short one; ``gives_way`` behind all but the last of them."""
    engine = llm._open().engine
    params = SamplingParams(temperature=0, max_tokens=NUM + 8, ignore_eos=True, seed=5, kv=kv)
    engine.add(llm._intake.request("a", ids, params))
    sequence = engine._requests["a"].sequences[0]
    while sequence.num_output < NUM:
        engine.step()
    if gives_way:
        known = list(sequence.tokens)
        assert engine.preempt_last()
        assert sequence.num_computed == 0
        while not sequence.num_computed >= len(known):
            engine.step()
        assert sequence.tokens[: len(known)] == known
    else:
        engine.step()
    found = Held(sequence)
    engine.abort("a")
    return found


OPTIONS: dict[str, Any] = {"page_size": PAGE, "kv_memory": "8MiB", "enable_prefix_caching": False, "audit": False}
SHORT_CHUNKS: dict[str, Any] = {"max_num_batched_tokens": 41, "max_num_seqs": 4}


@pytest.mark.parametrize("kv", ["exact", *map(tight, EVERY), *CHAINS])
def test_computed_again(make_llm: Any, kv: str) -> None:
    """In one chunk what had come token by token; and the prompt in chunks, one of which is short."""
    llm, ids = make_llm(**OPTIONS), prompt(3, LONG)
    once = held(llm, ids, kv)
    assert held(llm, ids, kv, gives_way=True).is_bit_for_bit(once)
    assert held(make_llm(**OPTIONS | SHORT_CHUNKS), ids, kv).is_bit_for_bit(once)


@pytest.mark.parametrize(
    "kv", ["exact", *CODECS.names(), "kivi(window=8, every=8)", "snapkv(budget=64, window=8)+int4"]
)
def test_in_16_bits(make_llm: Any, kv: str) -> None:
    """Heads of 64 channels: where machines have them, products of bytes for answers, tiles for prompts."""
    options, ids = OPTIONS | {"dtype": "bfloat16"}, [300 + token for token in prompt(4, 120)]
    llm = make_llm("lantern", **options)
    once = held(llm, ids, kv)
    assert held(llm, ids, kv, gives_way=True).is_bit_for_bit(once)
    assert held(make_llm("lantern", **options | SHORT_CHUNKS), ids, kv).is_bit_for_bit(once)
