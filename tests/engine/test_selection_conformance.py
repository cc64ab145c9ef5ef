"""Every registered page selection in the engine: exact with all pages, the share it claims, the same tokens always."""

from __future__ import annotations

import gc
import logging
import weakref
from functools import cached_property

import numpy as np
import pytest
import torch

from pagoda import ConfigError, SamplingParams
from pagoda.engine.calibrations import Calibrations
from pagoda.engine.selection import PageChooser
from pagoda.engine.selection_notes import Notes, Standing
from pagoda.kernels import ops
from pagoda.kernels.case import Make
from pagoda.kernels.memory import HUGE_BYTES
from pagoda.kernels.ops.page_scores import _out_of_bytes, by_channel, corners, reference
from pagoda.kernels.shelves import Shelves
from pagoda.kv.choices import Choice
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._pages import Look, PageSelection
from pagoda.kv.policies._rotary import turn
from pagoda.kv.policies.base import Need, Stage
from pagoda.kv.policies.longcache import LongCache
from pagoda.kv.policies.quest import Quest

from .conftest import kv_bytes
from .kv_policies import of_stage
from .tiny import prompt

NAMES = of_stage(Stage.SELECTION)
PROMPTS = [prompt(40, 61), prompt(41, 18), prompt(42, 128)]


def params(kv: str, num: int = 16) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


@pytest.mark.parametrize("name", NAMES)
def test_all_pages_are_exact(make_llm, oracle, name) -> None:
    outputs = make_llm(page_size=8).generate(PROMPTS, params(f"{name}(pages=400)"))
    assert [output.token_ids for output in outputs] == [oracle(ids, 16) for ids in PROMPTS]


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_the_pages_that_it_claims(make_llm, tiny, name) -> None:
    """128 tokens are 16 full pages of 8; a step reads four of them and the one under way, in 4 heads, but for heads
    that are known to look at everything.
    """
    llm = make_llm(page_size=8)
    llm.generate([PROMPTS[2]], params(f"{name}(pages=4)", 9))
    steps = llm.stats()["steps"]
    policy = parse_policy(f"{name}(pages=4)").selection
    assert isinstance(policy, PageSelection)
    learned = Calibrations(tiny).load(name) if Need.CALIBRATION in policy.needs else {}
    counts = policy.counts(np.full((2, 2), 16), learned)
    assert 4 in counts
    assert set(counts.flat) <= {4, 16}
    assert steps["pages_read"] == 8 * (counts.sum() + 4)
    assert steps["pages_held"] == 8 * 4 * (16 + 1) - 4 + 4  # the seventh token fills page 17


@pytest.mark.parametrize("kv", [*(f"{name}(pages=3)" for name in NAMES), "quest(pages=3, reuse=3)"])
def test_same_tokens_whatever_happens_around(make_llm, oracle, kv) -> None:
    alone = [make_llm(page_size=8).generate([ids], params(kv))[0].token_ids for ids in PROMPTS]
    assert alone[2] != oracle(PROMPTS[2], 16)
    llm = make_llm(page_size=8, max_num_batched_tokens=24, max_num_seqs=8, kv_memory=kv_bytes(40))
    for _ in range(2):
        mixed = llm.generate([*PROMPTS, prompt(60, 50)], [params(kv)] * 3 + [params("recent(budget=9)")])
        assert [output.token_ids for output in mixed[:3]] == alone


def is_judged_by_rule(name: str) -> bool:
    """Whether the kernels choose for it; a method with a ``score`` of its own is asked layer by layer."""
    policy = parse_policy(name).selection
    assert isinstance(policy, PageSelection)
    return policy.judged_by is not None and type(policy).score is PageSelection.score


INSIDE = [f"{name}(pages=3)" for name in NAMES if is_judged_by_rule(name)] + ["shadowkv(pages=3, chunk=2)"]
INSIDE += ["clusterkv(pages=3, by='tokens')"]


def test_methods_that_ship_are_left_to_the_kernels() -> None:
    """Others need not be."""
    ship = {"a2ats", "clusterkv", "loki", "longcache", "lserve", "ltri_llm", "lychee_decode", "quest", "shadowkv",
            "sparq", "tokenselect"}  # fmt: skip
    assert {kv.partition("(")[0] for kv in INSIDE} >= ship
    assert {name for name in NAMES if parse_policy(name).selection.is_marked} >= ship


