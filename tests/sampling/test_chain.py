"""The fused chain against its plain twin, row by row; the forbidden, the tied and the degenerate rows."""

from __future__ import annotations

import math
import random

import pytest
import torch

from pagoda.sampling import chain
from pagoda.sampling.closing import Closing
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.plain import sample_one
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.state import SampleState

EOS = (2,)


def random_params(rng: random.Random, vocab_size: int) -> SamplingParams:
    """Any mixture of options, each off about half of the time."""

    def maybe(value, off):
        return value if rng.random() < 0.5 else off

    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
        top_k=maybe(rng.choice([1, 2, 7, 63, 64, 200, vocab_size]), 0),
        top_p=maybe(rng.choice([0.0, 0.1, 0.5, 0.9, 0.999]), 1.0),
        min_p=maybe(rng.choice([0.01, 0.2, 1.0]), 0.0),
        typical_p=maybe(rng.choice([0.2, 0.9]), 1.0),
        repetition_penalty=maybe(rng.choice([0.7, 1.3]), 1.0),
        frequency_penalty=maybe(rng.choice([-1.5, 0.5]), 0.0),
        presence_penalty=maybe(rng.choice([-0.5, 2.0]), 0.0),
        logit_bias=maybe({rng.randrange(vocab_size): rng.choice([-math.inf, 5.0, -3.0]) for _ in range(4)}, None),
        min_tokens=maybe(5, 0),
        stop_token_ids=maybe([5, 6], None),
        ignore_eos=maybe(True, False),
        closing=maybe(Closing(rng.choice([1, 4, 8]), (7, 9), rng.choice([(), (3,)])), None),
    )


def random_rows(rng: random.Random, num_rows: int, vocab_size: int):
    rows = []
    for _ in range(num_rows):
        prompt = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 40))]
        output = [rng.randrange(vocab_size) for _ in range(rng.randrange(0, 12))]
        rows.append((random_params(rng, vocab_size), prompt, output, rng.randrange(2**40), rng.randrange(3)))
    return rows


def states_of(rows) -> list[SampleState]:
    return [
        SampleState(params, prompt, output_ids=output, seed=seed, index=index, eos_ids=EOS)
        for params, prompt, output, seed, index in rows
    ]


def plain_ids(logits, rows) -> list[int]:
    return [
        sample_one(row, params, prompt_ids=prompt, output_ids=output, eos_ids=EOS, seed=seed, index=index)
        for row, (params, prompt, output, seed, index) in zip(logits, rows, strict=True)
    ]


@pytest.mark.parametrize("vocab_size", [3, 40, 512, 1025, 6000])
@pytest.mark.parametrize("rounding", [None, 0.5], ids=["distinct", "tied"])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_fused_chain_equals_the_plain_steps(vocab_size, rounding, spread):
    rng = random.Random(vocab_size)
    torch.manual_seed(vocab_size)
    for _ in range(4):
        rows = random_rows(rng, 24, vocab_size)
        rows = [
            (p, prompt, out, s, i)
            for p, prompt, out, s, i in rows
            if vocab_size > 9 or not (p.stop_token_ids or p.closing)
        ]
        logits = torch.randn(len(rows), vocab_size) * spread
        if rounding:
            logits = (logits / rounding).round() * rounding
        expected = plain_ids(logits, rows)
        sampled = Sampler().sample(logits.clone(), states_of(rows))
        assert [s.token_id for s in sampled if not s.error] == [
            e for e, s in zip(expected, sampled, strict=True) if not s.error
        ]
        alone = [Sampler().sample(logits[i : i + 1].clone(), states_of(rows[i : i + 1]))[0] for i in range(len(rows))]
        assert alone == sampled


@pytest.mark.parametrize("widths", [(2, 8, 64), (16,), ()], ids=str)
def test_the_number_of_candidates_never_shows(widths, monkeypatch):
    """Narrow candidate sets, incomplete ones, ties across their border: the tokens are those of the plain steps."""
    rng = random.Random(1)
    for rounding in (1e-6, 1.0):
        rows = random_rows(rng, 60, 900)
        logits = (torch.randn(60, 900, generator=torch.Generator().manual_seed(3)) * 2 / rounding).round() * rounding
        expected = plain_ids(logits, rows)
        monkeypatch.setattr(chain, "WIDTHS", widths)
        assert [sampled.token_id for sampled in Sampler().sample(logits.clone(), states_of(rows))] == expected


def test_rows_with_few_candidates_are_not_ranked_among_all(monkeypatch):
    """A peaked distribution is decided by the first width, a flat one needs the vocabulary: seen by what is ranked."""
    widths_seen: list[int] = []
    first = chain._first

    def recorded(keys, width, *, largest):
        widths_seen.append(width)
        return first(keys, width, largest=largest)

    monkeypatch.setattr(chain, "WIDTHS", (16, 64))
    monkeypatch.setattr(chain, "_first", recorded)
    flat, peaked = torch.zeros(1, 2000), torch.zeros(1, 2000)
    peaked[0, 5] = 20.0
    for logits, expected in ((peaked, [16]), (flat, [16, 64, 2000])):
        widths_seen.clear()
        Sampler().sample(logits.clone(), [SampleState(SamplingParams(top_p=0.9), [1])])
        assert widths_seen == expected
