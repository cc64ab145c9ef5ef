"""Acts of many sequences in one call end where the policies' own decisions do, one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda import SamplingParams
from pagoda.engine import eviction
from pagoda.kernels.acts import able
from pagoda.kv.manager import KVManager

from .tiny import prompt

KVS = [
    "streaming_llm(budget=40, every=16)", "streaming_llm(budget=40, every=5)", "recent(budget=40, every=8)",
    "h2o(budget=40, every=8)", "h2o(budget=40, every=1)", "scissorhands(budget=40, window=8, every=8)",
    "corm(budget=40, window=4, every=8)", "alisa(budget=40, every=8)", "scope(budget=40, every=16, window=6)",
    "hashevict(budget=40, every=8)", "razor_attention(local=24, every=6)", "duo_attention(local=24, every=6)",
    "h2o(budget=40, every=8)+int8", "hashevict(budget=40, every=8)+int4",
]  # fmt: skip
pytestmark = pytest.mark.skipif(not able(torch.empty(0)), reason="no C++ kernels")


def run(llm: Any, kv: str) -> tuple[list[list[int]], list[Any], int]:
    """Tokens, what each sequence holds and remembers after every step, and acts in one call with others."""
    engine = llm._open().engine
    states: list[Any] = []
    apply, at_once, num = engine._evictor.apply, engine._evictor._run_at_once, 0

    def watched(result: Any) -> Any:
        failed = apply(result)
        for piece in result.pieces:
            sequence = piece.sequence
            table = sequence.store.manager.table(sequence.seq_id)
            held = {name: one.clone() for name, one in sequence.policy_state.slots.items()}
            memory = {name: one for name, one in sequence.policy_state.memory.items() if isinstance(one, int)}
            states.append((table.lens.tolist(), table.counts.tolist(), table.room, table.num_pages, memory, held))
            tokens[sequence.group.request.request_id] = sequence.tokens
        return failed

    def counted(store: Any, acts: list[Any]) -> None:
        nonlocal num
        num += len(acts)
        at_once(store, acts)

    tokens: dict[str, list[int]] = {}
    engine._evictor.apply, engine._evictor._run_at_once = watched, counted
    for index in range(3):
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, kv=kv)
        engine.add(llm._intake.request(str(index), prompt(70 + index, 45 + 8 * index), params))
    while engine.has_work:
        engine.step()
    engine.stores.audit()
    engine.manager.clear_prefix()
    assert engine.manager.pool.num_used_pages == 0
    return [tokens[name] for name in sorted(tokens)], states, num


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("kv", KVS)
def test_at_once_is_one_after_the_other(make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, caching: bool) -> None:
    options = {"page_size": 8, "max_num_batched_tokens": 40, "enable_prefix_caching": caching}
    tokens, states, num = run(make_llm(**options), kv)
    assert num > 3 or caching  # pages that the cache has as well are left to the other way
    monkeypatch.setattr(eviction, "able", lambda pages: False)
    apart, apart_states, none = run(make_llm(**options), kv)
    assert none == 0
    assert tokens == apart
    assert len(states) == len(apart_states)
    for one, other in zip(states, apart_states, strict=True):
        assert one[:-1] == other[:-1]
        names = one[-1].keys() & other[-1].keys()
        assert {"mass", "hash"} & one[-1].keys() <= names
        for name in names:
            both = min(one[-1][name].shape[2], other[-1][name].shape[2])
            assert torch.equal(one[-1][name][..., :both], other[-1][name][..., :both])


@pytest.mark.parametrize(
    ("kv", "way"),
    [("streaming_llm(budget=24, every=5)", "keep_ends"), ("h2o(budget=24, every=8)", "keep_mask")],
)
@pytest.mark.parametrize("n", [1, 2])
def test_who_finds_no_page_for_a_copy_computes_its_tokens_again(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, way: str, n: int
) -> None:
    """In the midst of a step, when all of them are computed and the next is not sampled."""
    params = SamplingParams(temperature=0.8, seed=3, n=n, max_tokens=20, ignore_eos=True, kv=kv)
    alone = make_llm(page_size=8).generate([prompt(70, 30)], params)[0]
    llm, works, full = make_llm(page_size=8), getattr(KVManager, way), [True, True]
    monkeypatch.setattr(KVManager, way, lambda *args, **named: None if full and full.pop() else works(*args, **named))
    engine = llm._open().engine
    engine.add(llm._intake.request("0", prompt(70, 30), params))
    outputs = [output for _ in range(200) if engine.has_work for output in engine.step()]
    assert not full
    (output,) = outputs
    assert engine.scheduler.num_preemptions == 2
    assert [one.token_ids for one in output.outputs] == [one.token_ids for one in alone.outputs]
