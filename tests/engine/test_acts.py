"""Acts of many sequences at once end where the policies' own decisions do, one after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pagoda import SamplingParams
from pagoda.engine import acts_at_once, eviction
from pagoda.engine.eviction import Evictor
from pagoda.engine.selection_notes import Notes
from pagoda.kernels.acts import able, num_copies
from pagoda.kv.manager import KVManager

from .conftest import kv_bytes
from .tiny import prompt

KVS = [
    "streaming_llm(budget=40, every=16)", "streaming_llm(budget=40, every=5)", "recent(budget=40, every=8)",
    "h2o(budget=40, every=8)", "h2o(budget=40, every=1)", "scissorhands(budget=40, window=8, every=8)",
    "corm(budget=40, window=4, every=8)", "alisa(budget=40, every=8)", "scope(budget=40, every=16, window=6)",
    "scissorhands(budget=40, window=16, every=8)", "scope(budget=40, every=8, window=20)",
    "corm(budget=30, window=32, every=3)", "scissorhands(budget=40, window=16, every=8)+int8",
    "hashevict(budget=40, every=8)", "razor_attention(local=24, every=6)", "duo_attention(local=24, every=6)",
    "h2o(budget=40, every=8)+int8", "hashevict(budget=40, every=8)+int4",
    "snapkv(budget=0.5)", "finch(budget=24, window=7, kernel=5)+int8", "zigzagkv(budget=0.5)",
    "compresskv(budget=0.5, top=1)", "compresskv(budget=24, window=20)+int8",
]  # fmt: skip
pytestmark = pytest.mark.skipif(not able(torch.empty(0)), reason="no C++ kernels")


Found = tuple[list[list[int]], list[Any], int]


def run(llm: Any, kv: str, same: int = 0, n: int = 1, abort_at: int = 0) -> Found:
    """Tokens, what each sequence holds and remembers after every step, and acts at once with others. ``same``: tokens
    that prompts begin with; ``abort_at``: the step before which one request is aborted.
    """
    engine = llm._open().engine
    states: list[Any] = []
    apply, at_once, num = engine._evictor.apply, engine._evictor._run_at_once, 0

    def watched(result: Any) -> Any:
        failed = apply(result)
        for piece in result.pieces:
            sequence = piece.sequence
            if not sequence.num_computed:  # preempted
                continue
            table = sequence.store.manager.table(sequence.seq_id)
            held = {name: one.clone() for name, one in sequence.policy_state.slots.items()}
            memory = {name: one for name, one in sequence.policy_state.memory.items() if isinstance(one, int)}
            states.append((table.lens.tolist(), table.counts.tolist(), table.room, table.num_pages, memory, held))
            tokens[sequence.group.request.request_id, sequence.seq_id] = sequence.tokens
        return failed

    def counted(store: Any, run: int, acts: list[Any], result: Any) -> None:
        nonlocal num
        num += len(acts)
        at_once(store, run, acts, result)

    tokens: dict[tuple[str, int], list[int]] = {}
    engine._evictor.apply, engine._evictor._run_at_once = watched, counted
    for index in range(3):
        params = SamplingParams(temperature=0.7 * (n > 1), seed=5, n=n, max_tokens=40, ignore_eos=True, kv=kv)
        text = prompt(9, same) + prompt(70 + index, 45 + 8 * index - same)
        engine.add(llm._intake.request(str(index), text, params))
    steps = 0
    while engine.has_work:
        steps += 1
        if steps == abort_at:
            engine.abort("1")
        engine.step()
    engine.stores.audit()
    engine.manager.clear_prefix()
    assert engine.manager.pool.num_used_pages == 0
    return [tokens[name] for name in sorted(tokens)], states, num


# Prompts that share nothing, or pages (and a part of one) through the prefix cache, or all of them in a fork.
SHARES = [{}, {"caching": True}, {"caching": True, "same": 29}, {"n": 3}, {"caching": True, "same": 45, "n": 2}]
SHARE_IDS = ["alone", "cached", "prefix", "fork", "prefix and fork"]


def both_ways(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, share: dict[str, Any], **options: Any
) -> tuple[Found, Found]:
    usual = {"page_size": 8, "max_num_batched_tokens": 40, "enable_prefix_caching": share.get("caching", False)}
    how = {name: value for name, value in share.items() if name != "caching"}
    at_once = run(make_llm(**usual | options), kv, **how)
    monkeypatch.setattr(acts_at_once, "able", lambda pages: False)
    apart = run(make_llm(**usual | options), kv, **how)
    assert apart[2] == 0
    assert at_once[0] == apart[0]
    return at_once, apart


@pytest.mark.parametrize("share", SHARES, ids=SHARE_IDS)
@pytest.mark.parametrize("kv", KVS)
def test_at_once_is_one_after_the_other(make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, share: Any) -> None:
    (_, states, num), (_, apart_states, _) = both_ways(make_llm, monkeypatch, kv, share)
    assert num > (3 if "every" in kv else 0)
    assert len(states) == len(apart_states)
    for one, other in zip(states, apart_states, strict=True):
        assert one[:-1] == other[:-1]
        names = one[-1].keys() & other[-1].keys()
        assert {"mass", "hash", "positions"} & one[-1].keys() <= names
        for name in names:
            both = min(one[-1][name].shape[2], other[-1][name].shape[2])
            assert torch.equal(one[-1][name][..., :both], other[-1][name][..., :both])


@pytest.mark.parametrize("share", SHARES[2:], ids=SHARE_IDS[2:])
@pytest.mark.parametrize("kv", ["streaming_llm(budget=40, every=5)", "h2o(budget=40, every=8)"])
def test_a_pool_that_runs_dry_changes_no_token(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, share: Any
) -> None:
    roomy = run(make_llm(page_size=8, enable_prefix_caching=False), kv, share.get("same", 0), share.get("n", 1))
    (tokens, _, num), _ = both_ways(make_llm, monkeypatch, kv, share, kv_memory=kv_bytes(20))
    assert tokens == roomy[0]
    assert num > 3


@pytest.mark.parametrize("share", SHARES[1:], ids=SHARE_IDS[1:])
def test_who_is_aborted_leaves_nothing(make_llm: Any, monkeypatch: pytest.MonkeyPatch, share: Any) -> None:
    both_ways(make_llm, monkeypatch, "h2o(budget=40, every=8)", share | {"abort_at": 14})


@pytest.mark.parametrize(
    ("kv", "way", "asked"),
    [
        ("streaming_llm(budget=24, every=5)", "keep_ends", 1), ("h2o(budget=24, every=8)", "keep_mask", 1),
        ("streaming_llm(budget=24, every=5)", "room_for_copies", 2), ("h2o(budget=24, every=8)", "room_for_copies", 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("n", [1, 2])
def test_who_finds_no_page_for_a_copy_computes_its_tokens_again(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, way: str, asked: int, n: int
) -> None:
    """In the midst of a step, when all of them are computed and the next is not sampled. ``asked``: how often an act
    asks for room, with the others and alone.
    """
    if way != "room_for_copies":
        monkeypatch.setattr(acts_at_once, "able", lambda pages: False)
    params = SamplingParams(temperature=0.8, seed=3, n=n, max_tokens=20, ignore_eos=True, kv=kv)
    alone = make_llm(page_size=8).generate([prompt(70, 30)], params)[0]
    llm, works, full = make_llm(page_size=8), getattr(KVManager, way), [True] * 2 * asked
    monkeypatch.setattr(KVManager, way, lambda *args, **named: None if full and full.pop() else works(*args, **named))
    engine = llm._open().engine
    engine.add(llm._intake.request("0", prompt(70, 30), params))
    outputs = [output for _ in range(200) if engine.has_work for output in engine.step()]
    assert not full
    (output,) = outputs
    assert engine.scheduler.num_preemptions == 2
    assert [one.token_ids for one in output.outputs] == [one.token_ids for one in alone.outputs]


def misjudged(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """A table that names a page which does not exist, until it was judged."""
    judges = acts_at_once.choose_acts

    def spoiled(pages: Any, layout: Any, refs: Any, acts: list[Any], num_threads: int) -> None:
        for one in broken.planned:
            bases = one.sequence.store.manager.table(one.sequence.seq_id).bases
            right, bases[-1, 0] = int(bases[-1, 0]), 1 << 30
            judges(pages, layout, refs, [one.act])
            bases[-1, 0] = right
        judges(pages, layout, refs, acts)

    monkeypatch.setattr(acts_at_once, "choose_acts", spoiled)


def no_copy(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """In the midst of its copies there is none for the next page."""
    runs = acts_at_once.run_acts

    def short(pages: Any, layout: Any, refs: Any, acts: list[Any], fresh: Any) -> int:
        if not broken.planned:
            return runs(pages, layout, refs, acts, fresh)
        mine, others = [one.act for one in broken.planned], fresh
        assert num_copies(refs, mine) > 1
        taken = runs(pages, layout, refs, mine, others[:1])
        return taken + runs(pages, layout, refs, acts, others[taken:])

    monkeypatch.setattr(acts_at_once, "run_acts", short)


@pytest.mark.parametrize("kv", ["streaming_llm(budget=24, every=5)", "h2o(budget=24, every=8)"])
@pytest.mark.parametrize("harm", [misjudged, no_copy])
def test_an_act_that_fails_ends_its_own_request(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, harm: Any
) -> None:
    texts = [prompt(70 + index, 45) for index in range(3)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, kv=kv)
    right = [one.token_ids for one in make_llm(page_size=8).generate(texts, params)]
    llm = make_llm(page_size=8)
    acts, broken = acts_at_once.run_at_once, SimpleNamespace(planned=[])

    def watched(store: Any, run: int, planned: list[Any], *others: Any) -> None:
        broken.planned = [one for one in planned if list(one.sequence.tokens[:45]) == texts[1]]
        acts(store, run, planned, *others)

    monkeypatch.setattr(eviction, "run_at_once", watched)
    harm(monkeypatch, broken)
    outputs = llm.generate(texts, params)
    assert outputs[1].error is not None
    assert outputs[1].error.startswith(f"kv={kv!r} failed, evicting: RuntimeError: ")
    assert [outputs[0].token_ids, outputs[2].token_ids] == [right[0], right[2]]
    llm._open().audit()
    manager = llm._open().engine.manager
    manager.clear_prefix()
    assert manager.pool.num_used_pages == 0


@pytest.mark.parametrize("name", ["choose_acts", "run_acts"])
def test_a_call_that_fails_ends_those_whose_acts_it_was(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kvs, texts = ["h2o(budget=24, every=8)", "exact"], [prompt(70 + index, 45) for index in range(2)]
    params = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, kv=kv) for kv in kvs]
    right = make_llm(page_size=8).generate(texts, params)
    llm = make_llm(page_size=8)

    def fails(*args: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(acts_at_once, name, fails)
    outputs = llm.generate(texts, params)
    assert outputs[0].error == f"kv={kvs[0]!r} failed, evicting: MemoryError: no room"
    assert (outputs[1].error, outputs[1].token_ids) == (None, right[1].token_ids)
    llm._open().audit()
    manager = llm._open().engine.manager
    manager.clear_prefix()
    assert manager.pool.num_used_pages == 0


def test_a_call_for_one_of_them_that_fails_ends_its_own_request(make_llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there was no room for the copies of all, so that they act one after the other."""
    kv, texts = "h2o(budget=24, every=8)", [prompt(70 + index, 45) for index in range(3)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, kv=kv)
    right = [one.token_ids for one in make_llm(page_size=8).generate(texts, params)]
    llm, runs, room = make_llm(page_size=8), acts_at_once._run, KVManager.room_for_copies
    refused: list[int] = []

    def for_few(self: Any, seq_ids: list[int], run: int, needed: Any) -> Any:
        if len(seq_ids) == 1:
            return room(self, seq_ids, run, needed)
        refused.append(len(seq_ids))
        return None

    def fails(store: Any, run: int, planned: list[Any]) -> bool:
        if len(planned) == 1 and list(planned[0].sequence.tokens[:45]) == texts[1]:
            raise MemoryError("no room")
        return runs(store, run, planned)

    monkeypatch.setattr(KVManager, "room_for_copies", for_few)
    monkeypatch.setattr(acts_at_once, "_run", fails)
    outputs = llm.generate(texts, params)
    assert 3 in refused
    assert outputs[1].error == f"kv={kv!r} failed, evicting: MemoryError: no room"
    assert [outputs[0].token_ids, outputs[2].token_ids] == [right[0], right[2]]
    llm._open().audit()
    manager = llm._open().engine.manager
    manager.clear_prefix()
    assert manager.pool.num_used_pages == 0


