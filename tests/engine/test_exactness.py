"""Greedy tokens do not depend on batch, chunk size, preemption, prefix hits, page size or page granularity."""

from __future__ import annotations

import shutil
from itertools import product

import pytest

from pagoda import SamplingParams
from pagoda.schedule.policies import POLICIES
from pagoda.schedule.prediction.trained import write_trained

from .conftest import kv_bytes
from .tiny import CONFIG, prompt

NUM = 24
PROMPTS = [prompt(1, 5), prompt(2, 33), prompt(3, 70), prompt(4, 16), prompt(2, 33)[:20] + prompt(5, 9)]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM, ignore_eos=True)


def test_alone_like_transformers(make_llm, oracle) -> None:
    llm = make_llm()
    for ids in PROMPTS:
        assert llm.generate([ids], GREEDY)[0].token_ids == oracle(ids, NUM)


MATRIX = list(
    product(
        ("sequence", "layer", "head"),
        (16, 48, 2048),  # tokens of a step
        (None, 16),  # blocks: plenty, or so few that sequences push each other out
        (True, False),  # prefix cache
    )
)


@pytest.mark.parametrize(("granularity", "chunk", "blocks", "prefix"), MATRIX)
def test_matrix(make_llm, oracle, granularity, chunk, blocks, prefix) -> None:
    llm = make_llm(
        granularity=granularity,
        max_num_batched_tokens=chunk,
        max_num_seqs=8,
        page_size=8,
        enable_prefix_caching=prefix,
        kv_memory=kv_bytes(blocks or 256),
    )
    for _ in range(2):  # the second time the prefix cache is warm
        outputs = llm.generate(PROMPTS, GREEDY)
        assert [output.token_ids for output in outputs] == [oracle(ids, NUM) for ids in PROMPTS]
    stats = llm.stats()
    assert (stats["queue"]["preemptions"] > 0) == (blocks is not None)
    if prefix and not blocks:
        assert outputs[2].usage.cached_tokens == 64
    if not prefix:
        assert all(output.usage.cached_tokens == 0 for output in outputs)
        assert stats["kv"]["num_used_pages"] == 0


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The tiny model with a probe beside it that expects something else of every prompt."""
    folder, size = shutil.copytree(tiny, tmp_path_factory.mktemp("trained") / "model"), CONFIG["hidden_size"]
    probe = {"mean": [0.0] * size, "scale": [1.0] * size, "weights": [0.1] * size, "bias": 2.0}
    write_trained(folder, "trail", probe, {})
    return folder


@pytest.mark.parametrize("name", POLICIES.names())
def test_scheduling_policies_change_when_and_never_what(make_llm, oracle, trained, name) -> None:
    options = {"page_size": 8, "max_num_batched_tokens": 48, "max_num_seqs": 8, "kv_memory": kv_bytes(16)}
    llm = make_llm(trained, scheduling=name, **options)
    for _ in range(2):  # the second time the policy has learned from the first
        outputs = llm.generate(PROMPTS, GREEDY)
        assert [output.token_ids for output in outputs] == [oracle(ids, NUM) for ids in PROMPTS]


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
def test_page_sizes(make_llm, oracle, page_size) -> None:
    llm = make_llm(page_size=page_size, max_num_batched_tokens=40, max_num_seqs=8)
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [output.token_ids for output in outputs] == [oracle(ids, NUM) for ids in PROMPTS]


def test_requests_that_come_and_go(make_llm, oracle) -> None:
    """Streams that start in the middle of others, one of them left early."""
    llm = make_llm(max_num_batched_tokens=32, max_num_seqs=8, page_size=8)
    first = llm.stream(PROMPTS[2], GREEDY)
    next(first)
    second = llm.stream(PROMPTS[1], GREEDY)
    next(second)
    third = llm.stream(PROMPTS[0], GREEDY)
    next(third)
    second.close()
    assert list(first)[-1].token_ids == oracle(PROMPTS[2], NUM)
    assert llm.generate([PROMPTS[3]], GREEDY)[0].token_ids == oracle(PROMPTS[3], NUM)
    assert list(third)[-1].token_ids == oracle(PROMPTS[0], NUM)
    assert llm.stats()["queue"]["running"] == 0


def test_salted_prefixes_are_not_shared(make_llm) -> None:
    llm = make_llm()
    llm.generate([PROMPTS[2]], GREEDY)
    engine, intake = llm._open().engine, llm._intake
    for salt, cached in (("tenant", 0), ("", 64), ("tenant", 64)):
        request = intake.request(f"r-{salt}-{cached}", PROMPTS[2], GREEDY, salt=salt)
        engine.add(request)
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        assert outputs[-1].usage.cached_tokens == cached
