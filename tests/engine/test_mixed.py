"""Random methods, joined at random, beside each other in a pool too small for all: each request as if it were alone."""

from __future__ import annotations

import random

import pytest

from pagoda import ConfigError, SamplingParams
from pagoda.kv.codecs import CODECS
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies.base import Stage

from .conftest import kv_bytes
from .kv_policies import LOSSY, of_stage, spelled
from .tiny import prompt

CODEC_NAMES = [*of_stage(Stage.CODEC), *CODECS.names()]
SELECTIONS = of_stage(Stage.SELECTION)


def random_kv(rng: random.Random) -> str:
    """One to three stages that may stand together."""
    while True:
        parts = [spelled(rng.choice(LOSSY), rng.choice([12, 20, 0.5]))] if rng.random() < 0.7 else []
        parts += [rng.choice(CODEC_NAMES)] if rng.random() < 0.4 else []
        parts += [f"{rng.choice(SELECTIONS)}(pages={rng.choice([1, 2, 4])})"] if rng.random() < 0.4 or not parts else []
        try:
            parse_policy("+".join(parts))
        except ConfigError:
            continue
        return "+".join(parts)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_else_is_there_and_whatever_is_taken_away(make_llm, seed) -> None:
    rng = random.Random(seed)
    beginnings = [prompt(80 + at, 60) for at in range(2)]
    prompts, kinds = [], []
    for at in range(60):
        own = prompt(100 * seed + at, rng.randrange(1, 40))
        prompts.append(rng.choice(beginnings)[: rng.randrange(8, 60)] + own if rng.random() < 0.5 else own)
        kinds.append(SamplingParams(temperature=0, seed=5, max_tokens=rng.randrange(8, 28), kv=random_kv(rng)))
    alone = make_llm(page_size=8, enable_prefix_caching=False)
    expected = [alone.generate([ids], one)[0] for ids, one in zip(prompts, kinds, strict=True)]
    crowd = make_llm(page_size=8, kv_memory=kv_bytes(20) + (60 << 10), max_num_seqs=24, max_num_batched_tokens=48)
    outputs = crowd.generate(prompts, kinds)
    for ids, one, found, wanted in zip(prompts, kinds, outputs, expected, strict=True):
        assert (found.error, found.token_ids) == (wanted.error, wanted.token_ids), (one.kv, len(ids))
    assert crowd.stats()["queue"]["preemptions"] > 0, "there was room for all: the case shows nothing"
    stores = crowd._open().engine.stores
    assert stores.state_bytes == 0
    for store in stores:
        store.manager.clear_prefix()
        assert store.manager.pool.num_used_pages == 0
