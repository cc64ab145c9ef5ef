"""A method that raises, wherever it is asked, ends its own request with the reason; nobody beside it loses a token."""

from __future__ import annotations

import itertools
from functools import cached_property
from importlib import import_module
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.core.errors import RequestError
from pagoda.engine.engine import Engine
from pagoda.engine.selection import PageChooser
from pagoda.kv.grammar import parse_policy
from pagoda.kv.page_codes import PageCodes
from pagoda.kv.policies._heads import SplitHeads
from pagoda.kv.policies.base import Held, Ranking

from .conftest import kv_bytes
from .tiny import prompt

PROMPT, NUM = prompt(41, 60), 16

ACTS = [
    ("snapkv(budget=20)", "_voting.Voting.ranks", 0, "evicting"),
    ("windowkv(budget=20)", "windowkv.WindowKV.scores", 0, "evicting"),
    ("snapkv(budget=20)", "_stack.PolicyStack.next_act", 0, "saying when it acts"),
    ("snapkv(budget=20)", "_stack.PolicyStack.next_act", 3, "saying when it acts"),
    ("h2o(budget=20, every=4)", "_stack.PolicyStack.next_act", 5, "saying when it acts"),
    ("h2o(budget=20, every=4)", "_stack.PolicyStack.most_slots", 0, "saying how much it keeps"),
    ("h2o(budget=20, every=4)", "_scored.Scored.ranks", 2, "evicting"),
    ("attendre(budget=20, every=4)", "attendre.Attendre.scores", 2, "evicting"),
    ("streaming_llm(budget=20, every=4)", "_stack.PolicyStack.evicts", 2, "evicting"),
    ("streaming_llm(budget=20, every=4)", "_stack.PolicyStack.ends", 0, "evicting"),
    ("less(budget=20)", "less.LESS.residual", 0, "answering for evicted slots"),
    ("less(budget=20)", "less.LESS.residual", 3, "answering for evicted slots"),
    ("zipcache", "zipcache.ZipCache.encode", 0, "encoding pages"),
    ("zipcache(every=8)", "zipcache.ZipCache.encode", 1, "encoding pages"),
    ("kivi", "_windowed.WindowedCodec.code", 0, "decoding pages"),
    ("kivi", "_windowed.WindowedCodec.code", 1, "decoding pages"),
    ("kivi", "_grids.GridCodec.sides", 1, "decoding pages"),
    ("chai", "chai.CHAI.share", 2, "decoding pages"),
    ("snapkv(budget=40)+kivi(every=8, window=8)", "_windowed.WindowedCodec.code", 1, "decoding pages"),
    ("quest(pages=3)", "_pages.PageSelection.num_pages", 1, "choosing pages"),
    ("quest(pages=3)", "_pages.PageSelection.counts", 0, "choosing pages"),
    ("quest(pages=3)", "_pages.PageSelection.num_pages", 4, "choosing pages"),
    ("quest(pages=3)", "_pages.PageSelection.judged_by", 0, "choosing pages"),
    ("quest(pages=3)", "quest.Quest.sketch", 0, "choosing pages"),
    ("clusterkv(pages=3)", "clusterkv.ClusterKV.given", 1, "choosing pages"),
    ("loki(pages=3)", "loki.Loki.sketch", 1, "choosing pages"),
    ("lychee_decode(pages=3)", "lychee_decode.LycheeDecode.looks", 1, "choosing pages"),
    ("longcache(pages=3)", "longcache.LongCache.turns", 0, "choosing pages"),
    ("snapkv(budget=40)+quest(pages=2)", "quest.Quest.sketch", 0, "choosing pages"),
]
LAYER_BY_LAYER = {
    ("quest(pages=3)", "_pages.PageSelection.score"): "choosing pages",
    ("tokenselect(pages=3)", "_pages.PageSelection.score"): "choosing pages",
    ("longcache(pages=3)", "longcache.LongCache.moved"): "choosing pages",
    ("snapkv(budget=40)+quest(pages=2)", "_pages.PageSelection.score"): "choosing pages",
}
OFFLOADED = {
    ("quest(pages=3)+offload", "quest.Quest.sketch"): "noting pages",
    ("quest(pages=3)+offload", "_pages.PageSelection.score"): "choosing pages",
    ("lserve(pages=3)+offload", "_pages.PageSelection.num_pages"): "choosing pages",
}


def params(kv: str) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=NUM, ignore_eos=True, seed=5, kv=kv)