@pytest.mark.host
@pytest.mark.parametrize(
    "kv",
    [*INSIDE, "int8+lserve(pages=0.3, reuse=2)", "int8+tokenselect(pages=3, alike=0.5)", "int8+longcache"]
    + [f"{name}(pages=3, reuse=3)" for name in NAMES if name != "lserve" and is_judged_by_rule(name)],
)
def test_pages_chosen_within_the_program_are_those_chosen_layer_by_layer(make_llm, monkeypatch, kv) -> None:
    same_both_ways(make_llm, monkeypatch, kv)


@pytest.mark.host
def test_one_scoring_serves_several_steps(make_llm, monkeypatch) -> None:
    """The first position's, and those of positions that `reuse` divides: here of a method with a score of its own."""
    scored = []

    def score(self, look):
        scored.append((look.layer, look.position))
        return PageSelection.score(self, look)

    monkeypatch.setattr(Quest, "score", score, raising=False)
    make_llm(page_size=8).generate([PROMPTS[2]], params("quest(pages=3, reuse=5)", 12))
    first = len(PROMPTS[2])
    assert first % 5 > 0
    positions = [first, *(at for at in range(first, first + 11) if at % 5 == 0)]
    assert scored == [(layer, at) for at in positions for layer in range(2)]


def same_both_ways(make_llm, monkeypatch, kv: str) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the step was not one program")

    with monkeypatch.context() as patch:
        patch.setattr(PageChooser, "choose", never)
        whole = make_llm(page_size=8)
        fast = whole.generate(PROMPTS, params(kv, 30))
    monkeypatch.setattr(PageChooser, "has_rule", False)
    monkeypatch.setattr(PageChooser, "choice", never)
    monkeypatch.setattr(ops, "page_scores", reference)  # plain torch
    layers = make_llm(page_size=8)
    slow = layers.generate(PROMPTS, params(kv, 30))
    assert [output.token_ids for output in fast] == [output.token_ids for output in slow]
    for count in ("pages_read", "pages_held"):
        assert whole.stats()["steps"][count] == layers.stats()["steps"][count]