@pytest.mark.parametrize("share", SHARES[2:4], ids=SHARE_IDS[2:4])
@pytest.mark.parametrize("kv", ["hashevict(budget=40, every=8)", "streaming_llm(budget=40, every=5)"])
def test_a_selection_beside_them_notes_anew_what_moved(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str, share: Any
) -> None:
    (_, states, num), (_, apart_states, _) = both_ways(make_llm, monkeypatch, f"{kv}+quest(pages=2)", share)
    assert num > 3
    assert [one[:-1] for one in states] == [one[:-1] for one in apart_states]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("share", "forgets"), [(1.0, False), (0.5, True)])
def test_a_selection_goes_on_with_its_notes_where_an_act_drops_nothing(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, share: float, forgets: bool, at_once: bool
) -> None:
    """As where all heads keep all of their slots."""
    if not at_once:
        monkeypatch.setattr(acts_at_once, "able", lambda pages: False)
    forgotten: list[Notes] = []
    monkeypatch.setattr(Notes, "forget_pages", lambda notes: forgotten.append(notes))
    kv = f"razor_attention(retrieval={share}, local=8, every=4)+quest(pages=2)"
    llm = make_llm(page_size=8)
    engine, acts = llm._open().engine, Evictor._act_all
    num = 0

    def counted(self: Any, due: list[Any], result: Any) -> None:
        nonlocal num
        num += len(due)
        acts(self, due, result)

    monkeypatch.setattr(Evictor, "_act_all", counted)
    llm.generate([prompt(70, 45)], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, kv=kv))
    assert num > 3
    assert bool(forgotten) == forgets == (engine.counters.slots_dropped > 0)