def breaks(patch: pytest.MonkeyPatch, engine: Engine, kv: str, place: str, after: int) -> list[int]:
    """Once the first step begins, the method of this ``kv`` works ``after`` times and raises ever after; at which calls
    it did.
    """
    module, of, name = place.split(".")
    owner, stack = getattr(import_module(f"pagoda.kv.policies.{module}"), of), parse_policy(kv)
    works, step, raised, calls = getattr(owner, name), engine.step, list[int](), itertools.count(-after)
    if isinstance(works, cached_property):
        works = works.func
    mine, stepping = (stack, stack.eviction, stack.codec, stack.selection), []

    def method(self: object, *args: Any) -> Any:
        if stepping and self in mine and (number := next(calls)) >= 0:
            raised.append(number)
            raise ValueError("no such slot")
        return works(self, *args)

    for store in engine.stores:  # which knows how pages are read from steps before
        if store.codes is not None:
            patch.setattr(store, "codes", PageCodes(store.fmt, store.learn, store.codes._hold))
    patch.setattr(engine, "step", lambda: stepping.append(True) or step())
    patch.setattr(owner, name, property(method) if isinstance(vars(owner)[name], cached_property) else method)
    return raised


def check(llm: LLM, monkeypatch: pytest.MonkeyPatch, kv: str, place: str, after: int, doing: str) -> None:
    prompts = [prompt(40, 61), PROMPT, prompt(43, 61), prompt(42, 30)]
    kinds = ["exact", kv, "recent(budget=12)", "exact"]
    alone = [llm.generate([ids], params(one))[0].token_ids for ids, one in zip(prompts, kinds, strict=True)]
    engine = llm._open().engine
    with monkeypatch.context() as patch:
        raised = breaks(patch, engine, kv, place, after)
        outputs = llm.generate(prompts, [params(one) for one in kinds])
    assert raised, "the place was never asked: the case shows nothing"
    assert outputs[1].error == f"kv={kv!r} failed, {doing}: ValueError: no such slot"
    assert outputs[1].finish_reason == "error"
    assert len(outputs[1].token_ids) < NUM
    for at in (0, 2, 3):
        assert (outputs[at].error, outputs[at].token_ids) == (None, alone[at])
    assert llm.generate([PROMPT], params(kv))[0].token_ids == alone[1], "what broke left something behind"
    llm._open().audit()
    engine.manager.clear_prefix()
    assert engine.manager.pool.num_used_pages == 0
    assert engine.stores.state_bytes == 0


@pytest.mark.parametrize(("kv", "place", "after", "doing"), ACTS)
def test_whatever_breaks_takes_its_own_request_alone(make_llm, monkeypatch, kv, place, after, doing) -> None:
    check(make_llm(page_size=8), monkeypatch, kv, place, after, doing)


@pytest.mark.parametrize("spoil", [lambda b: b[:1], lambda b: b.int(), lambda b: b.T.contiguous().T])
def test_budgets_that_the_kernels_cannot_take_end_their_own_request(make_llm, monkeypatch, spoil) -> None:
    """They would be read by address."""
    llm, kv = make_llm(page_size=8, enable_prefix_caching=False), "duo_attention(every=6, local=24)"
    alone = llm.generate([PROMPT], params("exact"))[0].token_ids
    works = SplitHeads.ranks

    def spoiled(self: SplitHeads, held: Held) -> Ranking | None:
        ranking = works(self, held)
        if ranking is not None:
            ranking.budget = spoil(ranking.budget)
        return ranking

    monkeypatch.setattr(SplitHeads, "ranks", spoiled)
    broken, beside = llm.generate([PROMPT, PROMPT], [params(kv), params("exact")])
    assert broken.error is not None
    assert broken.error.startswith(f"kv={kv!r} failed, evicting: AssertionError")
    assert (beside.error, beside.token_ids) == (None, alone)
    llm._open().audit()


@pytest.mark.host
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(("kv", "place"), LAYER_BY_LAYER)
def test_between_layers_too(make_llm, monkeypatch, kv, place, after) -> None:
    monkeypatch.setattr(PageChooser, "has_rule", False)
    check(make_llm(page_size=8), monkeypatch, kv, place, after, LAYER_BY_LAYER[kv, place])


@pytest.mark.host
@pytest.mark.parametrize(("kv", "place"), OFFLOADED)
def test_where_pages_are_far_away_too(make_llm, monkeypatch, kv, place) -> None:
    llm = make_llm(page_size=8, kv_memory=kv_bytes(40), kv_offload="1MiB", structured_output=False)
    check(llm, monkeypatch, kv, place, 2, OFFLOADED[kv, place])


def test_all_answers_of_a_request_end_and_the_log_says_where(make_llm, monkeypatch, caplog) -> None:
    llm, kv = make_llm(page_size=8), "snapkv(budget=20)"
    breaks(monkeypatch, llm._open().engine, kv, "_voting.Voting.ranks", 0)
    many = SamplingParams(temperature=1.0, n=3, max_tokens=NUM, ignore_eos=True, seed=5, kv=kv)
    (output,) = llm.generate([PROMPT], many)
    assert output.error == "kv='snapkv(budget=20)' failed, evicting: ValueError: no such slot"
    (record,) = [one for one in caplog.records if "broke" in one.message]
    assert record.message == "kv=snapkv(budget=20) broke at 60 tokens, evicting"
    assert record.exc_info is not None


