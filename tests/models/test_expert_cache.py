"""Mixtures whose experts stay on disk: the same numbers with any cache, and counts that add up."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import ConfigError, WeightsError
from pagoda.models.load import load_model
from pagoda.models.placement import Room
from pagoda.models.shape import ModelShape
from pagoda.models.stream_plan import plan_experts
from pagoda.weights.expert_cache import ExpertCache
from pagoda.weights.expert_policies import POLICIES, Traced
from pagoda.weights.quantization import in_panels

from . import fake_model

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

SHAPE = {
    "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "num_hidden_layers": 3, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "hidden_size": 64, "head_dim": 16,
}  # fmt: skip
SLOT = (2 * 32 * 64 + 64 * 32) * 4
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model.write(tmp_path_factory.mktemp("moe") / "m", **SHAPE)


def cached(folder: Path, slots: int, policy: str = "traced", ledger: Ledger | None = None) -> Any:
    shape = ModelShape.from_config(fake_model.CONFIG | SHAPE)
    room = plan_experts(shape, "float32", in_panels("float32"), 0).num_bytes + (slots - 2) * SLOT
    return load_model(folder, weights="stream", room=lambda *_: Room(room, room), expert_cache=policy, ledger=ledger)


def test_a_plan_counts_slots_and_bytes() -> None:
    shape = ModelShape.from_config(fake_model.CONFIG | SHAPE)
    packing = in_panels("float32")
    whole, least = shape.weight_bytes("float32", packing), plan_experts(shape, "float32", packing, 0)
    assert (least.expert_slots, least.num_experts) == (2, 24)
    assert least.resident_bytes == whole - 24 * SLOT
    more = plan_experts(shape, "float32", packing, least.num_bytes + 5 * SLOT + 7)
    assert (more.expert_slots, more.num_bytes) == (7, least.num_bytes + 5 * SLOT)
    assert plan_experts(shape, "float32", packing, 1 << 30).expert_slots == 24


@pytest.mark.parametrize("policy", POLICIES)
def test_the_tokens_of_a_model_in_memory(folder: Path, policy: str) -> None:
    params = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
    with LLM(str(folder), memory="4GiB", weights="resident", quantization="fp32") as llm:
        wanted = [llm.generate(prompt, params)[0].token_ids for prompt in PROMPTS]
    with LLM(str(folder), memory="4GiB", weights="stream", expert_cache=policy) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, params)] == wanted
        assert llm.stats()["model"]["weights"] == "experts: 24 of 24 in memory, the others on disk"
        assert llm.stats()["model"]["expert_cache"]["hits"] > 0


@pytest.mark.parametrize("slots", [2, 3, 9, 24])
@pytest.mark.parametrize("policy", POLICIES)
def test_layers_compute_the_same_with_few_slots(folder: Path, slots: int, policy: str) -> None:
    ledger = Ledger(256 << 20)
    plain, few = load_model(folder, quantization="fp32"), cached(folder, slots, policy, ledger)
    assert few.stream.expert_slots == slots
    for step in range(4):
        for ours, theirs in zip(few.model._decoder.blocks, plain.model._decoder.blocks, strict=True):
            x = torch.randn(1 + 5 * (step % 2), 64, generator=torch.Generator().manual_seed(step))
            assert torch.equal(ours.mlp(x), theirs.mlp(x))
    counters = few.experts.counters
    assert counters.hits + counters.misses >= 12
    assert (counters.misses <= 24) or slots < 24
    assert counters.prefetched_used <= counters.prefetched
    few.close()
    assert ledger.leased_bytes == 0
    few.close()


@pytest.mark.parametrize(("policy", "goes"), [("lru", 0), ("lfu", 2), ("traced", 2)])
def test_who_gives_way(policy: str, goes: int) -> None:
    """Expert 0 was used most, 2 least, 1 last."""
    noted = POLICIES[policy](1, 3)
    for experts in ([0], [0], [0], [0], [2], [1], [1]):
        noted.used(0, experts)
    assert min([(0, e) for e in range(3)], key=lambda key: noted.worth(key, 0)) == (0, goes)


def test_traced_keeps_what_comes_next() -> None:
    noted = POLICIES["traced"](4, 2)
    for layer in range(4):
        noted.used(layer, [0])
    worth = [noted.worth((layer, 0), 1) for layer in range(4)]
    assert max(worth) == worth[2]
    assert worth[1] == min(worth)


def test_traced_believes_the_trace_that_is_right() -> None:
    """Of uses that come by chance, the long count tells most; of requests that stay with their experts, a short one."""
    steady, moving = Traced(1, 16), Traced(1, 16)
    rng = random.Random(0)
    for step in range(400):
        steady.used(0, rng.choices(range(16), [1 / (1 + e) for e in range(16)], k=2))
        moving.used(0, [(step // 40 * 2) % 16, (step // 40 * 2 + 1) % 16])
    assert steady.believed.argmax() == 2
    assert moving.believed[2] < 0.2
    assert sum(moving.believed) == pytest.approx(1)


def test_early_routers_are_counted_and_change_nothing(folder: Path) -> None:
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    answers = {}
    for policy in ("lru", "early"):
        with LLM(str(folder), memory="4GiB", weights="stream", expert_cache=policy) as llm:
            answers[policy] = llm.generate(PROMPTS, params)[0].token_ids
            counters = llm.stats()["model"]["expert_cache"]
            assert (counters["foreseen"] > 0) == (policy == "early")
            assert 0.2 * counters["foreseen"] <= counters["foreseen_right"] <= counters["foreseen"]
    assert answers["early"] == answers["lru"]


def test_what_a_router_says_is_read_before_it_is_asked_for(folder: Path) -> None:
    few = cached(folder, 9, "early")
    few.experts.expect(2, [1, 5])
    deadline = time.monotonic() + 60
    while few.experts.counters.bytes_read < 2 * SLOT and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(expert for expert, _ in few.experts.use(2, [1, 5, 7])) == [1, 5, 7]
    counters = few.experts.counters
    assert (counters.hits, counters.misses, counters.prefetched, counters.prefetched_used) == (2, 1, 2, 2)
    assert (counters.foreseen, counters.foreseen_right) == (2, 2)
    few.close()


def test_a_changed_file_ends_the_step_with_its_name(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **SHAPE)
    few = cached(folder, 3)
    os.utime(folder / "model.safetensors", ns=(0, 0))
    with pytest.raises(WeightsError, match=r"changed while tensor 'model.layers.0.mlp.experts.*' was read"):
        few.model._decoder.blocks[0].mlp(torch.ones(1, 64))
    few.close()


def test_refusals(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expert_cache 'fifo'; accepted: early, lfu, lru, traced"):
        cached(folder, 3, "fifo")
    with pytest.raises(ConfigError, match="its experts' format is not multiplied as it is stored"):
        load_model(folder, weights="stream", quantization="int3")


def test_an_aborted_use_leaves_nothing_held(folder: Path) -> None:
    few = cached(folder, 3)
    cache: ExpertCache = few.experts
    for _ in range(3):
        uses = cache.use(1, [0, 3, 5, 6])
        next(uses)
        uses.close()
    assert [expert for expert, _ in cache.use(1, [0, 1, 2, 3, 4, 5, 6, 7])] != []
    few.close()
