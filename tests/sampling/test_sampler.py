"""The sampler as the engine uses it: reproducible, sparse, with reports, and with bad rows that hurt nobody else."""

from __future__ import annotations

import math

import pytest
import torch

from pagoda.sampling.logprobs import prompt_logprobs, token_logprobs
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.sampler import NO_TOKEN_ERROR, Sampler
from pagoda.sampling.state import SampleState

VOCAB = 2000


def logits_of(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def tokens(logits, states):
    return [sampled.token_id for sampled in Sampler().sample(logits.clone(), states)]


def test_no_rows():
    assert Sampler().sample(torch.empty(0, VOCAB), []) == []


def test_greedy_takes_the_lowest_of_equal_ids():
    logits = torch.zeros(2, VOCAB)
    logits[1, [9, 5]] = 1.0
    states = [SampleState(SamplingParams(temperature=0), [1]) for _ in range(2)]
    assert tokens(logits, states) == [0, 5]
    mixed = [states[0], SampleState(SamplingParams(top_k=1), [1])]  # a tie at the k-th: both may be drawn
    assert tokens(logits, mixed)[1] in (5, 9)


def test_seeded_request_draws_the_same_alone_in_any_batch_and_after_preemption():
    params = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.1)
    others = [SamplingParams(temperature=0), SamplingParams(top_k=40), SamplingParams(min_p=0.1), SamplingParams()]
    mine = SampleState(params, [1, 2], seed=77)
    history: list[int] = []
    for step in range(30):
        row = logits_of(1, seed=step)
        crowd = [SampleState(p, [3], seed=step) for p in others[: step % 5]]
        batch = torch.cat([logits_of(len(crowd), seed=1000 + step), row])
        again = SampleState(params, [1, 2], seed=77, output_ids=history)
        (alone,) = tokens(row, [again])
        assert tokens(batch, [*crowd, mine])[-1] == alone
        mine.accept(alone)
        history.append(alone)
    assert len(set(history)) > 5


def test_sequences_of_a_request_and_seeds_differ():
    row = logits_of(1) / 5
    drawn = {
        (seed, index): tuple(
            tokens(row, [SampleState(SamplingParams(), [1], seed=seed, index=index, output_ids=[0] * position)])[0]
            for position in range(6)
        )
        for seed in range(3)
        for index in range(3)
    }
    assert len(set(drawn.values())) == 9


def test_rows_without_a_possible_token_end_in_an_error_alone():
    logits = logits_of(7)
    logits[0] = math.nan
    logits[1, 5] = math.nan
    logits[2] = -math.inf
    logits[3, 8] = math.inf
    params = [SamplingParams(temperature=0), SamplingParams(top_p=0.9), SamplingParams(), SamplingParams(typical_p=0.5)]
    params += [SamplingParams(temperature=0), SamplingParams(top_p=0.9, logprobs=2)]
    params += [SamplingParams(logit_bias=dict.fromkeys(range(VOCAB), -math.inf), logprobs=1)]
    expected = tokens(logits[4:6], [SampleState(p, [1]) for p in params[4:6]])
    out = Sampler().sample(logits, [SampleState(p, [1]) for p in params])
    assert [sampled.error for sampled in out] == [NO_TOKEN_ERROR] * 4 + [None, None, NO_TOKEN_ERROR]
    assert [sampled.token_id for sampled in out] == [-1] * 4 + [*expected, -1]
    assert out[6].logprob is None


def test_min_tokens_holds_off_the_end_then_lets_it_through():
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[8])
    state = SampleState(params, [1], eos_ids=[3])
    logits = torch.zeros(1, 10)
    logits[0, [3, 8, 6]] = torch.tensor([9.0, 8.0, 7.0])
    seen = []
    for _ in range(3):
        seen += tokens(logits, [state])
        state.accept(seen[-1])
    assert seen == [6, 6, 3]


def test_only_one_forbidden_choice_left_is_taken_by_every_way():
    bias = dict.fromkeys(range(1, VOCAB), -math.inf)
    for filters in ({}, {"top_k": 50}, {"top_p": 0.5}, {"typical_p": 0.5}, {"min_p": 0.5}, {"temperature": 0.0}):
        state = SampleState(SamplingParams(logit_bias=bias, **filters), [1], seed=3)
        assert tokens(logits_of(1), [state]) == [0]


@pytest.mark.parametrize("edited", [False, True])
def test_logprobs_are_the_models_own_whatever_was_edited(edited):
    logits = logits_of(3)
    reference = logits.double().log_softmax(-1)
    bias = {int(logits[0].argmax()): -math.inf} if edited else None
    params = [
        SamplingParams(temperature=0, logprobs=4, logit_bias=bias),
        SamplingParams(temperature=0.5, top_k=3),
        SamplingParams(temperature=2.0, logprobs=0, repetition_penalty=1.5 if edited else 1.0),
    ]
    first, second, third = Sampler().sample(logits.clone(), [SampleState(p, [1], seed=1) for p in params])
    assert (second.logprob, second.rank, second.top) == (None, None, [])
    for row, sampled in ((0, first), (2, third)):
        assert sampled.logprob == pytest.approx(float(reference[row, sampled.token_id]), abs=1e-5)
        assert sampled.rank == int((logits[row] > logits[row, sampled.token_id]).sum()) + 1
    assert third.top == []
    assert [token for token, _ in first.top] == logits[0].topk(4).indices.tolist()
    assert [logprob for _, logprob in first.top] == pytest.approx(reference[0].topk(4).values.tolist(), abs=1e-5)
    assert first.rank == (2 if edited else 1)


def test_best_of_needs_the_chosen_logprob():
    (sampled,) = Sampler().sample(logits_of(1), [SampleState(SamplingParams(best_of=2), [1])])
    assert sampled.logprob is not None


def test_prompt_logprobs_do_not_depend_on_chunks():
    logits, ids = logits_of(6), [5, 1, 9, 700, 3, 2]
    whole = prompt_logprobs(logits, ids, 3)
    assert whole == prompt_logprobs(logits[:4], ids[:4], 3) + prompt_logprobs(logits[4:], ids[4:], 3)
    assert [len(entry.top) for entry in whole] == [3] * 6
    reference = logits.double().log_softmax(-1)
    assert [e.logprob for e in whole] == pytest.approx([float(reference[i, t]) for i, t in enumerate(ids)], abs=1e-5)
    assert prompt_logprobs(logits[:0], [], 3) == []


def test_equal_alternatives_are_listed_by_id():
    (entry,) = token_logprobs(torch.tensor([[1.0, 3.0, 1.0, 3.0]]), [2], [4])
    assert [token for token, _ in entry.top] == [1, 3, 0, 2]
    assert entry.rank == 3
    (entry,) = token_logprobs(torch.tensor([[1.0, 3.0]]), [0], [50])
    assert len(entry.top) == 2