def test_what_a_broken_residual_answers_is_refused_by_its_shape(make_llm, monkeypatch) -> None:
    from pagoda.kv.policies.less import LESS

    right = LESS.residual

    def narrow(self: LESS, *args: Any) -> Any:
        found = right(self, *args)
        return None if found is None else (found[0][:1], found[1])

    monkeypatch.setattr(LESS, "residual", narrow)
    outputs = make_llm(page_size=8).generate([PROMPT, prompt(40, 61)], [params("less(budget=20)"), params("exact")])
    assert outputs[1].error is None
    assert outputs[0].error == (
        "kv='less(budget=20)' failed, answering for evicted slots: ValueError: (1,) and (4, 8) for 4 query heads"
    )


def test_tokens_are_replayed_one_by_one_also_by_what_broke(make_llm) -> None:
    """A preempted sequence comes back, and its method breaks between two steps, asked by who plans for others. More
    than one token of an answer whose pages are chosen would end everybody's next step.
    """
    kv, beside = "recent(budget=40, every=4)+quest(pages=2)", prompt(40, 61)
    llm = make_llm(page_size=8)
    alone = llm.generate([beside], params("exact"))[0].token_ids
    engine = llm._open().engine
    for name, ids, one in (("beside", beside, "exact"), ("breaks", PROMPT, kv)):
        engine.add(llm._intake.request(name, ids, params(one)))
    for _ in range(8):
        engine.step()
    assert engine.preempt_last()
    engine.step()
    (breaks,) = [one for one in engine.scheduler.running.values() if one.group.request.request_id == "breaks"]
    assert breaks.num_computed == len(PROMPT) < len(breaks.tokens) - 1
    breaks.breaks(ValueError("no such slot"), "saying how much it keeps")
    done = {}
    while engine.has_work:
        done.update((output.request_id, output) for output in engine.step())
    assert done["breaks"].error == f"kv={kv!r} failed, saying how much it keeps: ValueError: no such slot"
    assert (done["beside"].error, done["beside"].token_ids) == (None, alone)


@pytest.mark.parametrize(("codec", "place"), [("kivi", "_windowed.WindowedCodec.code"), ("chai", "chai.CHAI.share")])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_others_of_the_same_page_format_go_on(make_llm, monkeypatch, codec, place, after) -> None:
    """Their codecs read the same pages, so one that works reads them all; how is asked of the first, once."""
    prompts = [prompt(40, 61), PROMPT, prompt(43, 40)]
    kinds = [f"{codec}(every=8)", codec, f"{codec}(every=16, window=8)"]
    for broken in (0, 1):
        llm = make_llm(page_size=8)
        alone = [llm.generate([ids], params(one))[0].token_ids for ids, one in zip(prompts, kinds, strict=True)]
        with monkeypatch.context() as patch:
            raised = breaks(patch, llm._open().engine, kinds[broken], place, after)
            outputs = llm.generate(prompts, [params(one) for one in kinds])
        if broken == 1 and place.endswith(".code"):
            assert not raised, "the one before has said it"
        else:
            assert raised or after, "the place was never asked: the case shows nothing"
        for at, output in enumerate(outputs):
            if at == broken and raised:
                assert output.error == f"kv={kinds[at]!r} failed, decoding pages: ValueError: no such slot"
            else:
                assert (output.error, output.token_ids) == (None, alone[at])
        llm._open().audit()


@pytest.mark.parametrize(
    ("kv", "place"),
    [
        ("snapkv(budget=20)", "_stack.PolicyStack.peak_slots"),
        ("h2o(budget=20)", "h2o.H2O.most_slots"),
        ("alisa(budget=20)", "_stack.PolicyStack.window"),
        ("kivi", "_stack.PolicyStack.needs"),
        ("quest(pages=3)", "_pages.PageSelection.why_not"),
        ("attendre(top=6)", "attendre.Attendre.why_not"),
    ],
)
def test_a_method_that_raises_when_it_is_first_asked_refuses_its_own_request(make_llm, monkeypatch, kv, place) -> None:
    llm = make_llm(page_size=8)
    alone = llm.generate([PROMPT], params("exact"))[0].token_ids
    engine = llm._open().engine
    engine.add(llm._intake.request("beside", PROMPT, params("exact")))
    with monkeypatch.context() as patch:
        module, of, name = place.split(".")
        owner = getattr(import_module(f"pagoda.kv.policies.{module}"), of)

        def raises(self: object, *args: Any) -> Any:
            raise ValueError("no such slot")

        is_property = not callable(getattr(owner, name, None))
        patch.setattr(owner, name, property(raises) if is_property else raises, raising=False)
        request = llm._intake.request("broken", prompt(43, 61), params(kv))
        with pytest.raises(RequestError, match=r"failed, when the request came in: ValueError: no such slot"):
            engine.add(request)
    done = {}
    while engine.has_work:
        done.update((output.request_id, output) for output in engine.step())
    assert list(done) == ["beside"]
    assert (done["beside"].error, done["beside"].token_ids) == (None, alone)
    assert llm.generate([PROMPT], params(kv))[0].error is None
    llm._open().audit()
