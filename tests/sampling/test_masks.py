"""Masks: ahead of time or now, in a batch or alone, the same tokens; the fused edit against the plain step."""

from __future__ import annotations

import random

import pytest
import torch

from pagoda import SamplingParams, Structured
from pagoda.sampling.masks import MaskAhead
from pagoda.sampling.plain import sample_one
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.state import SampleState

from ..models.tokenizer_samples import sample
from .grammar_helpers import compiler

FORMS = [Structured(regex="[a-z]{2,9}( [0-9])?"), Structured(json_object=True), Structured(choice=["the", "cat"]), None]


@pytest.fixture
def ahead():
    masks = MaskAhead(num_threads=2)
    yield masks
    masks.close()


def make_states(grammars, eos_id: int, num: int) -> list[SampleState]:
    states = []
    for index in range(num):
        form = FORMS[index % len(FORMS)]
        params = SamplingParams(
            temperature=[0.0, 1.0, 1.4][index % 3],
            top_p=[1.0, 0.9][index % 2],
            repetition_penalty=[1.0, 1.3][index % 2],
            logit_bias={65: 2.0} if index % 5 == 0 else None,
            min_tokens=index % 4,
            max_tokens=50,
            structured=form,
        )
        grammar = None if form is None else grammars.compile(form)
        states.append(SampleState(params, [1, 2], seed=index, index=0, eos_ids=[eos_id], grammar=grammar))
    return states


@pytest.mark.parametrize("padding", [0, 37])
def test_the_batch_chooses_what_the_plain_chain_chooses(ahead, padding):
    tokenizer = sample("byte_level")
    eos_id = tokenizer.token_id("<|end|>")
    states = make_states(compiler(tokenizer, [eos_id]), eos_id, 16)
    outputs: list[list[int]] = [[] for _ in states]
    generator = torch.Generator().manual_seed(0)
    running = list(range(len(states)))
    for step in range(25):
        logits = torch.randn(len(running), tokenizer.vocab_size + padding, generator=generator) * 3
        if step % 2:
            ahead.start([states[i] for i in running])
        expected = [
            sample_one(
                row.clone(), states[i].params, prompt_ids=[1, 2], output_ids=outputs[i], seed=states[i].seed,
                eos_ids=[eos_id] if states[i].forbids_ending or states[i].grammar is None else [],
                grammar=states[i].grammar.fork() if states[i].grammar else None,
            )
            for i, row in zip(running, logits, strict=True)
        ]  # fmt: skip
        got = [token.token_id for token in Sampler().sample(logits, [states[i] for i in running])]
        assert got == expected
        for i, token_id in zip(running, got, strict=True):
            outputs[i].append(token_id)
            states[i].accept(token_id)
        running = [i for i in running if outputs[i][-1] != eos_id and not states[i].is_complete]
    assert ahead.num_masks > 30


def test_a_mask_computed_ahead_is_the_mask(ahead):
    tokenizer = sample("byte_level")
    grammars = compiler(tokenizer, [tokenizer.token_id("<|end|>")])
    rng = random.Random(0)
    states = make_states(grammars, tokenizer.token_id("<|end|>"), 8)
    grammatical = [state for state in states if state.grammar is not None]
    for _ in range(6):
        plain = [state.grammar.fork().mask()[: 4 * state.grammar.num_words] for state in grammatical]
        ahead.start(states)
        ahead.start(states)  # again: nothing is waiting
        for state, mask in zip(grammatical, plain, strict=True):
            assert state.grammar.mask()[: len(mask)].tolist() == mask.tolist()
            bits = [i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1]
            state.accept(rng.choice(bits))


def test_a_state_that_is_expected_may_be_forked_dropped_or_accepted(ahead):
    tokenizer = sample("byte_level")
    grammar = compiler(tokenizer, [tokenizer.token_id("<|end|>")]).compile(Structured(regex="[a-c]+"))
    a, b = (tokenizer.encode(text)[0] for text in "ab")
    for _ in range(50):
        states = [
            SampleState(SamplingParams(structured=Structured(regex="[a-c]+")), [1], grammar=grammar) for _ in "xyz"
        ]
        ahead.start(states)
        twin = states[0].fork()
        states[1].accept(a)
        del states[2]
        twin.accept(b)
        assert states[0].grammar.error is states[1].grammar.error is twin.grammar.error is None


def test_a_failed_grammar_fails_its_own_row_only():
    tokenizer = sample("byte_level")
    eos_id = tokenizer.token_id("<|end|>")
    states = make_states(compiler(tokenizer, [eos_id]), eos_id, 3)
    states[0].grammar.accept(eos_id)
    states[0].grammar.accept(eos_id)
    sampled = Sampler().sample(torch.zeros(3, tokenizer.vocab_size), states)
    assert sampled[0].error.startswith("structured output failed: ")
    assert sampled[1].error is sampled[2].error is None


def test_logprobs_are_the_models_own():
    tokenizer = sample("byte_level")
    grammar = compiler(tokenizer, [tokenizer.token_id("<|end|>")]).compile(Structured(regex="b"))
    params = SamplingParams(structured=Structured(regex="b"), logprobs=2, temperature=0.0)
    logits = torch.zeros(1, tokenizer.vocab_size)
    logits[0, 7] = 5.0
    expected = logits.log_softmax(-1)
    (sampled,) = Sampler().sample(logits.clone(), [SampleState(params, [1], grammar=grammar)])
    assert tokenizer.token(sampled.token_id) == "b"
    assert sampled.logprob == pytest.approx(float(expected[0, sampled.token_id]))
    assert sampled.top[0][0] == 7