@pytest.mark.host
@pytest.mark.parametrize(
    "kv",
    [
        "quest(pages=3)",
        "lserve(pages=3)",
        "longcache(pages=3)",
        "loki(pages=3)",
        "shadowkv(pages=3, chunk=4)",
        "ltri_llm(pages=3)",
        "sparq(pages=3)",
        "a2ats(pages=3)",
        "clusterkv(pages=3)",
    ],
)
def test_a_choice_stands_until_a_page_is_full(make_llm, monkeypatch, kv) -> None:
    """And then a new one is made of it where it can be, which is as one made from nothing."""
    made, longer = [], []
    stand, lengthen = PageChooser._stand, PageChooser._stand_longer

    def checked(self: PageChooser, before: Standing, full: int | bytes) -> Standing | None:
        found = lengthen(self, before, full)
        if found is None:
            return None
        longer.append(full)
        anew = stand(self, full)
        for name in set(Choice.__slots__) - {"turn", "fresh", "grown"}:  # another in every step, or its own
            assert np.array_equal(getattr(found.choice, name), getattr(anew.choice, name)), name
        assert (found.held, found.read, found.room) == (anew.held, anew.read, anew.room)
        assert (found.scored == anew.scored).all()
        return found

    monkeypatch.setattr(PageChooser, "_stand", lambda self, full: made.append(full) or stand(self, full))
    monkeypatch.setattr(PageChooser, "_stand_longer", checked)
    make_llm(page_size=8).generate(PROMPTS, params(kv, 25))
    held = [range(len(ids), len(ids) + 24) for ids in PROMPTS]  # tokens before each step of an answer
    assert len(made) + len(longer) == sum(
        len({num // 8 for num in each} - {2, 3}) for each in held
    )  # of those all are read
    assert longer


@pytest.mark.host
@pytest.mark.parametrize("kv", ["quest(pages=17)", "longcache(pages=17)", "tokenselect(pages=17)", "loki(pages=1.0)"])
def test_who_reads_all_is_asked_nothing_until_there_is_something_to_choose(make_llm, oracle, monkeypatch, kv) -> None:
    """128 tokens are 16 pages of 8: 17 of them are not all from the 145th token on."""
    asked: list[int] = []
    choice = PageChooser.choice
    monkeypatch.setattr(PageChooser, "choice", lambda self: asked.append(self._table.num_tokens) or choice(self))
    llm = make_llm(page_size=8)
    output = llm.generate([PROMPTS[2]], params(kv, 25))[0]
    assert output.token_ids[:16] == oracle(PROMPTS[2], 16)
    assert min(asked, default=None) == (None if "1.0" in kv else 144)
    held = sum(4 * (num // 8 + 1) for num in range(128, 152))  # in four heads
    steps = llm.stats()["steps"]
    assert steps["pages_held"] == held
    assert steps["pages_read"] == held - (0 if "1.0" in kv else 4 * 8)


@pytest.mark.host
@pytest.mark.parametrize("rule", [True, False])
def test_what_was_noted_goes_with_its_sequence(make_llm, monkeypatch, rule) -> None:
    """Not when the next step of the same pages' format comes, which may be never."""
    noted: list[weakref.ref[Notes]] = []
    full = PageChooser._full.func
    seen = cached_property(lambda self: noted.append(weakref.ref(self._notes)) or full(self))
    seen.__set_name__(PageChooser, "_full")
    monkeypatch.setattr(PageChooser, "_full", seen)
    if not rule:
        monkeypatch.setattr(PageChooser, "has_rule", False)
    llm = make_llm(page_size=8)
    llm.generate(PROMPTS, params("quest(pages=3)"))
    gc.collect()
    assert len(noted) > 3
    assert [one for one in noted if one() is not None] == []


@pytest.mark.host
def test_a_step_that_breaks_lets_go_of_its_choosers(make_llm, monkeypatch, caplog) -> None:
    chosen: list[weakref.ref[PageChooser]] = []
    choice = PageChooser.choice

    def breaks(self: PageChooser) -> Choice:
        chosen.append(weakref.ref(self))
        choice(self)
        raise ValueError("no such page")

    monkeypatch.setattr(PageChooser, "choice", breaks)
    caplog.set_level(logging.CRITICAL, "pagoda.engine.sequence")  # pytest would keep the traceback
    output = make_llm(page_size=8).generate(PROMPTS[2], params("quest(pages=3)"))[0]
    assert output.error == "kv='quest(pages=3)' failed, choosing pages: ValueError: no such page"
    gc.collect()
    assert [one() for one in chosen] == [None]


@pytest.mark.host
def test_a_score_of_ones_own_is_asked_between_the_layers(make_llm, monkeypatch) -> None:
    def bound(self: Quest, look: Look) -> torch.Tensor:
        asked.append(look.layer)
        high, low = corners(look.read_keys()).float().chunk(2, -1)  # as they are noted
        q = look.queries
        return (q.clamp(min=0) @ high.transpose(1, 2) + q.clamp(max=0) @ low.transpose(1, 2)).amax(1)

    asked: list[int] = []
    fast = make_llm(page_size=8).generate(PROMPTS, params("quest(pages=3)"))
    monkeypatch.setattr(Quest, "score", bound)
    slow = make_llm(page_size=8).generate(PROMPTS, params("quest(pages=3)"))
    assert [output.token_ids for output in fast] == [output.token_ids for output in slow]
    assert set(asked) == {0, 1}


def test_longcache_reads_pages_as_if_they_lay_side_by_side(make_llm, monkeypatch) -> None:
    """A page moves up by what is left out between it and the newest tokens, and its keys turn with it."""
    seen = []

    def look(self: LongCache, keys: torch.Tensor, gaps: torch.Tensor, learned: object) -> torch.Tensor:
        seen.append((keys, gaps, moved(self, keys, gaps, learned)))
        return seen[-1][-1]

    moved = LongCache.moved
    monkeypatch.setattr(LongCache, "moved", look)
    monkeypatch.setattr(PageChooser, "has_rule", False)
    make_llm(page_size=8).generate([PROMPTS[2]], params("longcache(pages=4)", 2))
    for keys, gaps, found in seen:
        assert gaps.shape == (2, 5)  # four full pages of 16, and the one under way
        assert (gaps[:, -2:] == 0).all()
        assert (gaps[:, 0] == 8 * (16 - 4)).all()  # the first page is always there
        assert (gaps.diff() <= 0).all()
        torch.testing.assert_close(found.norm(dim=-1), keys.norm(dim=-1))
        assert torch.equal(found[:, -2:], keys[:, -2:])
    freq = 0.5 ** torch.arange(4)[None]
    key, at = torch.randn(1, 3, 8), torch.tensor([3, 10, 40])
    torch.testing.assert_close(turn(turn(key, at, freq), torch.tensor([7]), freq), turn(key, at + 7, freq))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_computed_from_some_pages_is_not_shared(make_llm, oracle, name) -> None:
    llm = make_llm(page_size=8)
    said = llm.generate([PROMPTS[2]], params(f"{name}(pages=2)", 20))[0].token_ids
    longer = [*PROMPTS[2], *said]
    output = llm.generate([longer], params("exact"))[0]
    assert output.usage.cached_tokens == 128
    assert output.token_ids == oracle(longer, 16)


@pytest.mark.parametrize("name", NAMES)
def test_it_joins_an_eviction(make_llm, name) -> None:
    kv = f"snapkv(budget=40, window=8)+{name}(pages=2)"
    if POLICIES.get(name).whole:  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=f"{name} cannot follow snapkv: .* such as quest"):
            parse_policy(kv)
        return
    alone = make_llm(page_size=8).generate([PROMPTS[2]], params(kv))[0].token_ids
    llm = make_llm(page_size=8, max_num_batched_tokens=24, max_num_seqs=8)
    assert llm.generate([PROMPTS[2], prompt(9, 30)], params(kv))[0].token_ids == alone
    several = SamplingParams(n=2, temperature=0, max_tokens=12, ignore_eos=True, kv=kv)
    assert [answer.token_ids for answer in llm.generate([PROMPTS[2]], several)[0].outputs] == [alone[:12]] * 2
    with pytest.raises(ConfigError, match="leaves pages unread"):
        llm.generate([PROMPTS[2]], params(f"h2o+{name}"))


def test_bad_page_counts_are_refused(make_llm) -> None:
    for text in ("quest(pages=0)", "quest(pages=1.5)"):
        with pytest.raises(ConfigError, match="pages per head"):
            make_llm().generate([PROMPTS[0]], params(text))


@pytest.mark.parametrize("name", [name for name in NAMES if parse_policy(name).selection.is_marked])
def test_what_the_kernels_note_of_a_page_is_what_the_policy_would(tiny, name) -> None:
    """Of pages that become full after the first look at a text."""
    policy = parse_policy(name).selection
    assert isinstance(policy, PageSelection)
    rule = policy.rule()
    if rule is None or rule.marks == "keys":
        return
    found = policy.complete(Calibrations(tiny).load(name)) if Need.CALIBRATION in policy.needs else {}
    learned, keys = {key: value[0] for key, value in found.items()}, Make().normal(2, 9, 8, 8)
    memory: dict[str, torch.Tensor] = {}
    first = policy.sketch_as(keys[:, :6], memory, 0, learned)
    marks = first.new_zeros(2, 12, *first.shape[2:])
    if rule.marks == "columns":
        marks = by_channel(2, 12, *first.shape[2:])
    for at in range(6, 9):
        ops.page_marks(keys[:, at : at + 1], rule, marks, at, policy.mark_aids(memory, learned))
        mine, wanted = marks[:, at : at + 1], policy.sketch_as(keys[:, at : at + 1], memory, at, learned)
        if rule.marks == "bytes":  # turned numbers may fall on a byte's other side
            mine, wanted = _out_of_bytes(mine), _out_of_bytes(wanted)
        torch.testing.assert_close(mine.float(), wanted.float(), rtol=8e-3, atol=0.03 if rule.query == "turn" else 1e-3)


@pytest.mark.parametrize("columns", [False, True])
def test_sketches_of_a_sequence_lie_side_by_side_on_huge_pages(columns) -> None:
    """And stay what they were when there are more of them; what a step reads beside them lies there, too."""
    shelves, made = Shelves(), Make().normal(3, 2, 120, 64, 16).bfloat16()
    notes, other = Notes(3, 2, shelves), Notes(3, 2, shelves)
    for layer in range(3):
        notes.memory[layer]["basis"] = torch.full((2, 64, 16), 1.0 + layer)
        notes.write(layer, slice(None), 0, made[layer], columns)
    first, size, beside = notes.sketches[0].data_ptr(), notes.sketches[0].nbytes, 2 * 64 * 16 * 4
    for layer in range(3):
        assert notes.sketches[layer].data_ptr() == first + layer * (size + beside)
        assert notes.memory[layer]["basis"].data_ptr() == first + layer * (size + beside) + size
        assert bool((notes.memory[layer]["basis"] == 1.0 + layer).all())
    assert notes.num_bytes == 3 * (size + beside)
    assert shelves.unused_bytes == -notes.num_bytes % HUGE_BYTES, "the rest of the last huge page"
    other.write(0, slice(None), 0, made[0], columns)
    assert other.sketches[0].data_ptr() == first + notes.num_bytes, "another sequence goes on where one ends"
    assert other.num_bytes == 3 * size, "the room for its other layers is its own"
    for layer in range(3):
        notes.write(layer, slice(None), 120, made[layer], columns)
        assert torch.equal(notes.sketches[layer][:, :240], torch.cat([made[layer], made[layer]], 1))
        assert not notes.sketches[layer][:, 240:].any()
        assert bool((notes.memory[layer]["basis"] == 1.0 + layer).all())
    grown = 3 * (notes.sketches[0].nbytes + beside)
    assert notes.num_bytes == grown
    assert (shelves.unused_bytes + notes.num_bytes + other.num_bytes) % HUGE_BYTES == 0
    twin = notes.fork()
    assert all(
        torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(twin.sketches, notes.sketches, strict=True)
    )
    del notes, other
    assert shelves.unused_bytes == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [8, 24])
def test_heads_of_different_lengths_are_judged_by_their_own_pages_alone(make_llm, name, budget) -> None:
    """Behind the shorter ones' pages their table names some that are not theirs any more, other ones where the prompt's
    pages are shared with the prefix cache: what is in those changes nothing.
    """
    policy = parse_policy(f"{name}(pages=2)").selection
    if isinstance(policy, PageSelection) and policy.whole:
        pytest.skip(f"{name} follows no eviction")
    kv = f"snapkv(budget={budget}, window=4)+ada+{name}(pages=1)"
    clean, dirty = make_llm(page_size=8, enable_prefix_caching=False), make_llm(page_size=8)
    seen: list[list[tuple[np.ndarray, list[torch.Tensor]]]] = [[], []]
    for llm, found in zip((clean, dirty), seen, strict=True):
        engine = llm._open().engine

        def noting(*args, engine=engine, run=engine._runner.run, found=found, **options):
            result = run(*args, **options)
            for sequence in engine.scheduler.running.values():
                notes = sequence.policy_state.notes
                noted = [
                    sketches[head, : notes.sketched[layer, head]].clone()
                    for layer, sketches in enumerate(notes.sketches)
                    for head in range(0 if sketches is None else len(sketches))
                ]
                found.append((sequence.table.lens.copy(), noted))
            return result

        engine._runner.run = noting
    for seed in range(3):  # pages that the second engine gives out were somebody else's before
        dirty.generate([prompt(60 + seed, 120)], params("exact", 4))
    for found in seen:
        found.clear()
    for seed in range(2):
        outputs = [llm.generate([prompt(70 + seed, 90)], params(kv, 12))[0] for llm in (clean, dirty)]
        assert outputs[0].error is None
        assert outputs[0].token_ids == outputs[1].token_ids
    for (lens, one), (_, other) in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), f"heads of {lens} slots"
    assert any(len(np.unique(lens)) > 1 for lens, _ in seen[0]), "no head was shorter than another"
