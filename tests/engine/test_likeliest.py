"""Where the largest logit alone decides, the step itself says the token; the sampler is the plain twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pagoda import SamplingParams
from pagoda.engine.sequence import Sequence
from pagoda.models.scores import Scores
from pagoda.sampling.sampler import NO_TOKEN_ERROR, Sampler

from .tiny import prompt

PROMPTS = [prompt(1, 5), prompt(2, 33), prompt(3, 70)]
NUM = 12


def greedy(**more: Any) -> SamplingParams:
    return SamplingParams(**({"temperature": 0, "max_tokens": NUM, "ignore_eos": True} | more))


@pytest.fixture
def rows_sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the sampler was given, call by call."""
    pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")
    rows: list[int] = []
    sample = Sampler.sample

    def counted(self: Sampler, logits: Tensor, states: Any) -> Any:
        rows.append(len(states))
        return sample(self, logits, states)

    monkeypatch.setattr(Sampler, "sample", counted)
    return rows


def test_the_sampler_is_not_asked(make_llm, oracle, rows_sampled) -> None:
    outputs = make_llm(max_num_batched_tokens=48).generate(PROMPTS, greedy())
    assert [output.token_ids for output in outputs] == [oracle(ids, NUM) for ids in PROMPTS]
    assert rows_sampled == []


@pytest.mark.parametrize("more", [{"logprobs": 1}, {"n": 2}, {"logit_bias": {3: 0.0}}, {"prompt_logprobs": 1}], ids=str)
def test_who_needs_the_logits_gets_them_and_the_same_tokens(make_llm, oracle, rows_sampled, more) -> None:
    llm = make_llm()
    params = [greedy(), greedy(**more), greedy()]
    for output, ids in zip(llm.generate(PROMPTS, params), PROMPTS, strict=True):
        assert all(answer.token_ids == oracle(ids, NUM) for answer in output.outputs)
    assert rows_sampled or "prompt_logprobs" in more  # which are the prompt's steps alone


def test_observers_see_the_logits_that_decide(make_llm, oracle, rows_sampled) -> None:
    llm, best = make_llm(), []
    request = llm._intake.request("watched", PROMPTS[0], greedy())
    request.observer = lambda num_output, logits: best.append(int(logits.argmax()))
    engine = llm._open().engine
    engine.add(request)
    while engine.has_work:
        outputs = engine.step()
    assert outputs[0].token_ids == best == oracle(PROMPTS[0], NUM)


def test_a_sequence_that_is_drawn_beside_them_changes_nothing(make_llm, oracle, rows_sampled) -> None:
    drawn = SamplingParams(temperature=1, seed=5, max_tokens=NUM // 2, ignore_eos=True)
    llm = make_llm()
    alone = llm.generate([PROMPTS[1]], drawn)[0].token_ids
    rows_sampled.clear()
    outputs = llm.generate(PROMPTS, [greedy(), drawn, greedy()])
    assert [output.token_ids for output in outputs] == [oracle(PROMPTS[0], NUM), alone, oracle(PROMPTS[2], NUM)]
    assert len(rows_sampled) <= NUM // 2 + 1  # until it ended


def test_steps_that_touch_no_tensor_need_no_inference_mode(make_llm, monkeypatch, rows_sampled) -> None:
    llm, modes = make_llm(), []
    model = llm._open().engine._runner.model

    def noting(run: Any) -> Any:
        def noted(*args: Any, **options: Any) -> Any:
            modes.append(torch.is_inference_mode_enabled())
            return run(*args, **options)

        return noted

    for name in ("step", "forward"):
        monkeypatch.setattr(model, name, noting(getattr(model, name)))
    cases = (greedy(), False), (greedy(logprobs=1), True), (greedy(kv="int8"), False), (greedy(prompt_logprobs=1), True)
    for params, needed in cases:
        modes.clear()
        llm.generate(PROMPTS[:2], params)
        assert set(modes) == {needed}
    modes.clear()
    llm.generate(PROMPTS[:2], [greedy(), greedy(kv="int8")])  # two kinds of pages: layer by layer
    assert set(modes) == {True}


def test_no_token_is_possible(make_llm, monkeypatch, rows_sampled) -> None:
    llm = make_llm()
    model = llm._open().engine._runner.model
    step = model.step

    def broken(*args: Any, **options: Any) -> Scores:
        scores = step(*args, **options)
        scores.logits[0] = torch.nan
        return Scores(scores.logits, [-1, *scores.likeliest[1:]])

    monkeypatch.setattr(model, "step", broken)
    output = llm.generate([PROMPTS[0]], greedy())[0]
    assert (output.error, output.token_ids) == (NO_TOKEN_ERROR, [])
    assert rows_sampled == [1]


def test_the_twin_gives_the_same_answers(make_llm, monkeypatch, rows_sampled) -> None:
    """With end tokens, stop ids, stop strings and lengths among them, streamed."""
    each = [
        greedy(),
        greedy(ignore_eos=False),
        greedy(stop_token_ids=[40, 41, 42]),
        greedy(stop="e"),
        greedy(max_tokens=1),
    ]
    told = []
    for takes in (True, False):
        monkeypatch.setattr(Sequence, "takes_likeliest", property(lambda self, takes=takes: takes and self._greedy))
        llm = make_llm()
        streams = [llm.stream(ids, params) for ids, params in zip([*PROMPTS, *PROMPTS[:2]], each, strict=True)]
        told.append([[(o.delta, o.token_ids, o.finish_reason, o.outputs[0].stop_reason) for o in s] for s in streams])
        assert bool(rows_sampled) is not takes
    assert told[0] == told[1]
