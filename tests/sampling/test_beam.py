"""Beam search against transformers' generate on tiny random Llamas, and the books' own rules."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pagoda.core.types import FinishReason
from pagoda.sampling.beam import BeamSearch
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.state import SampleState

VOCAB = 24


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.6,  # spread-out logits, so that beams differ
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def our_beams(model, prompt: list[int], params: SamplingParams, eos_ids: tuple[int, ...]):
    """The loop that an engine runs, over a model without a cache."""
    root = SampleState(params, prompt, eos_ids=eos_ids)
    search = BeamSearch(
        params.beam_width,
        end_ids=root.end_ids,
        stop_token_ids=params.stop_token_ids or (),
        max_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
    )
    states, sequences = [root], [list(prompt)]
    while not search.done:
        logits = model(input_ids=torch.tensor(sequences)).logits[:, -1].float()
        beams = search.step(Sampler().beam_candidates(logits, states, search.num_candidates))
        states = [states[beam.parent].fork() for beam in beams]
        for state, beam in zip(states, beams, strict=True):
            state.accept(beam.token_id)
        sequences = [[*sequences[beam.parent], beam.token_id] for beam in beams]
        assert [beam.node.token_ids() for beam in beams] == [s[len(prompt) :] for s in sequences]
    return search.best(params.n)


@torch.no_grad()
def their_beams(model, prompt: list[int], params: SamplingParams, eos_ids: tuple[int, ...]):
    config = GenerationConfig(
        num_beams=params.beam_width,
        num_return_sequences=params.n,
        do_sample=False,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=VOCAB - 1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
def test_same_sequences_as_transformers(early_stopping, length_penalty):
    num_ended = 0
    for seed in range(6):
        model = tiny_llama(seed)
        for width, n, max_tokens, eos_ids, extra in (
            (2, 1, 6, (1,), {}),
            (2, 2, 12, (1,), {}),
            (4, 4, 20, (1, 5, 9), {}),
            (5, 1, 1, (1,), {}),
            (3, 3, 9, (1, 4), {"min_tokens": 4, "repetition_penalty": 1.3}),
        ):
            params = SamplingParams(
                beam_width=width,
                n=n,
                max_tokens=max_tokens,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                **extra,
            )
            prompt = [0, 3 + seed % 20, 7, 2]
            ours = our_beams(model, prompt, params, eos_ids)
            sequences, scores = their_beams(model, prompt, params, eos_ids)
            longest = max(len(hypothesis.token_ids) for hypothesis in ours)
            padded = [h.token_ids + [VOCAB - 1] * (longest - len(h.token_ids)) for h in ours]
            assert padded == sequences, (seed, width, eos_ids)
            assert [h.score for h in ours] == pytest.approx(scores, rel=1e-4, abs=1e-5)
            num_ended += sum(hypothesis.finish.reason is FinishReason.STOP for hypothesis in ours)
    assert num_ended > 5  # the comparison has seen both kinds of end


@torch.no_grad()
def test_one_beam_is_greedy_decoding():
    model, prompt = tiny_llama(3), [0, 5, 6]
    params = SamplingParams(beam_width=1, max_tokens=15)
    config = GenerationConfig(do_sample=False, max_new_tokens=15, eos_token_id=1, pad_token_id=VOCAB - 1)
    ids = torch.tensor([prompt])
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, 3:].tolist()
    assert our_beams(model, prompt, params, (1,))[0].token_ids == greedy


def candidates(*pairs):
    return [(token, math.log(prob)) for token, prob in pairs]


def test_finish_tells_eos_stop_id_and_length():
    search = BeamSearch(2, end_ids=(1, 7), stop_token_ids=(7,), max_tokens=2)
    assert search.num_candidates == 6
    beams = search.step([candidates((1, 0.5), (5, 0.25), (6, 0.15), (7, 0.1))])
    assert [(beam.parent, beam.token_id) for beam in beams] == [(0, 5), (0, 6)]
    assert search.step([candidates((7, 0.9), (2, 0.1)), candidates((3, 0.9), (4, 0.1))]) == []
    assert search.done
    finishes = [(h.token_ids, h.finish.cause, h.finish.stop) for h in search.best(2)]
    assert finishes == [([1], "eos", None), ([5, 7], "stop_token", 7)]
    assert search.best(2)[1].cumulative_logprob == pytest.approx(math.log(0.225))


def test_forbidden_tokens_never_continue_a_beam():
    search = BeamSearch(2, end_ids=(1,), max_tokens=5)
    beams = search.step([[(3, -0.1), (4, -math.inf), (1, -math.inf)]])
    assert [beam.token_id for beam in beams] == [3]
    assert search.step([[(3, -math.inf)]]) == []
    assert search.done
    assert search.best(2) == []


def test_candidates_of_the_sampler_are_edited_log_probs():
    params = SamplingParams(beam_width=2, logit_bias={0: -math.inf}, min_tokens=2)
    logits = torch.tensor([[5.0, 4.0, 3.0, 3.0, 1.0]])
    before = logits.clone()
    (row,) = Sampler().beam_candidates(logits, [SampleState(params, [0], eos_ids=[1])], 3)
    assert torch.equal(logits, before)
    assert [token for token, _ in row] == [2, 3, 4]
    assert row[0][1] == pytest.approx(float(logits[0].log_softmax(-1)[2]))
